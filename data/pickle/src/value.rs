//! What a pickle holds, as plain data.

use std::sync::Arc;

use crate::strides::{elements, gather, reach};

/// A value. Bytes are shared where the pickle refers to them twice; containers are copied.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Arc<[u8]>),
    Str(Arc<str>),
    /// A list or a set.
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// Pairs in the order of the file. Of two equal keys the later one counts ([`Value::get`]).
    Dict(Vec<(Value, Value)>),
    Array(Arc<Array>),
    Tensor(Arc<Tensor>),
    Storage(Arc<Storage>),
    /// An element type of numpy by itself.
    Dtype(Dtype),
    /// Module and name of an allowed function or class that is only mentioned, such as `torch.float32`.
    Global(&'static str, &'static str),
}

/// A numpy array: row-major, little-endian, exactly as many bytes as its shape needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Arc<[u8]>,
}

/// A torch tensor, as a view of a storage that lies elsewhere. `offset`, `shape` and `strides` count elements; all
/// that the view reaches lies within the elements which the storage claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub storage: Arc<Storage>,
    pub dtype: Dtype,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a pickle says of a storage. Whether one beside the pickle is there, and as long, the container's reader has to
/// check.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Name of the container's entry.
    pub key: Arc<str>,
    /// `None` if the storage is untyped: `elements` are bytes.
    pub dtype: Option<Dtype>,
    pub elements: usize,
    /// Its bytes from a place on, to the end, where the pickle itself holds them ([`Storage::bytes`]).
    pub(crate) contents: Option<(Arc<[u8]>, usize)>,
}

/// Type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    BF16,
    F32,
    F64,
}

impl Value {
    /// What it is, with its article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bytes(_) => "bytes",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dictionary",
            Value::Array(_) => "an array",
            Value::Tensor(_) => "a tensor",
            Value::Storage(_) => "a storage",
            Value::Dtype(_) => "a dtype",
            Value::Global(..) => "the name of a class or function",
        }
    }

    /// A string; also bytes that are one (Python 2 does not tell them apart).
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            Value::Bytes(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The items of a list or tuple.
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) | Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The value of a dictionary under a string.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(pairs) = self else { return None };
        pairs.iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }
}

impl Array {
    /// Row-major values, rounded to f32.
    pub fn f32s(&self) -> Vec<f32> {
        self.dtype.f32s(&self.bytes)
    }

    /// Row-major integers; `None` for floats, or if one is beyond i64.
    pub fn i64s(&self) -> Option<Vec<i64>> {
        self.dtype.i64s(&self.bytes)
    }
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        elements(&self.shape).unwrap_or(usize::MAX)
    }

    /// The bytes of the elements in row-major order, from those of its storage; `None` if these are too few.
    pub fn row_major(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let size = self.dtype.size();
        let end = reach(self.offset, &self.shape, &self.strides).filter(|end| *end <= storage.len() / size)?;
        Some(gather(&storage[self.offset * size..end * size], size, &self.shape, &self.strides, false))
    }
}

impl Storage {
    /// The bytes of its elements, where the pickle itself holds them: a tensor that was pickled without `torch.save`.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.contents.as_ref().map(|(bytes, start)| &bytes[*start..])
    }
}

impl Dtype {
    pub const ALL: [Dtype; 13] = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::I8,
        Dtype::U16,
        Dtype::I16,
        Dtype::U32,
        Dtype::I32,
        Dtype::U64,
        Dtype::I64,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F32,
        Dtype::F64,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Little-endian elements as f32, rounded; a rest that is no whole element is left out.
    pub fn f32s(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Dtype::F16 => numbers(bytes, |b| f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => numbers(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Dtype::F32 => numbers(bytes, f32::from_le_bytes),
            Dtype::F64 => numbers(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::U64 => numbers(bytes, |b| u64::from_le_bytes(b) as f32),
            _ => self.i64s(bytes).unwrap_or_default().into_iter().map(|value| value as f32).collect(),
        }
    }

    /// Little-endian elements as i64; `None` for floats, or if one is beyond i64.
    pub fn i64s(self, bytes: &[u8]) -> Option<Vec<i64>> {
        Some(match self {
            Dtype::Bool => numbers(bytes, |[b]| i64::from(b != 0)),
            Dtype::U8 => numbers(bytes, |[b]| i64::from(b)),
            Dtype::I8 => numbers(bytes, |b| i64::from(i8::from_le_bytes(b))),
            Dtype::U16 => numbers(bytes, |b| i64::from(u16::from_le_bytes(b))),
            Dtype::I16 => numbers(bytes, |b| i64::from(i16::from_le_bytes(b))),
            Dtype::U32 => numbers(bytes, |b| i64::from(u32::from_le_bytes(b))),
            Dtype::I32 => numbers(bytes, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::I64 => numbers(bytes, i64::from_le_bytes),
            Dtype::U64 => {
                return bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b).try_into().ok()).collect();
            }
            Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => return None,
        })
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
}

fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, bits >> 10 & 31, bits & 1023);
    let size = match exponent {
        0 => f32::from(fraction) * (0.5f32).powi(24),
        // f32's exponent counts from 127, f16's from 15; its highest means infinite or no number in both.
        31 => f32::from_bits(0xFF << 23 | u32::from(fraction) << 13),
        _ => f32::from_bits((u32::from(exponent) + 112) << 23 | u32::from(fraction) << 13),
    };
    if sign == 1 { -size } else { size }
}
