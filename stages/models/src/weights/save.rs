//! Saving: safetensors under published names, with the configuration beside them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::json;

use super::named::Note;
use super::{Named, Names, Visitor};
use crate::error::{Error, Result};

/// Type in which f32 tensors are written. Integer tensors keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveType {
    F32,
    /// Half the size; values beyond 65504 become infinite, below 6e-8 zero.
    F16,
}

/// All tensors of a model with their published names, in the order of its walk: f32, and integers for upstream's
/// bookkeeping buffers.
pub fn collect(model: &impl NamedClone) -> Vec<(String, TensorData)> {
    struct Collect(Vec<(String, TensorData)>);
    impl Visitor for Collect {
        fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
            self.0.push((name.to_owned(), param.val().into_data().convert::<f32>()));
        }

        fn note(&mut self, name: &str, note: &Note) {
            let data = match note {
                Note::I32(values) => TensorData::new(values.clone(), [values.len()]),
                Note::I64(values) => TensorData::new(values.clone(), [values.len()]),
            };
            self.0.push((name.to_owned(), data));
        }
    }
    let mut seen = Collect(Vec::new());
    // A walk may change what it sees, so it wants a model of its own; the clone shares all tensors.
    model.clone().walk(&mut Names::new(&mut seen));
    seen.0
}

/// What can be listed and cheaply cloned: every model.
pub trait NamedClone: Named + Clone {}
impl<M: Named + Clone> NamedClone for M {}

/// Writes a model with its configuration as JSON under the metadata key `config`.
///
/// # Errors
/// The file cannot be written.
pub fn save_model(
    path: impl AsRef<Path>,
    model: &impl NamedClone,
    config: &impl serde::Serialize,
    save_type: SaveType,
) -> Result<()> {
    let config = serde_json::to_string(config).map_err(|error| Error::Config(error.to_string()))?;
    save_safetensors(path, &collect(model), &BTreeMap::from([("config".to_owned(), config)]), save_type)
}

/// Writes tensors (f32, f64 or integers) as one safetensors file. The same content gives the same bytes.
///
/// # Errors
/// The file cannot be written, or a name stands twice.
pub fn save_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(String, TensorData)],
    metadata: &BTreeMap<String, String>,
    save_type: SaveType,
) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_safetensors(tensors, metadata, save_type)?;
    std::fs::write(path, bytes).map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// As [`save_safetensors`], into memory.
///
/// # Errors
/// A name stands twice, or a tensor has a type that the format lacks.
pub fn to_safetensors(
    tensors: &[(String, TensorData)],
    metadata: &BTreeMap<String, String>,
    save_type: SaveType,
) -> Result<Vec<u8>> {
    // The crate's own writer puts metadata in the order of a hash map, which differs from run to run.
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut data = Vec::new();
    let mut sorted: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name, tensor, stored_type(tensor, save_type))).collect();
    // Wide types first, so that every tensor is aligned.
    sorted.sort_by_key(|(name, _, dtype)| (std::cmp::Reverse(dtype.map(|dtype| dtype.bitsize())), *name));
    for (name, tensor, dtype) in sorted {
        let dtype = dtype
            .ok_or_else(|| Error::Input(format!("`{name}` has type {:?}, which cannot be saved", tensor.dtype())))?;
        let start = data.len();
        match (dtype, tensor.dtype()) {
            (Dtype::F16, DType::F32) => {
                let values = tensor.as_slice::<f32>().expect("its type is f32");
                data.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
            }
            _ => data.extend_from_slice(tensor.as_bytes()),
        }
        let entry = TensorInfo { dtype, shape: tensor.shape().to_vec(), data_offsets: (start, data.len()) };
        if header.insert(name.clone(), json!(entry)).is_some() {
            return Err(Error::Input(format!("tensor `{name}` is to be saved twice")));
        }
    }
    let mut header = serde_json::to_vec(&header).map_err(|error| Error::Input(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Vec::with_capacity(8 + header.len() + data.len());
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    file.extend(data);
    Ok(file)
}

fn stored_type(tensor: &TensorData, save_type: SaveType) -> Option<Dtype> {
    Some(match tensor.dtype() {
        DType::F32 if save_type == SaveType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}
