#!/usr/bin/env bash
# Prints the path of a cargo tool: the one on the path, else a pinned one, built once into target/tools.
# Arguments: TOOL VERSION [options of cargo install].
set -euo pipefail
tool=$1 version=$2
shift 2
if command -v "$tool"; then
  exit 0
fi
root=target/tools
if [ "$("$root/bin/$tool" --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -1)" != "$version" ]; then
  echo "$tool is not on the path: building version $version into $root (minutes, once)" >&2
  cargo install --quiet --locked --force --version "$version" --root "$root" --target-dir "$root/build" "$@" "$tool" >&2
  rm -rf "$root/build"
fi
echo "$root/bin/$tool"
