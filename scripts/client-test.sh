#!/usr/bin/env bash
# The TypeScript client: types, and tests against the real program (`make guests` builds it) and in a real browser.
set -euo pipefail
cd "$(dirname "$0")/../clients/typescript"

if ! command -v npm > /dev/null || [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 20 ]; then
  echo "NOT TESTED: the TypeScript client needs Node.js 20 or later, which is not here" >&2
  exit 0
fi
npm ci --no-audit --no-fund --loglevel=error > /dev/null
npm run --silent check
npm run --silent build

export CHROMIUM=${CHROMIUM:-/usr/bin/chromium}
if [ ! -x "$CHROMIUM" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing Chromium for the tests in a browser" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1 || true
fi
if [ -x "$CHROMIUM" ]; then
  npx vitest run
else
  echo "NOT TESTED IN A BROWSER: there is no Chromium at $CHROMIUM, and it cannot be installed here" >&2
  npx vitest run --exclude test/browser.test.ts
fi
