#!/usr/bin/env bash
# Builds the book into target/book and fails on whatever is broken in it: a page that is missing or that no
# page lists, a link to nothing, an anchor that no heading has.
set -euo pipefail
mdbook=$(scripts/tool.sh mdbook 0.5.4 --no-default-features --features search)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$mdbook" build docs --dest-dir "$PWD/target/book" 2>&1 | tee "$log"
if grep -qE '^ *(WARN|ERROR)|\[(WARN|ERROR)\]' "$log"; then
  echo "error: mdbook has warnings" >&2
  exit 1
fi
perl scripts/book-links.pl docs/src
echo "book: target/book/index.html"
