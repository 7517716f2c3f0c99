#ifndef T3_BASE
#define T3_BASE

include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/OpBase.td"

def T3_Dialect : Dialect {
  let name = "t3";
  let summary = "Producers and collectives as one tracked, triggered operation";
  let description = [{
    The vocabulary of track-and-trigger (T3, arXiv 2401.16677). A producer's output address space is
    configured so that its stores land where the collective wants them; a tracker counts the updates
    of each block; the update that meets the threshold triggers the next transfer.

    Devices, grids and plain collectives are those of the upstream `shard` dialect. On a group of `N`
    devices, `+k` is the device `k` places further along the group, modulo `N`.
  }];
  let cppNamespace = "::t3";
  let useDefaultAttributePrinterParser = 1;
}

class T3_Enum<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::t3";
  let genSpecializedAttr = 0;
}

def T3_Collective : T3_Enum<"Collective", "the collective that follows or precedes", [
  I32EnumAttrCase<"reduce_scatter", 0>, I32EnumAttrCase<"all_gather", 1>, I32EnumAttrCase<"all_reduce", 2>,
  I32EnumAttrCase<"all_to_all", 3>]>;
def T3_CollectiveAttr : EnumAttr<T3_Dialect, T3_Collective, "collective">;

def T3_Store : T3_Enum<"Store", "where the producer's stores land", [
  I32EnumAttrCase<"local", 0>, I32EnumAttrCase<"remote", 1>]>;
def T3_UpdateOp : T3_Enum<"UpdateOp", "what a store does at its destination", [
  I32EnumAttrCase<"store", 0>, I32EnumAttrCase<"update", 1>]>;
def T3_Trigger : T3_Enum<"Trigger", "what meeting the threshold sets off", [
  I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"dma", 1>, I32EnumAttrCase<"reduce", 2>, I32EnumAttrCase<"done", 3>]>;

def T3_ChunkAttr : AttrDef<T3_Dialect, "Chunk"> {
  let mnemonic = "chunk";
  let summary = "one chunk of a producer's output address space";
  let description = [{
    `relative`: the chunk's index is `(d + relative) mod N` on device `d`. `store` and `op`: where the
    producer's stores land and what they do there. `threshold`: updates an element that the tracker
    expects, 0 when the chunk is not tracked here. `trigger`: what the last of them sets off. `to`: the
    distance `+k` of a remote store or of a DMA.

    ```mlir
    #t3.chunk<relative = 2, store = local, op = update, threshold = 2, trigger = dma, to = 3>
    ```
  }];
  let parameters = (ins "uint32_t":$relative, EnumParameter<T3_Store>:$store, EnumParameter<T3_UpdateOp>:$op,
    "uint32_t":$threshold, EnumParameter<T3_Trigger>:$trigger, DefaultValuedParameter<"uint32_t", "0">:$to);
  let assemblyFormat = "`<` struct(params) `>`";
}
def T3_ArrivalAttr : AttrDef<T3_Dialect, "Arrival"> {
  let mnemonic = "arrival";
  let summary = "one part of a gathered value as it reaches a device";
  let description = [{
    `relative`: the part is that of device `(d + relative) mod N`. `from`: the distance `+k` of the device that
    sends it here, 0 for the own part. `sends`: the distances to which it goes on once it is here; for the own
    entry of an all-to-all, where the operand's other pieces go.

    ```mlir
    #t3.arrival<relative = 1, from = 1, sends = [3]>
    ```
  }];
  let parameters = (ins "uint32_t":$relative, "uint32_t":$from, OptionalArrayRefParameter<"uint32_t">:$sends);
  let assemblyFormat = "`<` `relative` `=` $relative `,` `from` `=` $from (`,` `sends` `=` `[` $sends^ `]`)? `>`";
}
def T3_ArrivalArrayAttr : TypedArrayAttrBase<T3_ArrivalAttr, "parts in the order in which readers use them">;
def T3_ChunkArrayAttr : TypedArrayAttrBase<T3_ChunkAttr, "chunks in production order">;

class T3_Op<string mnemonic, list<Trait> traits = []> : Op<T3_Dialect, mnemonic, traits>;

#endif
