#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh virtual environment, and converts the fixture with what was installed.
# Usage: packaging/wheel.sh [OPTIONS OF maturin build], such as --profile release for a build that takes less time.
# Needs a Rust toolchain, Python 3.8 or later with venv, and PyPI for maturin. The wheel ends up in target/wheels/.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet 'maturin>=1.8,<2'
rm -f target/wheels/requant-*.whl
"$work/build/bin/maturin" build --out target/wheels "$@"

python3 -m venv "$work/use"
"$work/use/bin/pip" install --quiet --no-index target/wheels/requant-*.whl
"$work/use/bin/requant" --version
"$work/use/bin/requant" convert fixtures/tiny-deepseek-v3 --to q4_k_m -o "$work/m.gguf"
"$work/use/bin/requant" verify "$work/m.gguf"

bytes=$(wc -c <"$work/use/bin/requant")
echo "binary: $bytes bytes"
# Twenty megabytes are what a download of a tool may take. Options of the build may leave more in it.
test $# -gt 0 || test "$bytes" -lt 20000000
