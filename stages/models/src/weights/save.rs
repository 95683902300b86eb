//! Saving: safetensors under published names, with the configuration beside them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};

use super::layout::{Slot, encode, lay_out};
use super::named::Note;
use super::{Dtype, Named, Names, Visitor};
use crate::error::{Error, Result};

/// Type in which f32 tensors are written. Integer tensors keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveType {
    F32,
    /// Half the size; values beyond 65504 become infinite, below 6e-8 zero.
    F16,
    /// Half the size; the range of f32 with 8 significant bits.
    Bf16,
}

impl SaveType {
    pub(super) fn dtype(self) -> Dtype {
        match self {
            SaveType::F32 => Dtype::F32,
            SaveType::F16 => Dtype::F16,
            SaveType::Bf16 => Dtype::BF16,
        }
    }
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
    let mut slots = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = Dtype::from_burn(tensor.dtype())
            .ok_or_else(|| Error::Input(format!("`{name}` has type {:?}, which cannot be saved", tensor.dtype())))?;
        let dtype = if dtype == Dtype::F32 { save_type.dtype() } else { dtype };
        slots.push((Slot { name: name.clone(), dtype, shape: tensor.shape().to_vec() }, tensor));
    }
    let mut file = lay_out(&mut slots, metadata)?;
    for (slot, tensor) in slots {
        match tensor.dtype() {
            DType::F32 => file.extend(encode(tensor.as_slice().expect("its type is f32"), slot.dtype)),
            _ => file.extend_from_slice(tensor.as_bytes()),
        }
    }
    Ok(file)
}
