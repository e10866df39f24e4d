#!/usr/bin/env bash
# Packs the binary of a target that was built with the profile `dist`, with manual pages, completions, licences and a
# checksum. The binary has to run on this machine: it writes its pages and completions itself.
# Usage: packaging/archive.sh TARGET [BINARY], such as x86_64-unknown-linux-gnu. The archive ends up in target/archives/.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$1
binary=${2:-target/$target/dist/requant}
version=$("$binary" --version)
name=requant-${version#requant }-$target
folder=target/archives/$name
rm -rf "$folder"
mkdir -p "$folder/completions"
cp "$binary" "$folder/requant"
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$folder/"
"$binary" man "$folder/man" >/dev/null
for shell in bash elvish fish powershell zsh; do
    "$binary" completions $shell >"$folder/completions/requant.$shell"
done
cd target/archives
# The same archive from the same files. Other tars than GNU's have other options for it.
if tar --version | grep -q GNU; then
    tar --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner -cf - "$name"
else
    tar --uid 0 --gid 0 -cf - "$name"
fi | gzip -n >"$name.tar.gz"
if command -v sha256sum >/dev/null; then sha256sum "$name.tar.gz"; else shasum -a 256 "$name.tar.gz"; fi >"$name.tar.gz.sha256"
