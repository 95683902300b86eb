//! The names that a pickle may mention, and what is meant by each.

use crate::error::quoted;
use crate::{Dtype, Error, Result};

/// One allowed name.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) role: Role,
}

/// What a name stands for. None of them runs Python: `calls.rs` has what each of them makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    OrderedDict,
    Set,
    Bytes,
    /// `_codecs.encode`, by which protocols 0 to 2 write bytes.
    Encode,
    BytesIo,
    NumpyReconstruct,
    NumpyFromBuffer,
    NumpyScalar,
    NumpyArray,
    NumpyDtype,
    /// `None`: of bytes.
    TorchStorage(Option<Dtype>),
    TorchDtype(Dtype),
    /// `torch.storage._load_from_bytes`: a file of torch within the pickle.
    TorchStorageOf,
    TorchTensor(Rebuild),
    /// The first argument is the tensor.
    TorchParameter,
    /// A function, a class and the function's arguments.
    TorchFromType,
    TorchSize,
    /// Mentioned as a class, never called.
    Class,
}

/// Which arguments a tensor is given by: version 3 has its dtype among them, the others the storage's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rebuild {
    V1,
    V2,
    V3,
}

const fn global(module: &'static str, name: &'static str, role: Role) -> Global {
    Global { module, name, role }
}

const fn storage(name: &'static str, dtype: Dtype) -> Global {
    global("torch", name, Role::TorchStorage(Some(dtype)))
}

const fn dtype(name: &'static str, dtype: Dtype) -> Global {
    global("torch", name, Role::TorchDtype(dtype))
}

/// `numpy.core` became `numpy._core` with numpy 2; `__builtin__` is what protocols below 3 call `builtins`.
static ALLOWED: &[Global] = &[
    global("collections", "OrderedDict", Role::OrderedDict),
    global("builtins", "set", Role::Set),
    global("__builtin__", "set", Role::Set),
    global("builtins", "frozenset", Role::Set),
    global("__builtin__", "frozenset", Role::Set),
    global("builtins", "bytes", Role::Bytes),
    global("__builtin__", "bytes", Role::Bytes),
    global("builtins", "bytearray", Role::Bytes),
    global("__builtin__", "bytearray", Role::Bytes),
    global("_codecs", "encode", Role::Encode),
    global("_io", "BytesIO", Role::BytesIo),
    global("numpy", "ndarray", Role::NumpyArray),
    global("numpy", "dtype", Role::NumpyDtype),
    global("numpy._core.multiarray", "_reconstruct", Role::NumpyReconstruct),
    global("numpy.core.multiarray", "_reconstruct", Role::NumpyReconstruct),
    global("numpy._core.multiarray", "scalar", Role::NumpyScalar),
    global("numpy.core.multiarray", "scalar", Role::NumpyScalar),
    global("numpy._core.numeric", "_frombuffer", Role::NumpyFromBuffer),
    global("numpy.core.numeric", "_frombuffer", Role::NumpyFromBuffer),
    global("torch._utils", "_rebuild_tensor", Role::TorchTensor(Rebuild::V1)),
    global("torch._utils", "_rebuild_tensor_v2", Role::TorchTensor(Rebuild::V2)),
    global("torch._utils", "_rebuild_tensor_v3", Role::TorchTensor(Rebuild::V3)),
    global("torch._utils", "_rebuild_parameter", Role::TorchParameter),
    global("torch._utils", "_rebuild_parameter_with_state", Role::TorchParameter),
    global("torch._tensor", "_rebuild_from_type_v2", Role::TorchFromType),
    global("torch", "Size", Role::TorchSize),
    global("torch", "Tensor", Role::Class),
    global("torch.nn.parameter", "Parameter", Role::Class),
    global("torch.nn.parameter", "Buffer", Role::Class),
    global("torch.storage", "UntypedStorage", Role::TorchStorage(None)),
    global("torch", "UntypedStorage", Role::TorchStorage(None)),
    global("torch.storage", "_load_from_bytes", Role::TorchStorageOf),
    storage("DoubleStorage", Dtype::F64),
    storage("FloatStorage", Dtype::F32),
    storage("HalfStorage", Dtype::F16),
    storage("BFloat16Storage", Dtype::BF16),
    storage("LongStorage", Dtype::I64),
    storage("IntStorage", Dtype::I32),
    storage("ShortStorage", Dtype::I16),
    storage("CharStorage", Dtype::I8),
    storage("ByteStorage", Dtype::U8),
    storage("BoolStorage", Dtype::Bool),
    dtype("float64", Dtype::F64),
    dtype("float32", Dtype::F32),
    dtype("float16", Dtype::F16),
    dtype("bfloat16", Dtype::BF16),
    dtype("int64", Dtype::I64),
    dtype("int32", Dtype::I32),
    dtype("int16", Dtype::I16),
    dtype("int8", Dtype::I8),
    dtype("uint64", Dtype::U64),
    dtype("uint32", Dtype::U32),
    dtype("uint16", Dtype::U16),
    dtype("uint8", Dtype::U8),
    dtype("bool", Dtype::Bool),
];

/// An allowed name, or the error that tells another one.
pub(crate) fn find(at: usize, module: &str, name: &str) -> Result<&'static Global> {
    let found = ALLOWED.iter().find(|global| global.module == module && global.name == name);
    found.ok_or_else(|| Error::Global { at, name: quoted(&format!("{module}.{name}")) })
}

/// The class of a storage of these elements; newer types have none.
pub(crate) fn storage_of(dtype: Dtype) -> Option<&'static Global> {
    ALLOWED.iter().find(|global| global.role == Role::TorchStorage(Some(dtype)))
}

/// The name of torch for a type.
pub(crate) fn dtype_of(dtype: Dtype) -> &'static Global {
    let found = ALLOWED.iter().find(|global| global.role == Role::TorchDtype(dtype));
    found.expect("the table has a name for each type")
}

impl std::fmt::Display for Global {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}
