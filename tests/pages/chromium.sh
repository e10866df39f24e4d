#!/usr/bin/env bash
# Shows a report in a real browser: it renders, says nothing on the console, asks for nothing, and looks otherwise on dark than on
# light. Debian's Chromium is installed where root may do so; elsewhere, without a browser, this says that it is left out.
# Screenshots to look at: tests/pages/chromium.sh DIR
set -euo pipefail
cd "$(dirname "$0")/../.."

browser=$(command -v chromium || true)
if [ -z "$browser" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) >/dev/null 2>&1 || true
    browser=$(command -v chromium || true)
fi
if [ -z "$browser" ]; then
    echo "pages: no chromium here and none can be installed; left out"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shots=${1:-$work}
head -c 3000 fixtures/text/heldout.txt >"$work/words.txt"
cargo build --release --quiet
target/release/requant convert fixtures/tiny-deepseek-v3 --to mlx-mixed-3-6 -o "$work/a <b> & c" --error-report \
    --validate "$work/words.txt" --validate-context 128 --report "$work/page.html" -q >/dev/null

browse() {
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
        --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$work/profile" \
        --enable-logging=stderr --hide-scrollbars --window-size=1000,3600 "$@" "file://$work/page.html" 2>"$work/said"
    if grep ':CONSOLE' "$work/said"; then
        echo "pages: the browser has something to say"
        exit 1
    fi
}

browse --dump-dom >"$work/dom"
# The title is text, not markup; and everything that was measured is drawn.
grep -q '<h1>a &lt;b&gt; &amp; c</h1>' "$work/dom"
plots=$(grep -o '<svg role="img"' "$work/dom" | wc -l)
[ "$plots" = 5 ] || { echo "pages: $plots plots, expected 5"; exit 1; }
for part in 'Origin and checks' 'Worst tensors' 'KL divergence from the original' 'Experts whose tokens changed most'; do
    grep -q "$part" "$work/dom" || { echo "pages: $part is missing"; exit 1; }
done
browse --blink-settings=preferredColorScheme=1 --screenshot="$shots/light.png" >/dev/null
browse --blink-settings=preferredColorScheme=0 --screenshot="$shots/dark.png" >/dev/null
if cmp -s "$shots/light.png" "$shots/dark.png"; then
    echo "pages: the same on light and dark"
    exit 1
fi
echo "pages: shown by $("$browser" --version 2>/dev/null), on light and dark"
