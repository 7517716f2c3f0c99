#!/usr/bin/env bash
# Installs what building and testing t3c need on Debian 12 and this machine lacks: LLVM and MLIR 22 and the
# compilers around them. Safe to run again; says what it installs, and does nothing when all is there.
set -euo pipefail

packages=(build-essential llvm-22-dev libmlir-22-dev mlir-22-tools libclang-22-dev clang-22 libpolly-22-dev
  libzstd-dev zlib1g-dev libxml2-dev)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done

if ! command -v cargo >/dev/null; then
  echo "error: cargo is not on the path; install Rust 1.95 or newer (https://rustup.rs)" >&2
  exit 1
fi
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: nothing to install"
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "error: this is not a Debian system; install these packages' counterparts: ${missing[*]}" >&2
  exit 1
fi

echo "setup: installing ${missing[*]}"
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update &&
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "error: could not install ${missing[*]}; LLVM 22 is in Debian 12's archive or its updates" >&2
  exit 1
fi
echo "setup: done"
