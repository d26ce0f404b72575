#!/usr/bin/env bash
# Starts a server, deploys the examples, and shows each of them on real input. Then keeps serving, or with ONCE=1 stops
# with the exit code of the last run.
set -euo pipefail
cd "$(dirname "$0")/.."
server=${SERVER:-target/release/stepwell}
components=${COMPONENTS:-target/guests/wasm32-unknown-unknown/release}
work=$(mktemp -d)
export STEPWELL_API_KEY=dev

if [ -n "${ONCE:-}" ]; then
  listen=127.0.0.1:0 data=$work/data
else
  listen=${LISTEN:-127.0.0.1:7878} data=${DATA_DIR:-stepwell-data}
fi
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

mkfifo "$work/stdout"
"$server" serve --dev --listen "$listen" --data-dir "$data" > "$work/stdout" &
pid=$!
stop() {
  kill "$pid" 2> /dev/null || true
  wait "$pid" 2> /dev/null || true
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
read -r line < "$work/stdout" || { echo "the server did not start" >&2; exit 1; }
export STEPWELL_URL=${line##* }
say "$line (data in $data, tenant dev, API key dev)"

# This repository's own Markdown and Rust, as one JSON string.
json_text() { tr -d '\000-\010\013-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/\t/\\t/g' | awk '{ printf "%s\\n", $0 }'; }
sources=$(git ls-files '*.md' '*.rs' 2> /dev/null || find . -name target -prune -o \( -name '*.md' -o -name '*.rs' \) -print)
{
  printf '{"title": "Stepwell, its own words and code", "text": "'
  # shellcheck disable=SC2086
  cat $sources | json_text
  printf '"}'
} > "$work/sources.json"

say "document-digest: $(echo "$sources" | wc -l) files of this repository, $(($(wc -c < "$work/sources.json") / 1024)) KiB"
"$server" deploy document-digest "$components/document_digest.component.wasm"
code=0
"$server" run document-digest --input "@$work/sources.json" --follow | tee "$work/digest" | cut -c 1-160 || code=$?
id=$(sed -n '1s/^run //p' "$work/digest")
if [ "$code" = 0 ]; then
  report=$("$server" run-info "$id" | sed -n 's/^artifact *\([^ ]*\).*/\1/p')
  say "the report: $STEPWELL_URL$report"
  if command -v curl > /dev/null; then
    curl -sf -H "Authorization: Bearer dev" "$STEPWELL_URL$report" -o target/report.html
    echo "also in target/report.html"
  fi
fi

if [ "$code" = 0 ]; then
  say "omni-task: checks, work, result, done"
  "$server" deploy omni-task "$components/omni_task.component.wasm"
  "$server" run omni-task --input @examples/omni-task/input.json --follow | cut -c 1-160 || code=$?
fi
for graph in inferpipe agent-squad; do
  if [ "$code" = 0 ]; then
    say "$graph: a graph document"
    "$server" deploy $graph examples/$graph/graph.json
    "$server" run $graph --input @examples/$graph/input.json --follow | cut -c 1-160 || code=$?
  fi
done
[ -n "${ONCE:-}" ] && exit "$code"

say "still serving; try these in another terminal, or ^C to stop"
cat <<TRY
  export STEPWELL_URL=$STEPWELL_URL
  $server runs
  $server run inferpipe --input @examples/inferpipe/input.json --follow
  curl -N -H 'Authorization: Bearer dev' -H 'Accept: text/event-stream' $STEPWELL_URL/v1/runs/$id/events
TRY
wait "$pid"
