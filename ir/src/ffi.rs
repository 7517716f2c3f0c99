//! The raw MLIR calls that melior does not wrap, and the shims of `dialect/Shim.cpp`, as safe functions.

use std::{cell::RefCell, collections::HashMap, ffi::c_void};

use melior::{
    StringRef,
    dialect::{DialectHandle, DialectRegistry},
    ir::{
        Attribute, BlockLike, Location, Module, Operation, OperationRef, Type, TypeLike, Value, ValueLike,
        attribute::AttributeLike,
    },
    pass::{Pass, PassManager},
};
use t3c_schedule::{Arrival, Chunk, Element, ffi as words};

use crate::{Blk, Op, Val};

unsafe extern "C" {
    fn mlirGetDialectHandle__t3__() -> mlir_sys::MlirDialectHandle;
    fn t3RegisterPass(
        argument: mlir_sys::MlirStringRef,
        description: mlir_sys::MlirStringRef,
        make: unsafe extern "C" fn(*mut c_void, mlir_sys::MlirStringRef) -> mlir_sys::MlirPass,
        user: *mut c_void,
    );
    fn t3Emit(severity: u32, location: mlir_sys::MlirLocation, message: mlir_sys::MlirStringRef);
    fn t3ParseModule(
        context: mlir_sys::MlirContext,
        source: mlir_sys::MlirStringRef,
        name: mlir_sys::MlirStringRef,
    ) -> mlir_sys::MlirModule;
    fn t3EnableCrashReproducer(
        manager: mlir_sys::MlirPassManager,
        file: mlir_sys::MlirStringRef,
        local: bool,
    );
    fn t3ParseReproducer(
        context: mlir_sys::MlirContext,
        source: mlir_sys::MlirStringRef,
        name: mlir_sys::MlirStringRef,
        manager: mlir_sys::MlirPassManager,
    ) -> mlir_sys::MlirModule;
    fn t3ChunkAttrGet(context: mlir_sys::MlirContext, words: *const u32) -> mlir_sys::MlirAttribute;
    fn t3ArrivalAttrGet(
        context: mlir_sys::MlirContext,
        words: *const u32,
        count: usize,
    ) -> mlir_sys::MlirAttribute;
    fn t3ArrivalAttrWords(attribute: mlir_sys::MlirAttribute, words: *mut u32, capacity: usize) -> usize;
    fn t3ChunkAttrWords(attribute: mlir_sys::MlirAttribute, words: *mut u32) -> bool;
}

/// Adds the t3 dialect to `registry`.
pub(crate) fn insert_t3(registry: &DialectRegistry) {
    // SAFETY: the handle is a static of the dialect's library.
    let handle = unsafe { DialectHandle::from_raw(mlirGetDialectHandle__t3__()) };
    handle.insert_dialect(registry);
}

/// Parses a module, with `name` as the file of its locations. Diagnostics go to the context's handler.
pub(crate) fn parse_module<'c>(context: &'c melior::Context, source: &str, name: &str) -> Option<Module<'c>> {
    // SAFETY: the strings outlive the call, and a null module is not wrapped.
    unsafe {
        let raw =
            t3ParseModule(context.to_raw(), StringRef::new(source).to_raw(), StringRef::new(name).to_raw());
        (!raw.ptr.is_null()).then(|| Module::from_raw(raw))
    }
}

/// Parses a reproducer and gives its pipeline to `manager`.
pub(crate) fn parse_reproducer<'c>(
    context: &'c melior::Context,
    source: &str,
    name: &str,
    manager: &PassManager<'c>,
) -> Option<Module<'c>> {
    // SAFETY: the strings and the manager outlive the call, and a null module is not wrapped.
    unsafe {
        let (source, name) = (StringRef::new(source), StringRef::new(name));
        let raw = t3ParseReproducer(context.to_raw(), source.to_raw(), name.to_raw(), manager.to_raw());
        (!raw.ptr.is_null()).then(|| Module::from_raw(raw))
    }
}

/// Makes a failing or crashing run write the module and the pipeline to `file`; with `local`, the failing pass alone
/// and the module before it.
pub fn enable_crash_reproducer(manager: &PassManager<'_>, file: &str, local: bool) {
    // SAFETY: MLIR copies the name.
    unsafe { t3EnableCrashReproducer(manager.to_raw(), StringRef::new(file).to_raw(), local) }
}

/// Makes the manager print on standard error, when it is dropped, how long each pass took.
pub fn enable_timing(manager: &PassManager<'_>) {
    // SAFETY: the manager is live.
    unsafe { mlir_sys::mlirPassManagerEnableTiming(manager.to_raw()) }
}

/// Every (user, operand number) of `value`, in no particular order.
pub fn uses<'c, 'a>(value: Val<'c, 'a>) -> Vec<(Op<'c, 'a>, usize)> {
    let mut found = Vec::new();
    // SAFETY: the use list belongs to `value`, which borrows live IR for 'a; nothing is mutated here.
    unsafe {
        let mut operand = mlir_sys::mlirValueGetFirstUse(value.to_raw());
        while !mlir_sys::mlirOpOperandIsNull(operand) {
            let owner = OperationRef::from_raw(mlir_sys::mlirOpOperandGetOwner(operand));
            found.push((owner, mlir_sys::mlirOpOperandGetOperandNumber(operand) as usize));
            operand = mlir_sys::mlirOpOperandGetNextUse(operand);
        }
    }
    found
}

/// Makes every use of `old` a use of `new`.
pub fn replace_all_uses<'c, 'a>(old: Val<'c, 'a>, new: Val<'c, 'a>) {
    // SAFETY: both values borrow live IR of one context.
    unsafe { mlir_sys::mlirValueReplaceAllUsesOfWith(old.to_raw(), new.to_raw()) }
}

/// Makes every use of `old` a use of `new`, except those in `except`.
pub fn replace_all_uses_except<'c, 'a>(old: Val<'c, 'a>, new: Val<'c, 'a>, except: &[Op<'c, 'a>]) {
    for (user, number) in uses(old) {
        if !except.iter().any(|op| same_op(*op, user)) {
            set_operand(user, number, new);
        }
    }
}

/// Sets one operand of an operation.
pub fn set_operand<'c, 'a>(operation: Op<'c, 'a>, number: usize, value: Val<'c, 'a>) {
    // SAFETY: both borrow live IR; `number` is checked by the C API's operand storage only in debug builds of
    // MLIR, so it is checked here.
    unsafe {
        if (number as isize) < mlir_sys::mlirOperationGetNumOperands(operation.to_raw()) {
            mlir_sys::mlirOperationSetOperand(operation.to_raw(), number as isize, value.to_raw());
        }
    }
}

/// Sets an attribute, inherent or discardable.
pub fn set_attribute<'c>(operation: Op<'c, '_>, name: &str, value: Attribute<'c>) {
    // SAFETY: the operation borrows live IR, and the attribute lives as long as the context.
    unsafe {
        mlir_sys::mlirOperationSetAttributeByName(
            operation.to_raw(),
            StringRef::new(name).to_raw(),
            value.to_raw(),
        );
    }
}

/// Removes an attribute if it is there.
pub fn remove_attribute(operation: Op<'_, '_>, name: &str) {
    // SAFETY: the operation borrows live IR.
    unsafe {
        mlir_sys::mlirOperationRemoveAttributeByName(operation.to_raw(), StringRef::new(name).to_raw());
    }
}

/// Changes a value's type in place. The caller keeps its uses consistent.
pub fn set_type<'c>(value: Val<'c, '_>, r#type: Type<'c>) {
    // SAFETY: the value borrows live IR, and the type lives as long as the context.
    unsafe { mlir_sys::mlirValueSetType(value.to_raw(), r#type.to_raw()) }
}

/// Erases an operation that has no users left. Handles to it and to what it contains must not be used again.
pub fn erase(operation: Op<'_, '_>) {
    // SAFETY: the operation is live; the caller's contract covers handles that remain.
    unsafe { mlir_sys::mlirOperationDestroy(operation.to_raw()) }
}

/// Moves `operation` to just before `other`.
pub fn move_before<'c, 'a>(operation: Op<'c, 'a>, other: Op<'c, 'a>) {
    // SAFETY: both are live operations of one context.
    unsafe { mlir_sys::mlirOperationMoveBefore(operation.to_raw(), other.to_raw()) }
}

/// A copy of `operation`, with its regions, that sits nowhere yet. Operands are those of the original.
pub fn clone<'c>(operation: Op<'c, '_>) -> Operation<'c> {
    // SAFETY: the clone is a fresh operation owned by the returned wrapper.
    unsafe { Operation::from_raw(mlir_sys::mlirOperationClone(operation.to_raw())) }
}

/// Whether both handles denote one operation.
pub fn same_op(a: Op<'_, '_>, b: Op<'_, '_>) -> bool {
    a.to_raw().ptr == b.to_raw().ptr
}

/// A key by which an operation can stand in a map while it lives.
pub fn op_key(operation: Op<'_, '_>) -> usize {
    operation.to_raw().ptr as usize
}

/// A key by which a value can stand in a map while it lives.
pub fn value_key(value: Val<'_, '_>) -> usize {
    value.to_raw().ptr as usize
}

/// The context in which an operation lives.
pub fn context_of<'c>(operation: Op<'c, '_>) -> &'c melior::Context {
    thread_local! {
        // melior's reference points at the handle and not at what the handle denotes, so each context's handle
        // needs a place that outlives every borrow of it: one word a context, kept for good.
        static HANDLES: RefCell<HashMap<usize, &'static melior::ContextRef<'static>>> = RefCell::default();
    }
    // SAFETY: every live operation has a context.
    let raw = unsafe { mlir_sys::mlirOperationGetContext(operation.to_raw()) };
    let kept: &'static melior::ContextRef<'static> = HANDLES.with_borrow_mut(|handles| {
        *handles.entry(raw.ptr as usize).or_insert_with(|| {
            // SAFETY: only the handle's lifetime is widened; it is given out again for at most 'c below.
            Box::leak(Box::new(unsafe { melior::ContextRef::from_raw(raw) }))
        })
    });
    // SAFETY: the handle is at a fixed address, and an operation's context outlives it, for 'c.
    unsafe { kept.to_ref() }
}

/// The operation that contains `operation`.
pub fn parent<'c, 'a>(operation: Op<'c, 'a>) -> Option<Op<'c, 'a>> {
    // SAFETY: a null parent is not wrapped.
    unsafe { OperationRef::from_option_raw(mlir_sys::mlirOperationGetParentOperation(operation.to_raw())) }
}

/// The operation that owns a block, such as the function of its entry block.
pub fn block_parent<'c, 'a>(block: Blk<'c, 'a>) -> Option<Op<'c, 'a>> {
    // SAFETY: a null parent is not wrapped.
    unsafe { OperationRef::from_option_raw(mlir_sys::mlirBlockGetParentOperation(block.to_raw())) }
}

/// Removes argument `index` of a block; it must have no uses.
pub fn erase_block_argument(block: Blk<'_, '_>, index: usize) {
    if index < block.argument_count() {
        // SAFETY: the index was checked and the block is live.
        unsafe { mlir_sys::mlirBlockEraseArgument(block.to_raw(), index as u32) }
    }
}

/// Sends a diagnostic to the context's handler.
pub fn emit(severity: crate::Severity, location: Location<'_>, message: &str) {
    // SAFETY: the string outlives the call.
    unsafe { t3Emit(severity as u32, location.to_raw(), StringRef::new(message).to_raw()) }
}

/// A chunk as an attribute.
pub fn chunk_attribute<'c>(context: &'c melior::Context, chunk: &Chunk) -> Attribute<'c> {
    let chunk = words::chunk_to_words(chunk);
    // SAFETY: six words are passed, as the shim reads.
    unsafe { Attribute::from_raw(t3ChunkAttrGet(context.to_raw(), chunk.as_ptr())) }
}

/// The chunk of a `#t3.chunk` attribute, or `None` for any other.
pub fn chunk_of(attribute: Attribute<'_>) -> Option<Chunk> {
    let mut chunk = [0; words::WORDS];
    // SAFETY: the shim writes six words.
    unsafe { t3ChunkAttrWords(attribute.to_raw(), chunk.as_mut_ptr()) }
        .then(|| words::chunk_from_words(chunk))
        .flatten()
}

/// An arrival as an attribute.
pub fn arrival_attribute<'c>(context: &'c melior::Context, arrival: &Arrival) -> Attribute<'c> {
    let mut words = vec![arrival.relative, arrival.from];
    words.extend(&arrival.sends);
    // SAFETY: the count is that of the words, at least two, as the shim reads.
    unsafe { Attribute::from_raw(t3ArrivalAttrGet(context.to_raw(), words.as_ptr(), words.len())) }
}

/// The arrival of a `#t3.arrival` attribute, or `None` for any other.
pub fn arrival_of(attribute: Attribute<'_>) -> Option<Arrival> {
    // SAFETY: with no capacity nothing is written.
    let count = unsafe { t3ArrivalAttrWords(attribute.to_raw(), std::ptr::null_mut(), 0) };
    let mut words = vec![0; count];
    // SAFETY: the shim writes at most `count` words.
    unsafe { t3ArrivalAttrWords(attribute.to_raw(), words.as_mut_ptr(), count) };
    match words[..] {
        [relative, from, ref sends @ ..] => Some(Arrival { relative, from, sends: sends.to_vec() }),
        _ => None,
    }
}

/// The element of a floating-point type that we have, or `None` for any other type.
pub fn float_of(r#type: Type<'_>) -> Option<Element> {
    let raw = r#type.to_raw();
    // SAFETY: the predicates only read the type, which its lifetime keeps alive.
    let is = |predicate: unsafe extern "C" fn(mlir_sys::MlirType) -> bool| unsafe { predicate(raw) };
    match () {
        () if is(mlir_sys::mlirTypeIsAF32) => Some(Element::F32),
        () if is(mlir_sys::mlirTypeIsAF64) => Some(Element::F64),
        () if is(mlir_sys::mlirTypeIsABF16) => Some(Element::Bf16),
        () if is(mlir_sys::mlirTypeIsAF16) => Some(Element::F16),
        () => None,
    }
}

/// The affine map of an affine-map attribute, or `None` for any other.
pub fn affine_map_of<'c>(attribute: Attribute<'c>) -> Option<melior::ir::AffineMap<'c>> {
    // SAFETY: the value is read only from an affine-map attribute.
    unsafe {
        mlir_sys::mlirAttributeIsAAffineMap(attribute.to_raw())
            .then(|| melior::ir::AffineMap::from_raw(mlir_sys::mlirAffineMapAttrGetValue(attribute.to_raw())))
    }
}

/// The indexing maps of a structured operation, named or generic; `None` for any other.
pub fn linalg_maps<'c>(operation: Op<'c, '_>) -> Option<Attribute<'c>> {
    // SAFETY: the C function returns a null attribute for what is no structured operation; only others are wrapped.
    unsafe {
        let raw = mlir_sys::mlirLinalgGetIndexingMapsAttribute(operation.to_raw());
        (!raw.ptr.is_null()).then(|| Attribute::from_raw(raw))
    }
}

/// An affine map as an attribute.
pub fn affine_map_attribute<'c>(map: melior::ir::AffineMap<'c>) -> Attribute<'c> {
    // SAFETY: the attribute lives as long as the map's context.
    unsafe { Attribute::from_raw(mlir_sys::mlirAffineMapAttrGet(map.to_raw())) }
}

/// An array attribute of 16-bit integers (the `grid_axes` of `shard` collectives).
pub fn i16_array<'c>(context: &'c melior::Context, values: &[i16]) -> Attribute<'c> {
    // SAFETY: the C API copies `values`.
    unsafe {
        Attribute::from_raw(mlir_sys::mlirDenseI16ArrayGet(
            context.to_raw(),
            values.len() as isize,
            values.as_ptr(),
        ))
    }
}

/// The values of a 16-bit array attribute, or `None` for any other.
pub fn i16_array_values(attribute: Attribute<'_>) -> Option<Vec<i16>> {
    // SAFETY: elements are read only from a 16-bit array, below its length.
    unsafe {
        let raw = attribute.to_raw();
        mlir_sys::mlirAttributeIsADenseI16Array(raw).then(|| {
            let length = mlir_sys::mlirDenseArrayGetNumElements(raw);
            (0..length).map(|index| mlir_sys::mlirDenseI16ArrayGetElement(raw, index)).collect()
        })
    }
}

/// What a registered pass is made by: from the raw text of its options, or `None` to reject them.
pub type MakePass = fn(options: &str) -> Option<Pass>;

/// Registers a pass under a textual name for every context of the process. Registering a name twice is an
/// error in MLIR: do it once (`std::sync::Once`).
pub fn register_pass(name: &str, description: &str, make: MakePass) {
    unsafe extern "C" fn trampoline(
        user: *mut c_void,
        options: mlir_sys::MlirStringRef,
    ) -> mlir_sys::MlirPass {
        // SAFETY: `user` is the function pointer that was registered.
        let make: MakePass = unsafe { std::mem::transmute::<*mut c_void, MakePass>(user) };
        let options = if options.data.is_null() || options.length == 0 {
            ""
        } else {
            // SAFETY: MLIR passes a valid byte range for the duration of the call.
            let bytes = unsafe { std::slice::from_raw_parts(options.data.cast::<u8>(), options.length) };
            std::str::from_utf8(bytes).unwrap_or("")
        };
        let options = options.trim().trim_start_matches('{').trim_end_matches('}');
        match std::panic::catch_unwind(|| make(options)) {
            Ok(Some(pass)) => pass.to_raw(),
            _ => mlir_sys::MlirPass { ptr: std::ptr::null_mut() },
        }
    }
    // SAFETY: MLIR copies both strings; the function pointer is 'static.
    unsafe {
        t3RegisterPass(
            StringRef::new(name).to_raw(),
            StringRef::new(description).to_raw(),
            trampoline,
            make as *mut c_void,
        );
    }
}

/// A dense resource-free constant of raw little-endian bytes.
pub fn dense_from_bytes<'c>(r#type: Type<'c>, bytes: &[u8]) -> Attribute<'c> {
    // SAFETY: the C API copies `bytes` and checks the length against the type.
    unsafe {
        Attribute::from_raw(mlir_sys::mlirDenseElementsAttrRawBufferGet(
            r#type.to_raw(),
            bytes.len(),
            bytes.as_ptr().cast(),
        ))
    }
}

/// The raw little-endian bytes of a dense constant and whether it is a splat, or `None` for any other attribute.
pub fn dense_bytes(attribute: Attribute<'_>, element_bytes: usize) -> Option<(Vec<u8>, bool)> {
    // SAFETY: the data is read only from a dense constant, for the length that its type implies.
    unsafe {
        let raw = attribute.to_raw();
        if !mlir_sys::mlirAttributeIsADenseElements(raw) {
            return None;
        }
        let splat = mlir_sys::mlirDenseElementsAttrIsSplat(raw);
        let count = if splat { 1 } else { mlir_sys::mlirElementsAttrGetNumElements(raw) as usize };
        let data = mlir_sys::mlirDenseElementsAttrGetRawData(raw).cast::<u8>();
        (!data.is_null()).then(|| (std::slice::from_raw_parts(data, count * element_bytes).to_vec(), splat))
    }
}

/// The value as a melior value of the caller's lifetimes, for values kept in maps by pointer.
pub fn value_owner<'c, 'a>(value: Value<'c, 'a>) -> Option<Op<'c, 'a>> {
    melior::ir::operation::OperationResult::try_from(value).ok().map(|result| result.owner())
}

/// The operation that makes a value, or whose block it is an argument of.
pub fn value_home<'c, 'a>(value: Value<'c, 'a>) -> Option<Op<'c, 'a>> {
    value_owner(value).or_else(|| {
        let argument = melior::ir::block::BlockArgument::try_from(value).ok()?;
        // SAFETY: the argument's block is live, and a null parent is not wrapped.
        unsafe {
            let parent = mlir_sys::mlirBlockGetParentOperation(argument.owner().to_raw());
            (!parent.ptr.is_null()).then(|| OperationRef::from_raw(parent))
        }
    })
}

/// The same value under a shorter lifetime: for operands of operations that are still being built.
pub fn shorten<'c, 'b>(value: Val<'c, '_>) -> Val<'c, 'b> {
    // SAFETY: the handle is a plain pointer; the caller builds an operation that dies before the value does.
    unsafe { Value::from_raw(value.to_raw()) }
}

/// Appends a deep copy of `operation` to `block`, of the same or another module of the context, and returns it.
pub fn clone_into<'c, 'a, 'b>(operation: Op<'c, 'a>, block: Blk<'c, 'b>) -> Op<'c, 'b> {
    // SAFETY: the clone is a fresh operation; the block takes ownership of it.
    unsafe {
        let copy = mlir_sys::mlirOperationClone(operation.to_raw());
        mlir_sys::mlirBlockAppendOwnedOperation(block.to_raw(), copy);
        OperationRef::from_raw(copy)
    }
}

/// Several locations as one; one alone stays as it is.
pub fn fused_location<'c>(context: &'c melior::Context, locations: &[Location<'c>]) -> Location<'c> {
    let raw: Vec<_> = locations.iter().map(|location| location.to_raw()).collect();
    // SAFETY: the locations are live ones of `context`; a null attribute means no metadata.
    unsafe {
        Location::from_raw(mlir_sys::mlirLocationFusedGet(
            context.to_raw(),
            raw.len() as isize,
            raw.as_ptr(),
            mlir_sys::mlirAttributeGetNull(),
        ))
    }
}
