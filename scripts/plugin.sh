#!/usr/bin/env bash
# Builds the dialect plugin into FOLDER and checks that mlir-opt-22 reads, verifies and rejects with it.
set -euo pipefail
folder=${1:-target/plugin}
prefix=${MLIR_SYS_220_PREFIX:-/usr/lib/llvm-22}
mkdir -p "$folder"
cargo rustc --quiet --locked --release -p t3c-schedule --crate-type staticlib
archive=$(find "${CARGO_TARGET_DIR:-target}/release" -maxdepth 2 -name 'libt3c_schedule*.a' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
if [ -z "$archive" ]; then
  echo "error: cargo made no static library of t3c-schedule" >&2
  exit 1
fi
for spec in "-gen-dialect-decls T3Base T3Dialect.h" "-gen-dialect-defs T3Base T3Dialect.cpp" \
  "-gen-enum-decls T3Base T3Enums.h" "-gen-enum-defs T3Base T3Enums.cpp" \
  "-gen-attrdef-decls T3Base T3Attrs.h" "-gen-attrdef-defs T3Base T3Attrs.cpp" \
  "-gen-op-decls T3Ops T3Ops.h" "-gen-op-defs T3Ops T3Ops.cpp"; do
  read -r generator source file <<<"$spec"
  "$prefix/bin/mlir-tblgen" "$generator" "ir/dialect/$source.td" -I ir/dialect -I "$prefix/include" -o "$folder/$file.inc"
done
g++ -std=c++17 -fPIC -fno-exceptions -O1 -w -shared -Iir/dialect -I"$folder" -I"$prefix/include" \
  ir/dialect/T3.cpp ir/dialect/Plugin.cpp "$archive" -lpthread -ldl -o "$folder/libt3.so"
good=ir/dialect/example.mlir
"$prefix/bin/mlir-opt" --load-dialect-plugin="$folder/libt3.so" "$good" -o "$folder/example.out.mlir"
"$prefix/bin/mlir-opt" --load-dialect-plugin="$folder/libt3.so" "$folder/example.out.mlir" -o /dev/null
if sed 's/threshold = 2/threshold = 3/' "$good" |
  "$prefix/bin/mlir-opt" --load-dialect-plugin="$folder/libt3.so" - -o /dev/null 2>"$folder/rejected.txt"; then
  echo "error: the plugin accepted a broken address space" >&2
  exit 1
fi
grep -q '(C6)' "$folder/rejected.txt"
echo "plugin: $folder/libt3.so"
