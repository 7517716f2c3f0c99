#!/usr/bin/env bash
# The whole road on three models: compile, simulate, train. Argument: the t3c command; OUT=FOLDER for the results.
set -euo pipefail
t3c=${1:-target/release/t3c}
out=${OUT:-out/demo}
mkdir -p "$out"

step() {
  printf '\n== %s\n$ t3c %s\n' "$1" "${*:2}"
  "$t3c" "${@:2}"
}

# Three devices: its 9 heads and 3 KV heads divide by no other degree.
step "SmolLM2-135M on 3 devices: pairs of a product and its collective" \
  compile examples/models/smollm2-135m/config.json --tp 3
step "T-NLG on 8 devices: the same" compile examples/models/t-nlg.json --tp 8
step "T-NLG on 8 devices: time and memory traffic by policy" simulate examples/models/t-nlg.json --tp 8
step "A small model learns to use tools, on 2 devices (threads)" \
  train examples/recipes/portool.json --tp 2 --out "$out/portool"

printf '\nThe results lie in %s:\n' "$out/portool"
find "$out/portool" -type f | sort | sed 's/^/  /'
