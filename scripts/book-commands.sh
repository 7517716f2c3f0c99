#!/usr/bin/env bash
# Runs every command of the book: the lines `$ t3c …` in its blocks marked `console`, and those of the README.
# Argument: the t3c command. A command that fails, or takes more than two minutes, is an error.
set -euo pipefail
t3c=$(realpath "${1:-target/release/t3c}")
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
ln -s "$t3c" "$bin/t3c"
export PATH="$bin:$PATH"

count=0
while IFS=$'\t' read -r page command; do
  count=$((count + 1))
  if ! timeout 120 bash -c "set -o pipefail; $command" >"$bin/output" 2>&1 </dev/null; then
    echo "error: $page: \`$command\` failed:" >&2
    tail -5 "$bin/output" >&2
    exit 1
  fi
done < <(find docs/src README.md -name '*.md' | sort | xargs awk '
  /^```/ { inside = ($0 == "```console") }
  inside && /^\$ / { print FILENAME "\t" substr($0, 3) }')
[ "$count" -gt 0 ] || { echo "error: no commands found in the book" >&2; exit 1; }
echo "book: $count commands run"
