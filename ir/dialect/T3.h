// The t3 dialect's C++ classes, as generated from T3Base.td and T3Ops.td.
#pragma once

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/DialectImplementation.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "T3Dialect.h.inc"
#include "T3Enums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "T3Attrs.h.inc"
#define GET_OP_CLASSES
#include "T3Ops.h.inc"
