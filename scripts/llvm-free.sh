#!/usr/bin/env bash
# Fails if a crate that must stay free of LLVM depends on it. Arguments: `-p CRATE` pairs.
set -euo pipefail
while [ $# -gt 0 ]; do
  [ "$1" = -p ] && shift
  if cargo tree --locked -p "$1" -e normal --prefix none | grep -E '^(melior|mlir-sys|inkwell|llvm-sys) ' >&2; then
    echo "error: $1 must not depend on LLVM" >&2
    exit 1
  fi
  shift
done
echo "llvm-free: ok"
