// What MLIR's C API lacks and t3c needs: passes by name with options, remarks, parsing with a file name, and
// the fields of #t3.chunk and #t3.arrival.
#include "T3.h"

#include "mlir/CAPI/IR.h"
#include "mlir/CAPI/Pass.h"
#include "mlir/CAPI/Registration.h"
#include "mlir/CAPI/Support.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"

extern "C" {
MLIR_DECLARE_CAPI_DIALECT_REGISTRATION(T3, t3);
}
MLIR_DEFINE_CAPI_DIALECT_REGISTRATION(T3, t3, t3::T3Dialect)

// Registers a pass under `argument`. `make` gets `user` and the raw text of the options, and returns a null
// pass to reject them.
extern "C" void t3RegisterPass(MlirStringRef argument, MlirStringRef description,
                               MlirPass (*make)(void *, MlirStringRef), void *user) {
  mlir::registerPassPipeline(
      unwrap(argument), unwrap(description),
      [=](mlir::OpPassManager &manager, llvm::StringRef options,
          llvm::function_ref<mlir::LogicalResult(const llvm::Twine &)> fail) -> mlir::LogicalResult {
        MlirPass pass = make(user, wrap(options));
        if (!pass.ptr)
          return fail(llvm::Twine("bad options '") + options + "'");
        manager.addPass(std::unique_ptr<mlir::Pass>(unwrap(pass)));
        return mlir::success();
      },
      [](llvm::function_ref<void(const mlir::detail::PassOptions &)>) {});
}

// severity: 0 error, 1 warning, 2 note, 3 remark, as MlirDiagnosticSeverity.
extern "C" void t3Emit(uint32_t severity, MlirLocation location, MlirStringRef message) {
  static const mlir::DiagnosticSeverity severities[] = {
      mlir::DiagnosticSeverity::Error, mlir::DiagnosticSeverity::Warning, mlir::DiagnosticSeverity::Note,
      mlir::DiagnosticSeverity::Remark};
  mlir::Location at = unwrap(location);
  at.getContext()->getDiagEngine().emit(at, severities[severity & 3]) << unwrap(message);
}

extern "C" MlirModule t3ParseModule(MlirContext context, MlirStringRef source, MlirStringRef name) {
  auto module = mlir::parseSourceString<mlir::ModuleOp>(unwrap(source), mlir::ParserConfig(unwrap(context)), unwrap(name));
  return MlirModule{module.release().getOperation()};
}

// Writes the module and the pipeline to `file` when a pass fails or crashes; with `local`, only the failing pass.
extern "C" void t3EnableCrashReproducer(MlirPassManager manager, MlirStringRef file, bool local) {
  unwrap(manager)->enableCrashReproducerGeneration(unwrap(file), local);
}

// Parses what the former wrote and gives its pipeline to `manager`. Null where either fails.
extern "C" MlirModule t3ParseReproducer(MlirContext context, MlirStringRef source, MlirStringRef name,
                                        MlirPassManager manager) {
  mlir::ParserConfig config(unwrap(context));
  mlir::PassReproducerOptions reproducer;
  reproducer.attachResourceParser(config);
  auto module = mlir::parseSourceString<mlir::ModuleOp>(unwrap(source), config, unwrap(name));
  if (!module || mlir::failed(reproducer.apply(*unwrap(manager))))
    return MlirModule{nullptr};
  return MlirModule{module.release().getOperation()};
}

extern "C" MlirAttribute t3ChunkAttrGet(MlirContext context, const uint32_t words[6]) {
  return wrap(t3::ChunkAttr::get(unwrap(context), words[0], static_cast<t3::Store>(words[1]),
                                 static_cast<t3::UpdateOp>(words[2]), words[3], static_cast<t3::Trigger>(words[4]), words[5]));
}

extern "C" bool t3ChunkAttrWords(MlirAttribute attribute, uint32_t words[6]) {
  auto chunk = llvm::dyn_cast<t3::ChunkAttr>(unwrap(attribute));
  if (!chunk)
    return false;
  words[0] = chunk.getRelative();
  words[1] = static_cast<uint32_t>(chunk.getStore());
  words[2] = static_cast<uint32_t>(chunk.getOp());
  words[3] = chunk.getThreshold();
  words[4] = static_cast<uint32_t>(chunk.getTrigger());
  words[5] = chunk.getTo();
  return true;
}

// An arrival as words: relative, from, then the sends.
extern "C" MlirAttribute t3ArrivalAttrGet(MlirContext context, const uint32_t *words, size_t count) {
  return wrap(t3::ArrivalAttr::get(unwrap(context), words[0], words[1], llvm::ArrayRef<uint32_t>(words + 2, count - 2)));
}

// The number of words of an arrival, of which at most `capacity` are written; 0 for any other attribute.
extern "C" size_t t3ArrivalAttrWords(MlirAttribute attribute, uint32_t *words, size_t capacity) {
  auto arrival = llvm::dyn_cast<t3::ArrivalAttr>(unwrap(attribute));
  if (!arrival)
    return 0;
  llvm::SmallVector<uint32_t> all = {arrival.getRelative(), arrival.getFrom()};
  all.append(arrival.getSends().begin(), arrival.getSends().end());
  std::copy_n(all.begin(), std::min(capacity, all.size()), words);
  return all.size();
}
