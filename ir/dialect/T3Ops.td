#ifndef T3_OPS
#define T3_OPS

include "T3Base.td"
include "mlir/IR/BuiltinAttributes.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def T3_TrackAndTriggerOp : T3_Op<"track_and_trigger", [
    IsolatedFromAbove, SingleBlockImplicitTerminator<"::t3::YieldOp">, RecursiveMemoryEffects,
    DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "a producer whose stores are the collective's first transfer";
  let description = [{
    Runs the region once on every device of the group; the value it yields is the device's contribution.
    The collective combines the contributions while they are still being produced.

    | collective       | before                      | after, on device `d`                                  |
    |------------------|-----------------------------|-------------------------------------------------------|
    | `reduce_scatter` | every device a partial sum  | chunk `d` along `dim` of the sum, in ring order       |
    | `all_reduce`     | every device a partial sum  | the whole sum                                         |
    | `all_gather`     | every device a chunk        | all chunks along `dim`                                |
    | `all_to_all`     | every device `N` pieces     | piece `d` of every device, split along `dim`, laid along `concat` (or `dim`) |

    Without `chunks` the op is not configured yet and means the same.

    Constraints:
    - (C1) `dim` is a dimension of the yielded value.
    - (C2) `grid` names a `shard.grid`; `axes` are distinct axes of it, at least one.
    - (C3) The block's arguments have the types of the inputs.
    - (C4) The terminator yields one tensor, whose shape and the result's agree with the collective.
    - (C5) The scattered (gathered, exchanged) dimension divides by the number of devices of the group.
    - (C6) `chunks`, where present, has one entry a device and is a well-formed address space: each
      chunk once, one owner, thresholds equal to the updates that the map implies, a ring that closes.
    - (C7) `block`, where present, is positive and at most the chunk's extent.
    - (C8) `concat` is a dimension of the yielded value, and only an `all_to_all` has it.

    ```mlir
    %s = t3.track_and_trigger reduce_scatter on @grid axes = [0] dim = 0
        (%x, %w) : (tensor<8x4xf32>, tensor<4x6xf32>) -> tensor<4x6xf32> {
    ^bb0(%a: tensor<8x4xf32>, %b: tensor<4x6xf32>):
      %zero = arith.constant dense<0.0> : tensor<8x6xf32>
      %p = linalg.matmul ins(%a, %b : tensor<8x4xf32>, tensor<4x6xf32>) outs(%zero : tensor<8x6xf32>) -> tensor<8x6xf32>
      t3.yield %p : tensor<8x6xf32>
    }
    ```
  }];
  let arguments = (ins Variadic<AnyRankedTensor>:$inputs, T3_CollectiveAttr:$collective,
    FlatSymbolRefAttr:$grid, DenseI64ArrayAttr:$axes, ConfinedAttr<I64Attr, [IntNonNegative]>:$dim,
    OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$concat,
    OptionalAttr<T3_ChunkArrayAttr>:$chunks, OptionalAttr<I64Attr>:$block);
  let results = (outs AnyRankedTensor:$result);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $collective `on` $grid `axes` `=` $axes `dim` `=` $dim (`concat` `=` $concat^)? (`chunks` `=` $chunks^)? (`block` `=` $block^)?
    `(` $inputs `)` attr-dict-with-keyword `:` functional-type($inputs, $result) $body
  }];
  let hasVerifier = 1;
}

def T3_ConsumeOp : T3_Op<"consume", [
    IsolatedFromAbove, SingleBlockImplicitTerminator<"::t3::YieldOp">, RecursiveMemoryEffects,
    DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "all readers of one gather, using its parts as they arrive";
  let description = [{
    The first input is the device's part; the region's first argument is the whole value. The region holds
    every reader (Q, K and V, or gate and up), with the elementwise work and norms between.

    Constraints:
    - (C1) `collective` is `all_gather` or `all_to_all`.
    - (C2) `grid` names a `shard.grid`; `axes` are distinct axes of it, at least one.
    - (C3) The first block argument is the gathered first input along `dim`; the others have the types
      of the other inputs.
    - (C4) The terminator yields the types of the results.
    - (C5) `dim` is a dimension of the first input; so is `concat`, which only an `all_to_all` has.
    - (C6) `arrivals`, where present, has one entry a device and performs the collective: each part once, from a
      device that has it and sends it, the own part first.
    - (C7) `block`, where present, is positive and at most the extent of a part.

    An `all_to_all` is split along `dim` and laid along `concat` (or `dim`).

    ```mlir
    %q = t3.consume all_gather on @grid axes = [0] dim = 0
        (%x, %w) : (tensor<4x4xf32>, tensor<4x6xf32>) -> (tensor<8x6xf32>) {
    ^bb0(%a: tensor<8x4xf32>, %b: tensor<4x6xf32>):
      %zero = arith.constant dense<0.0> : tensor<8x6xf32>
      %p = linalg.matmul ins(%a, %b : tensor<8x4xf32>, tensor<4x6xf32>) outs(%zero : tensor<8x6xf32>) -> tensor<8x6xf32>
      t3.yield %p : tensor<8x6xf32>
    }
    ```
  }];
  let arguments = (ins Variadic<AnyRankedTensor>:$inputs, T3_CollectiveAttr:$collective,
    FlatSymbolRefAttr:$grid, DenseI64ArrayAttr:$axes, ConfinedAttr<I64Attr, [IntNonNegative]>:$dim,
    OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$concat,
    OptionalAttr<T3_ArrivalArrayAttr>:$arrivals, OptionalAttr<I64Attr>:$block);
  let results = (outs Variadic<AnyRankedTensor>:$outputs);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $collective `on` $grid `axes` `=` $axes `dim` `=` $dim (`concat` `=` $concat^)?
    (`arrivals` `=` $arrivals^)? (`block` `=` $block^)?
    `(` $inputs `)` attr-dict-with-keyword `:` functional-type($inputs, $outputs) $body
  }];
  let hasVerifier = 1;
}

def T3_YieldOp : T3_Op<"yield", [Pure, Terminator, ParentOneOf<["TrackAndTriggerOp", "ConsumeOp"]>]> {
  let summary = "ends the region of a t3 op";
  let description = "Yields the contribution of `t3.track_and_trigger`, or the results of `t3.consume`.";
  let arguments = (ins Variadic<AnyType>:$values);
  let builders = [OpBuilder<(ins), [{ /* an empty yield */ }]>];
  let assemblyFormat = "($values^ `:` type($values))? attr-dict";
}

#endif
