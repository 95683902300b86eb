//! The layout of a safetensors file: its header, and the order of the tensors after it. Equal content, equal bytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorInfo;
use serde_json::json;

use super::Dtype;
use crate::error::{Error, Result};

/// A tensor of a file to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Slot {
    pub(super) fn size_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_bytes()
    }
}

/// Puts the tensors into the file's order, and gives what stands before their bytes: the header and its length.
///
/// # Errors
/// A name stands twice.
pub(super) fn lay_out<T>(tensors: &mut [(Slot, T)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    // Wide types first, so that every tensor is aligned.
    tensors.sort_by(|(a, _), (b, _)| {
        (Reverse(a.dtype.size_bytes()), &a.name).cmp(&(Reverse(b.dtype.size_bytes()), &b.name))
    });
    // The crate's own writer puts metadata in the order of a hash map, which differs from run to run.
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (slot, _) in tensors.iter() {
        let start = end;
        end += slot.size_bytes();
        let dtype = slot.dtype.to_safetensors();
        let entry = TensorInfo { dtype, shape: slot.shape.clone(), data_offsets: (start, end) };
        if header.insert(slot.name.clone(), json!(entry)).is_some() {
            return Err(Error::Input(format!("tensor `{}` is to be saved twice", slot.name)));
        }
    }
    let mut header = serde_json::to_vec(&header).map_err(|error| Error::Input(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes(), header.as_slice()].concat())
}

/// Values as stored bytes of a float type.
pub(super) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F64 => bytes(values, |value| f64::from(value).to_le_bytes()),
        Dtype::F16 => bytes(values, |value| f16::from_f32(value).to_le_bytes()),
        Dtype::BF16 => bytes(values, |value| bf16::from_f32(value).to_le_bytes()),
        _ => bytes(values, f32::to_le_bytes),
    }
}

fn bytes<const N: usize>(values: &[f32], stored: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    for (place, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *place = stored(*value);
    }
    bytes
}
