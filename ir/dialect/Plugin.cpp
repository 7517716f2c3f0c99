// `mlir-opt-22 --load-dialect-plugin=libt3.so`: upstream's tool reads, verifies and prints t3.
#include "T3.h"

#include "mlir/Tools/Plugins/DialectPlugin.h"

extern "C" LLVM_ATTRIBUTE_WEAK ::mlir::DialectPluginLibraryInfo mlirGetDialectPluginInfo() {
  return {MLIR_PLUGIN_API_VERSION, "t3", LLVM_VERSION_STRING,
          [](mlir::DialectRegistry *registry) { registry->insert<t3::T3Dialect>(); }};
}
