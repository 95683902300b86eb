//! Weights files: safetensors, and PyTorch's `.pt`/`.pth` read without executing pickle.
//!
//! Opening reads names, shapes and types only; a tensor's bytes are read when it is asked for. The format is recognised
//! by content, not by the file's name. Nested dictionaries of `.pt` files appear as dotted names (`model.encoder.…`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::store::pytorch_reader::{self, PytorchReader};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::TensorInfo;

use super::{Precision, vet};
use crate::error::{Error, Result};

/// Type of a stored element. All of them are read; [`Dtype::is_float`] tells weights from bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

/// The tensors of one or several weights files, by name.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: Dtype,
    source: Source,
}

enum Source {
    /// Bytes at this place of a safetensors file.
    Bytes {
        file: Safetensors,
        offset: u64,
        size_bytes: usize,
    },
    Torch(pytorch_reader::Tensor),
}

#[derive(Clone)]
enum Safetensors {
    Path(PathBuf),
    Memory(Arc<[u8]>),
}

impl Weights {
    /// A safetensors file that is in memory; `name` stands in messages.
    ///
    /// # Errors
    /// The bytes are no safetensors file, or are damaged or truncated.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Weights> {
        let (name, bytes) = (name.into(), Arc::<[u8]>::from(bytes));
        let length = bytes.first_chunk().copied().map_or(u64::MAX, u64::from_le_bytes);
        let size = bytes.len() as u64;
        read_safetensors(&name, Safetensors::Memory(bytes.clone()), Cursor::new(bytes), length, size)
    }

    /// Opens a safetensors, `.pt` or `.pth` file.
    ///
    /// # Errors
    /// The file cannot be read, is neither format, or is damaged or truncated.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(|source| read_error(path, source))?;
        let mut start = Vec::new();
        file.by_ref().take(9).read_to_end(&mut start).map_err(|source| read_error(path, source))?;
        match <[u8; 9]>::try_from(start) {
            // A safetensors file starts with the length of its header, which is a JSON object.
            Ok([length @ .., b'{']) => {
                let size = file.metadata().map_err(|source| read_error(path, source))?.len();
                let source = Safetensors::Path(path.to_owned());
                read_safetensors(path, source, file, u64::from_le_bytes(length), size)
            }
            _ => open_torch(path),
        }
    }

    /// Opens several files as one set of tensors, for checkpoints in parts. Metadata of the first file wins.
    ///
    /// # Errors
    /// As [`Weights::open`]; also if there is no file, or a name stands in two of them.
    pub fn open_parts<P: AsRef<Path>>(paths: &[P]) -> Result<Weights> {
        let (first, rest) = paths.split_first().ok_or_else(|| Error::Input("no weights file is named".into()))?;
        let mut all = Weights::open(first)?;
        for path in rest {
            let part = Weights::open(path)?;
            for (name, entry) in part.entries {
                if all.entries.contains_key(&name) {
                    let reason = format!("`{name}` also stands in {}", all.path.display());
                    return Err(Error::Format { path: part.path, reason });
                }
                all.entries.insert(name, entry);
            }
            for (key, value) in part.metadata {
                all.metadata.entry(key).or_insert(value);
            }
        }
        Ok(all)
    }

    /// The file, for messages; the first one of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|entry| entry.dtype)
    }

    /// The file's own key-value texts (safetensors `__metadata__`; empty for `.pt`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What stands before `probe`, a name that the wanted model always has: `""`, `"network."`, `"model.network."`, …
    ///
    /// Checkpoints wrap a model's names in dictionaries and in names of outer networks; the shortest wrapping is taken.
    /// Without any match it is `""`, so that loading then lists what is missing.
    pub fn prefix_of(&self, probe: &str) -> String {
        self.prefixes_of(probe).into_iter().next().unwrap_or_default()
    }

    /// Everything that stands before `probe` (see [`Weights::prefix_of`]), the shortest first.
    pub fn prefixes_of(&self, probe: &str) -> Vec<String> {
        let before = |name: &str| name.strip_suffix(probe).map(str::to_owned);
        let mut prefixes: Vec<String> = self.names().filter_map(before).collect();
        prefixes.retain(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        prefixes.sort_by_key(String::len);
        prefixes
    }

    /// A tensor as f32, whatever numeric type it is stored in.
    ///
    /// # Errors
    /// No such name, or its bytes cannot be read.
    pub fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        let (bytes, dtype) = self.bytes(name)?;
        Ok(match dtype {
            Dtype::F32 => numbers::<f32, 4, _>(&bytes, f32::from_le_bytes),
            Dtype::F16 => numbers(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => numbers(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
            _ => as_f64(&bytes, dtype).into_iter().map(|value| value as f32).collect(),
        })
    }

    /// A tensor as f64; integers beyond 2^53 are rounded.
    ///
    /// # Errors
    /// As [`Weights::f32s`].
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        let (bytes, dtype) = self.bytes(name)?;
        Ok(as_f64(&bytes, dtype))
    }

    /// An integer tensor.
    ///
    /// # Errors
    /// As [`Weights::f32s`]; also if it holds floats.
    pub fn i64s(&self, name: &str) -> Result<Vec<i64>> {
        let (bytes, dtype) = self.bytes(name)?;
        if dtype.is_float() {
            return Err(self.damaged(format!("`{name}` holds {dtype:?}, but integers are wanted")));
        }
        Ok(match dtype {
            Dtype::I64 => numbers(&bytes, i64::from_le_bytes),
            _ => as_f64(&bytes, dtype).into_iter().map(|value| value as i64).collect(),
        })
    }

    /// A tensor of rank `D` as f32 on a device.
    ///
    /// # Errors
    /// As [`Weights::f32s`]; also if its rank is not `D`.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Result<Tensor<D>> {
        self.tensor_as(name, device, Precision::F32)
    }

    /// As [`Weights::tensor`], held as f32 or bf16.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn tensor_as<const D: usize>(&self, name: &str, device: &Device, precision: Precision) -> Result<Tensor<D>> {
        let shape = match self.shape(name) {
            Some(shape) if shape.len() != D => {
                return Err(self.damaged(format!("`{name}` has shape {shape:?}, but rank {D} is wanted")));
            }
            shape => shape.unwrap_or_default().to_vec(),
        };
        let wanted = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let stored = match self.dtype(name) {
            Some(Dtype::BF16) => Some(DType::BF16),
            Some(Dtype::F16) => Some(DType::F16),
            Some(Dtype::F32) => Some(DType::F32),
            _ => None,
        };
        let data = match stored.filter(|_| cfg!(target_endian = "little")) {
            Some(dtype) => TensorData::from_bytes_vec(self.bytes(name)?.0, shape, dtype),
            None => TensorData::new(self.f32s(name)?, shape),
        };
        if data.dtype() == wanted {
            return Ok(Tensor::from_data(data, (device, wanted)));
        }
        // Burn's loops are compiled for speed in every profile, which matters for 2 billion values.
        let host = &Device::flex();
        let data = Tensor::<D>::from_data(data, (host, stored.unwrap_or(DType::F32))).cast(wanted).into_data();
        Ok(Tensor::from_data(data, (device, wanted)))
    }

    /// The stored bytes of a tensor, little-endian and row-major, and their type.
    pub(super) fn bytes(&self, name: &str) -> Result<(Vec<u8>, Dtype)> {
        let entry = self.entries.get(name).ok_or_else(|| self.damaged(format!("there is no tensor `{name}`")))?;
        let bytes = match &entry.source {
            Source::Bytes { file: Safetensors::Memory(all), offset, size_bytes } => {
                all[*offset as usize..][..*size_bytes].to_vec()
            }
            Source::Bytes { file: Safetensors::Path(path), offset, size_bytes } => {
                let mut bytes = vec![0; *size_bytes];
                let read = |bytes: &mut [u8]| {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(*offset))?;
                    file.read_exact(bytes)
                };
                read(&mut bytes).map_err(|source| read_error(path, source))?;
                bytes
            }
            Source::Torch(tensor) => tensor.read().map_err(|source| read_error(&self.path, source))?,
        };
        Ok((bytes, entry.dtype))
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Format { path: self.path.clone(), reason }
    }
}

impl Dtype {
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// The type of a tensor in memory, if a file can hold it.
    pub(super) fn from_burn(dtype: DType) -> Option<Dtype> {
        Some(match dtype {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I16 => Dtype::I16,
            DType::I8 => Dtype::I8,
            DType::U64 => Dtype::U64,
            DType::U32 => Dtype::U32,
            DType::U16 => Dtype::U16,
            DType::U8 => Dtype::U8,
            _ => return None,
        })
    }

    pub(super) fn to_safetensors(self) -> safetensors::Dtype {
        use safetensors::Dtype as S;
        match self {
            Dtype::F64 => S::F64,
            Dtype::F32 => S::F32,
            Dtype::F16 => S::F16,
            Dtype::BF16 => S::BF16,
            Dtype::I64 => S::I64,
            Dtype::I32 => S::I32,
            Dtype::I16 => S::I16,
            Dtype::I8 => S::I8,
            Dtype::U64 => S::U64,
            Dtype::U32 => S::U32,
            Dtype::U16 => S::U16,
            Dtype::U8 => S::U8,
            Dtype::Bool => S::BOOL,
        }
    }

    pub(super) fn to_pickle(self) -> vw2_pickle::Dtype {
        use vw2_pickle::Dtype as P;
        match self {
            Dtype::F64 => P::F64,
            Dtype::F32 => P::F32,
            Dtype::F16 => P::F16,
            Dtype::BF16 => P::BF16,
            Dtype::I64 => P::I64,
            Dtype::I32 => P::I32,
            Dtype::I16 => P::I16,
            Dtype::I8 => P::I8,
            Dtype::U64 => P::U64,
            Dtype::U32 => P::U32,
            Dtype::U16 => P::U16,
            Dtype::U8 => P::U8,
            Dtype::Bool => P::Bool,
        }
    }

    fn from_safetensors(dtype: safetensors::Dtype) -> Option<Dtype> {
        use safetensors::Dtype as S;
        Some(match dtype {
            S::F64 => Dtype::F64,
            S::F32 => Dtype::F32,
            S::F16 => Dtype::F16,
            S::BF16 => Dtype::BF16,
            S::I64 => Dtype::I64,
            S::I32 => Dtype::I32,
            S::I16 => Dtype::I16,
            S::I8 => Dtype::I8,
            S::U64 => Dtype::U64,
            S::U32 => Dtype::U32,
            S::U16 => Dtype::U16,
            S::U8 => Dtype::U8,
            S::BOOL => Dtype::Bool,
            _ => return None,
        })
    }

    fn from_torch(dtype: pytorch_reader::DType) -> Dtype {
        use pytorch_reader::DType as T;
        match dtype {
            T::F64 => Dtype::F64,
            T::F32 => Dtype::F32,
            T::F16 => Dtype::F16,
            T::BF16 => Dtype::BF16,
            T::I64 => Dtype::I64,
            T::I32 => Dtype::I32,
            T::I16 => Dtype::I16,
            T::I8 => Dtype::I8,
            T::U64 => Dtype::U64,
            T::U32 => Dtype::U32,
            T::U16 => Dtype::U16,
            T::U8 => Dtype::U8,
            T::Bool => Dtype::Bool,
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Bytes { file: Safetensors::Path(path), offset, size_bytes } => {
                write!(f, "{}@{offset}+{size_bytes}", path.display())
            }
            Source::Bytes { offset, size_bytes, .. } => write!(f, "memory@{offset}+{size_bytes}"),
            Source::Torch(tensor) => write!(f, "torch `{}`", tensor.name),
        }
    }
}

fn read_safetensors(
    path: &Path,
    source: Safetensors,
    mut file: impl Read + Seek,
    header_bytes: u64,
    file_bytes: u64,
) -> Result<Weights> {
    let damaged = |reason: String| Error::Format { path: path.to_owned(), reason };
    let data_start = header_bytes.checked_add(8).filter(|start| *start <= file_bytes).ok_or_else(|| {
        damaged(format!("the header claims {header_bytes} bytes, but the file has {file_bytes}; copy it again"))
    })?;
    let mut header = vec![0; header_bytes as usize];
    let read = file.seek(SeekFrom::Start(8)).and_then(|_| file.read_exact(&mut header));
    read.map_err(|source| read_error(path, source))?;
    let mut header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| damaged(format!("its header is not JSON: {error}")))?;
    let metadata = match header.remove("__metadata__") {
        Some(value) => serde_json::from_value(value).map_err(|error| damaged(format!("`__metadata__`: {error}")))?,
        None => BTreeMap::new(),
    };
    let mut entries = BTreeMap::new();
    for (name, value) in header {
        let info: TensorInfo =
            serde_json::from_value(value).map_err(|error| damaged(format!("entry `{name}`: {error}")))?;
        let dtype = Dtype::from_safetensors(info.dtype)
            .ok_or_else(|| damaged(format!("`{name}` has type {:?}; convert it to F32, F16 or BF16", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let size_bytes = info.shape.iter().try_fold(dtype.size_bytes(), |all, &length| all.checked_mul(length));
        if size_bytes.is_none() || end.checked_sub(start) != size_bytes {
            let shape = &info.shape;
            return Err(damaged(format!("`{name}`: shape {shape:?} of {dtype:?} does not fill bytes {start}..{end}")));
        }
        if data_start.checked_add(end as u64).is_none_or(|end| end > file_bytes) {
            return Err(damaged(format!("`{name}` ends beyond the file's {file_bytes} bytes; copy the file again")));
        }
        let offset = data_start + start as u64;
        let source = Source::Bytes { file: source.clone(), offset, size_bytes: end - start };
        entries.insert(name, Entry { shape: info.shape, dtype, source });
    }
    Ok(Weights { path: path.to_owned(), entries, metadata })
}

fn open_torch(path: &Path) -> Result<Weights> {
    vet::checkpoint(path)?;
    let reader = PytorchReader::new(path).map_err(|error| Error::Format {
        path: path.to_owned(),
        reason: format!("neither a safetensors file nor a PyTorch checkpoint: {error}"),
    })?;
    let entries = reader.into_tensors().into_iter().map(|(name, tensor)| {
        let entry = Entry {
            shape: tensor.shape().to_vec(),
            dtype: Dtype::from_torch(tensor.dtype()),
            source: Source::Torch(tensor),
        };
        (name, entry)
    });
    Ok(Weights { path: path.to_owned(), entries: entries.collect(), metadata: BTreeMap::new() })
}

/// What went wrong with reading: the file, if it contradicts itself, else the system.
fn read_error(path: &Path, source: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    let path = path.to_owned();
    match source.kind() {
        InvalidData | UnexpectedEof => Error::Format { path, reason: format!("{source}; copy the file again") },
        _ => Error::Read { path, source },
    }
}

fn numbers<T, const N: usize, F: Fn([u8; N]) -> T>(bytes: &[u8], number: F) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
}

fn as_f64(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    match dtype {
        Dtype::F64 => numbers(bytes, f64::from_le_bytes),
        Dtype::F32 => numbers(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F16 => numbers(bytes, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => numbers(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => numbers(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::I16 => numbers(bytes, |b| f64::from(i16::from_le_bytes(b))),
        Dtype::I8 => numbers(bytes, |b| f64::from(i8::from_le_bytes(b))),
        Dtype::U64 => numbers(bytes, |b| u64::from_le_bytes(b) as f64),
        Dtype::U32 => numbers(bytes, |b| f64::from(u32::from_le_bytes(b))),
        Dtype::U16 => numbers(bytes, |b| f64::from(u16::from_le_bytes(b))),
        Dtype::U8 | Dtype::Bool => numbers(bytes, |b| f64::from(u8::from_le_bytes(b))),
    }
}
