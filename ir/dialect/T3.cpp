// The t3 dialect: registration and verifiers. The arithmetic of address spaces is t3c-schedule's, called
// through t3_verify_address_space, so that it is written once.
#include "T3.h"

#include "llvm/ADT/SmallSet.h"
#include "llvm/ADT/TypeSwitch.h"

#include "T3Dialect.cpp.inc"
#include "T3Enums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "T3Attrs.cpp.inc"
#define GET_OP_CLASSES
#include "T3Ops.cpp.inc"

using namespace mlir;

// Writes what is wrong with `count` chunks of six words each into `message` and returns its length; 0 when
// nothing is. Defined by t3c-schedule.
extern "C" size_t t3_verify_address_space(const uint32_t *chunks, size_t count, uint32_t collective, uint32_t devices,
                                          char *message, size_t capacity);

// The same for arrivals: relative, from, number of sends, sends, one after another.
extern "C" size_t t3_verify_arrivals(const uint32_t *words, size_t count, uint32_t collective, uint32_t devices,
                                     char *message, size_t capacity);

void t3::T3Dialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "T3Attrs.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "T3Ops.cpp.inc"
      >();
}

namespace {

// Devices in the group, or failure with a diagnostic (C2 of both ops).
FailureOr<int64_t> groupSize(Operation *op, SymbolTableCollection &symbols, FlatSymbolRefAttr grid, ArrayRef<int64_t> axes) {
  Operation *definition = symbols.lookupNearestSymbolFrom(op, grid);
  if (!definition || definition->getName().getStringRef() != "shard.grid")
    return op->emitOpError("(C2) expects @") << grid.getValue() << " to name a shard.grid";
  auto shape = definition->getAttrOfType<DenseI64ArrayAttr>("shape");
  if (!shape)
    return op->emitOpError("(C2) expects shard.grid @") << grid.getValue() << " to have a shape";
  if (axes.empty())
    return op->emitOpError("(C2) names no axis of @") << grid.getValue();
  int64_t devices = 1;
  llvm::SmallSet<int64_t, 4> seen;
  for (int64_t axis : axes) {
    if (axis < 0 || axis >= static_cast<int64_t>(shape.size()))
      return op->emitOpError("(C2) names axis ") << axis << " of @" << grid.getValue() << ", which has "
                                                 << shape.size() << " axes";
    if (!seen.insert(axis).second)
      return op->emitOpError("(C2) names axis ") << axis << " twice";
    if (shape[axis] <= 0)
      return op->emitOpError("(C2) needs a static extent for axis ") << axis << " of @" << grid.getValue();
    devices *= shape[axis];
  }
  return devices;
}

RankedTensorType yielded(Block &block) {
  Operation *yield = block.getTerminator();
  return yield->getNumOperands() == 1 ? dyn_cast<RankedTensorType>(yield->getOperand(0).getType()) : nullptr;
}

// C8 of track_and_trigger, C5 of consume.
template <typename T>
LogicalResult verifyConcat(T op, int64_t rank, StringRef constraint) {
  if (!op.getConcat())
    return success();
  if (op.getCollective() != t3::Collective::all_to_all)
    return op.emitOpError(constraint) << " concatenates, which only an all_to_all does";
  if (static_cast<int64_t>(*op.getConcat()) >= rank)
    return op.emitOpError(constraint) << " concatenates along dimension " << *op.getConcat() << " of a tensor of rank " << rank;
  return success();
}

// The shape of the result of an all-to-all; empty where the devices do not divide it.
SmallVector<int64_t> exchanged(ArrayRef<int64_t> shape, int64_t split, std::optional<uint64_t> concat, int64_t devices) {
  SmallVector<int64_t> result(shape);
  if (result[split] % devices != 0)
    return {};
  result[split] /= devices;
  result[concat.value_or(split)] *= devices;
  return result;
}

// C4, C5: the result's type follows from the contribution's.
LogicalResult verifyResult(t3::TrackAndTriggerOp op, RankedTensorType part, int64_t devices) {
  auto result = cast<RankedTensorType>(op.getResult().getType());
  SmallVector<int64_t> expected(part.getShape());
  int64_t extent = expected[op.getDim()];
  bool gathers = op.getCollective() == t3::Collective::all_gather;
  bool divides = op.getCollective() != t3::Collective::all_reduce && !gathers;
  if (divides && extent % devices != 0)
    return op.emitOpError("(C5) dimension ") << op.getDim() << " of extent " << extent << " does not divide by "
                                             << devices << " devices";
  if (op.getCollective() == t3::Collective::reduce_scatter)
    expected[op.getDim()] = extent / devices;
  if (gathers)
    expected[op.getDim()] = extent * devices;
  if (op.getCollective() == t3::Collective::all_to_all)
    expected = exchanged(expected, op.getDim(), op.getConcat(), devices);
  if (result.getElementType() != part.getElementType() || result.getShape() != ArrayRef<int64_t>(expected))
    return op.emitOpError("(C4) yields ") << part << " on " << devices << " devices, so the result must be "
                                          << RankedTensorType::get(expected, part.getElementType()) << ", not " << result;
  return success();
}

LogicalResult verifyChunks(t3::TrackAndTriggerOp op, ArrayAttr chunks, int64_t devices) {
  SmallVector<uint32_t> words;
  for (Attribute attribute : chunks) {
    auto chunk = cast<t3::ChunkAttr>(attribute);
    words.append({chunk.getRelative(), static_cast<uint32_t>(chunk.getStore()), static_cast<uint32_t>(chunk.getOp()),
                  chunk.getThreshold(), static_cast<uint32_t>(chunk.getTrigger()), chunk.getTo()});
  }
  char message[512];
  size_t length = t3_verify_address_space(words.data(), chunks.size(), static_cast<uint32_t>(op.getCollective()),
                                          static_cast<uint32_t>(devices), message, sizeof message);
  if (length != 0)
    return op.emitOpError("(C6) ") << StringRef(message, length);
  return success();
}

LogicalResult verifyArrivals(t3::ConsumeOp op, ArrayAttr arrivals, int64_t devices) {
  SmallVector<uint32_t> words;
  for (Attribute attribute : arrivals) {
    auto arrival = cast<t3::ArrivalAttr>(attribute);
    words.append({arrival.getRelative(), arrival.getFrom(), static_cast<uint32_t>(arrival.getSends().size())});
    words.append(arrival.getSends().begin(), arrival.getSends().end());
  }
  char message[512];
  size_t length = t3_verify_arrivals(words.data(), words.size(), static_cast<uint32_t>(op.getCollective()),
                                     static_cast<uint32_t>(devices), message, sizeof message);
  if (length != 0)
    return op.emitOpError("(C6) ") << StringRef(message, length);
  return success();
}

} // namespace

LogicalResult t3::TrackAndTriggerOp::verify() {
  Block &block = getBody().front();
  if (block.getNumArguments() != getInputs().size())
    return emitOpError("(C3) has ") << getInputs().size() << " inputs but its block takes " << block.getNumArguments();
  for (auto [index, input, argument] : llvm::enumerate(getInputs(), block.getArguments()))
    if (input.getType() != argument.getType())
      return emitOpError("(C3) passes ") << input.getType() << " as input " << index << " but its block takes "
                                         << argument.getType();
  RankedTensorType part = yielded(block);
  if (!part)
    return emitOpError("(C4) must yield one ranked tensor");
  if (static_cast<int64_t>(getDim()) >= part.getRank())
    return emitOpError("(C1) works along dimension ") << getDim() << " of a tensor of rank " << part.getRank();
  return verifyConcat(*this, part.getRank(), "(C8)");
}

LogicalResult t3::TrackAndTriggerOp::verifySymbolUses(SymbolTableCollection &symbols) {
  FailureOr<int64_t> devices = groupSize(*this, symbols, getGridAttr(), getAxes());
  if (failed(devices))
    return failure();
  RankedTensorType part = yielded(getBody().front());
  if (!part || static_cast<int64_t>(getDim()) >= part.getRank())
    return failure();
  if (failed(verifyResult(*this, part, *devices)))
    return failure();
  if (getChunks() && failed(verifyChunks(*this, *getChunks(), *devices)))
    return failure();
  if (auto block = getBlock()) {
    int64_t chunk = part.getDimSize(getDim()) / *devices;
    if (*block <= 0 || *block > std::max<int64_t>(chunk, 1))
      return emitOpError("(C7) moves blocks of ") << *block << ", which must be between 1 and the chunk's extent " << chunk;
  }
  return success();
}

LogicalResult t3::ConsumeOp::verify() {
  if (getCollective() != t3::Collective::all_gather && getCollective() != t3::Collective::all_to_all)
    return emitOpError("(C1) consumes ") << stringifyCollective(getCollective()) << ", not all_gather or all_to_all";
  Block &block = getBody().front();
  if (getInputs().empty() || block.getNumArguments() != getInputs().size())
    return emitOpError("(C3) has ") << getInputs().size() << " inputs but its block takes " << block.getNumArguments();
  for (auto [index, input, argument] : llvm::enumerate(getInputs(), block.getArguments()))
    if (index > 0 && input.getType() != argument.getType())
      return emitOpError("(C3) passes ") << input.getType() << " as input " << index << " but its block takes "
                                         << argument.getType();
  auto part = cast<RankedTensorType>(getInputs()[0].getType());
  if (static_cast<int64_t>(getDim()) >= part.getRank())
    return emitOpError("(C5) gathers along dimension ") << getDim() << " of a tensor of rank " << part.getRank();
  if (failed(verifyConcat(*this, part.getRank(), "(C5)")))
    return failure();
  if (block.getTerminator()->getOperandTypes() != getResultTypes())
    return emitOpError("(C4) yields other types than its results");
  return success();
}

LogicalResult t3::ConsumeOp::verifySymbolUses(SymbolTableCollection &symbols) {
  FailureOr<int64_t> devices = groupSize(*this, symbols, getGridAttr(), getAxes());
  if (failed(devices))
    return failure();
  auto part = cast<RankedTensorType>(getInputs()[0].getType());
  SmallVector<int64_t> whole(part.getShape());
  if (getCollective() == t3::Collective::all_gather)
    whole[getDim()] *= *devices;
  if (getCollective() == t3::Collective::all_to_all) {
    whole = exchanged(whole, getDim(), getConcat(), *devices);
    if (whole.empty())
      return emitOpError("(C5) dimension ") << getDim() << " of extent " << part.getDimSize(getDim())
                                            << " does not divide by " << *devices << " devices";
  }
  auto expected = RankedTensorType::get(whole, part.getElementType());
  if (getBody().front().getArgument(0).getType() != expected)
    return emitOpError("(C3) gathers ") << part << " on " << *devices << " devices, so its block's first argument must be "
                                        << expected << ", not " << getBody().front().getArgument(0).getType();
  if (getArrivals() && failed(verifyArrivals(*this, *getArrivals(), *devices)))
    return failure();
  if (auto block = getBlock()) {
    int64_t extent = whole[getConcat().value_or(getDim())] / *devices;
    if (*block <= 0 || *block > std::max<int64_t>(extent, 1))
      return emitOpError("(C7) moves blocks of ") << *block << ", which must be between 1 and the part's extent " << extent;
  }
  return success();
}
