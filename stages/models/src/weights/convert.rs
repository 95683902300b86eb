//! Copying a checkpoint into a safetensors file, tensor by tensor: memory holds one tensor, however large the file is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use super::fit::fits;
use super::layout::{Slot, encode, lay_out};
use super::{Dtype, SaveType, Weights};
use crate::error::{Error, Result};

/// A copy that is about to be written. Making one reads names and shapes only.
#[derive(Debug)]
pub struct Conversion<'a> {
    weights: &'a Weights,
    head: Vec<u8>,
    /// In the file's order, each with its name in `weights`.
    tensors: Vec<(Slot, String)>,
    metadata: BTreeMap<String, String>,
}

/// Values that a narrower type could not hold: finite before, infinite after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// As written.
    pub name: String,
    pub count: usize,
}

impl<'a> Conversion<'a> {
    /// The tensors below `prefix` (`""`: all), under names without it. Floats are written as `float_type`, or as they are
    /// stored; integers keep their type. Metadata is kept; where it has no `config` and the models below `prefix` fit one
    /// preset (see [`fits`]), that is added.
    ///
    /// # Errors
    /// There is no tensor below `prefix`; the message says what there is.
    pub fn new(weights: &'a Weights, prefix: &str, float_type: Option<SaveType>) -> Result<Conversion<'a>> {
        let mut tensors = Vec::new();
        for name in weights.names() {
            let (Some(rest), Some(shape), Some(stored)) =
                (name.strip_prefix(prefix), weights.shape(name), weights.dtype(name))
            else {
                continue;
            };
            let dtype = float_type.filter(|_| stored.is_float()).map_or(stored, SaveType::dtype);
            tensors.push((Slot { name: rest.to_owned(), dtype, shape: shape.to_vec() }, name.to_owned()));
        }
        if tensors.is_empty() {
            return Err(nothing_below(prefix, weights));
        }
        let mut metadata = weights.metadata().clone();
        if !metadata.contains_key("config")
            && let Some(config) = shared_config(weights, prefix)?
        {
            metadata.insert("config".to_owned(), config);
        }
        let head = lay_out(&mut tensors, &metadata)?;
        Ok(Conversion { weights, head, tensors, metadata })
    }

    pub fn size_bytes(&self) -> u64 {
        let sizes = self.tensors.iter().map(|(slot, _)| slot.size_bytes() as u64);
        self.head.len() as u64 + sizes.sum::<u64>()
    }

    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// The metadata of the copy.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Writes the copy; equal content gives equal bytes. `told` hears how many bytes have been written with each tensor;
    /// `path` stands in errors. Returns which tensors lost values.
    ///
    /// # Errors
    /// A tensor cannot be read, or `out` cannot be written.
    pub fn write(&self, out: &mut impl Write, path: &Path, mut told: impl FnMut(u64)) -> Result<Vec<Lost>> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        out.write_all(&self.head).map_err(failed)?;
        let (mut written, mut lost) = (self.head.len() as u64, Vec::new());
        for (slot, name) in &self.tensors {
            let (bytes, count) = self.stored(slot, name)?;
            if bytes.len() != slot.size_bytes() {
                let reason = format!("`{name}` gave {} bytes, but has {}", bytes.len(), slot.size_bytes());
                return Err(Error::Format { path: self.weights.path().to_owned(), reason });
            }
            if count > 0 {
                lost.push(Lost { name: slot.name.clone(), count });
            }
            out.write_all(&bytes).map_err(failed)?;
            written += bytes.len() as u64;
            told(written);
        }
        out.flush().map_err(failed)?;
        Ok(lost)
    }

    /// A tensor's bytes in its new type, and how many values that type could not hold.
    fn stored(&self, slot: &Slot, name: &str) -> Result<(Vec<u8>, usize)> {
        if self.weights.dtype(name) == Some(slot.dtype) {
            return Ok((self.weights.bytes(name)?.0, 0));
        }
        let values = self.weights.f32s(name)?;
        let largest = match slot.dtype {
            Dtype::F16 => OVER_F16,
            Dtype::BF16 => OVER_BF16,
            _ => f32::INFINITY,
        };
        let count = values.iter().filter(|value| value.is_finite() && value.abs() >= largest).count();
        Ok((encode(&values, slot.dtype), count))
    }
}

/// From here on, rounding to the nearest gives infinity: half a step above the largest finite value.
const OVER_F16: f32 = 65520.0;
const OVER_BF16: f32 = f32::from_bits(0x7f7f_8000);

/// The configuration, as JSON, that all models below `prefix` share and fit: a base and its branch have one.
fn shared_config(weights: &Weights, prefix: &str) -> Result<Option<String>> {
    let mut below = fits(weights)?;
    below.retain(|fit| fit.prefix.starts_with(prefix));
    let shared = below.first().map(|first| first.config.clone());
    Ok(shared.filter(|config| below.iter().all(|fit| fit.fits() && fit.config == *config)))
}

fn nothing_below(prefix: &str, weights: &Weights) -> Error {
    let first = |name: &str| name.split_once('.').map_or(name, |(first, _)| first).to_owned();
    let starts: BTreeSet<String> = weights.names().map(first).collect();
    let listed: Vec<String> = starts.iter().take(8).map(|start| format!("`{start}.`")).collect();
    let more = if starts.len() > listed.len() { ", …" } else { "" };
    Error::Input(format!(
        "weights {}: no name begins with `{prefix}`; names begin with {}{more}",
        weights.path().display(),
        listed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::io;

    use burn::tensor::TensorData;
    use half::{bf16, f16};
    use tempfile::TempDir;

    use super::*;
    use crate::weights::{save_safetensors, to_safetensors};

    fn tensors(prefix: &str) -> Vec<(String, TensorData)> {
        let floats = |values: &[f32]| TensorData::new(values.to_vec(), [values.len()]);
        let all = [
            ("b", floats(&[1.0, -2.5, 1e5, f32::INFINITY])),
            ("a", floats(&[0.1])),
            ("half", TensorData::new(vec![f16::from_f32(0.1); 3], [3, 1])),
            ("count", TensorData::new(vec![7i64], [1])),
        ];
        all.map(|(name, data)| (format!("{prefix}{name}"), data)).to_vec()
    }

    /// A file of `tensors("net.")` and a tensor of another name.
    fn file(folder: &TempDir) -> Weights {
        let path = folder.path().join("in.safetensors");
        let others = [("other.x".to_owned(), TensorData::new(vec![1f32], [1]))];
        save_safetensors(&path, &[tensors("net."), others.to_vec()].concat(), &metadata(), SaveType::F32).unwrap();
        Weights::open(path).unwrap()
    }

    fn metadata() -> BTreeMap<String, String> {
        BTreeMap::from([("config".to_owned(), "{}".to_owned())])
    }

    fn written(conversion: &Conversion<'_>) -> (Vec<u8>, Vec<Lost>) {
        let (mut bytes, mut told) = (Vec::new(), 0);
        let lost = conversion.write(&mut bytes, Path::new("out"), |size_bytes| told = size_bytes).unwrap();
        assert_eq!((told, told), (conversion.size_bytes(), bytes.len() as u64));
        (bytes, lost)
    }

    #[test]
    fn a_copy_has_the_bytes_that_saving_the_same_tensors_gives() {
        let folder = TempDir::new().unwrap();
        let weights = file(&folder);
        let (bytes, lost) = written(&Conversion::new(&weights, "net.", None).unwrap());
        assert_eq!(bytes, to_safetensors(&tensors(""), &metadata(), SaveType::F32).unwrap());
        assert_eq!(lost, []);
        let whole = Conversion::new(&weights, "", None).unwrap();
        assert_eq!(written(&whole).0, std::fs::read(weights.path()).unwrap());
    }

    #[test]
    fn a_torch_checkpoint_becomes_safetensors() {
        let weights = Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nested.pt")).unwrap();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, written(&Conversion::new(&weights, "model.network.", None).unwrap()).0).unwrap();
        let copy = Weights::open(path).unwrap();
        for name in ["lin.weight", "lin.bias", "norm.weight", "patcher._arange"] {
            let of = format!("model.network.{name}");
            assert_eq!((copy.dtype(name), copy.shape(name)), (weights.dtype(&of), weights.shape(&of)), "{name}");
            assert_eq!(copy.f64s(name).unwrap(), weights.f64s(&of).unwrap(), "{name}");
        }
        assert_eq!(copy.names().count(), 4);
    }

    #[test]
    fn values_that_a_narrower_type_cannot_hold_are_counted() {
        let folder = TempDir::new().unwrap();
        let weights = file(&folder);
        let cases = [(SaveType::F32, vec![]), (SaveType::Bf16, vec![]), (SaveType::F16, vec![("b", 1)])];
        for (float_type, wanted) in cases {
            let (bytes, lost) = written(&Conversion::new(&weights, "net.", Some(float_type)).unwrap());
            let lost: Vec<(&str, usize)> = lost.iter().map(|lost| (lost.name.as_str(), lost.count)).collect();
            assert_eq!(lost, wanted, "{float_type:?}");
            let path = folder.path().join("out");
            std::fs::write(&path, bytes).unwrap();
            let copy = Weights::open(path).unwrap();
            let types = ["a", "b", "half", "count"].map(|name| copy.dtype(name).unwrap());
            let float = float_type.dtype();
            assert_eq!(types, [float, float, float, Dtype::I64]);
            let close = (copy.f32s("a").unwrap()[0] - 0.1).abs() < 4e-4;
            assert!(close && copy.f32s("b").unwrap()[..2] == [1.0, -2.5] && copy.i64s("count").unwrap() == [7]);
        }
        for (over, rounded) in [
            (OVER_F16, (|value| f16::from_f32(value).to_f32()) as fn(f32) -> f32),
            (OVER_BF16, |value| bf16::from_f32(value).to_f32()),
        ] {
            assert!(rounded(over).is_infinite() && rounded(over.next_down()).is_finite(), "{over}");
        }
    }

    #[test]
    fn a_wrong_prefix_and_a_full_disk_are_told() {
        /// Takes a few bytes.
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = TempDir::new().unwrap();
        let weights = file(&folder);
        let error = Conversion::new(&weights, "nett.", None).unwrap_err().to_string();
        assert!(error.contains("no name begins with `nett.`; names begin with `net.`, `other.`"), "{error}");
        let conversion = Conversion::new(&weights, "", None).unwrap();
        for room in 0..conversion.size_bytes() as usize {
            let error = conversion.write(&mut Full(room), Path::new("out"), |_| {}).unwrap_err().to_string();
            assert!(error.starts_with("cannot write weights out: "), "{error}");
        }
    }
}
