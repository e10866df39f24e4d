#!/usr/bin/env bash
# Packs the binary of a target that was built with the profile `dist`, with licences and a checksum.
# Usage: packaging/archive.sh TARGET, such as x86_64-unknown-linux-gnu. The archive ends up in target/archives/.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$1
version=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"name":"requant","version":"\([^"]*\)".*/\1/')
name=requant-$version-$target
rm -rf "target/archives/$name"
mkdir -p "target/archives/$name"
cp "target/$target/dist/requant" README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "target/archives/$name/"
cd target/archives
tar --sort=name --owner=0 --group=0 --numeric-owner -czf "$name.tar.gz" "$name"
if command -v sha256sum >/dev/null; then sha256sum "$name.tar.gz"; else shasum -a 256 "$name.tar.gz"; fi >"$name.tar.gz.sha256"
