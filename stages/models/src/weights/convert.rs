//! Copying a checkpoint into a safetensors file or into one that `torch.load` opens, tensor by tensor: memory holds one
//! tensor, however large the file is.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use vw2_pickle::archive::{self, Archive};
use vw2_pickle::write::Pickle;

use super::fit::fits;
use super::layout::{Slot, encode, lay_out};
use super::renaming::Renaming;
use super::{Dtype, SaveType, Weights};
use crate::error::{Error, Result};

/// What kind of file a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Keeps metadata; the models' own files are such.
    Safetensors,
    /// An `OrderedDict` of tensors, as `torch.save(model.state_dict(), …)` writes it. It has no place for metadata.
    Torch,
}

impl Format {
    /// By the file's name: `.pt` and `.pth` are torch's.
    pub fn of(path: &Path) -> Format {
        match path.extension() {
            Some(end) if ["pt", "pth"].iter().any(|torch| end.eq_ignore_ascii_case(torch)) => Format::Torch,
            _ => Format::Safetensors,
        }
    }
}

/// A copy that is about to be written. Making one reads names and shapes only.
#[derive(Debug)]
pub struct Conversion<'a> {
    weights: &'a Weights,
    /// What stands before the tensors: a header of safetensors, or a pickle.
    head: Vec<u8>,
    format: Format,
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

/// The folder in a torch archive, which torch itself names so where it knows no file.
const ROOT: &str = "archive";

impl<'a> Conversion<'a> {
    /// The tensors that `renaming` takes, under the names that it gives. Floats are written as `float_type`, or as they
    /// are stored; integers keep their type. Metadata is kept, where the format has a place for it; where it has no
    /// `config` and the models below the prefix fit one preset (see [`fits`]), that is added.
    ///
    /// # Errors
    /// There is no such tensor, or two would have one name; the message says what there is.
    pub fn new(
        weights: &'a Weights,
        renaming: &Renaming,
        float_type: Option<SaveType>,
        format: Format,
    ) -> Result<Conversion<'a>> {
        let mut tensors = Vec::new();
        for (new, old) in renaming.of(weights)? {
            let (Some(shape), Some(stored)) = (weights.shape(&old), weights.dtype(&old)) else { continue };
            let dtype = float_type.filter(|_| stored.is_float()).map_or(stored, SaveType::dtype);
            tensors.push((Slot { name: new, dtype, shape: shape.to_vec() }, old));
        }
        let mut metadata = match format {
            Format::Safetensors => weights.metadata().clone(),
            Format::Torch => BTreeMap::new(),
        };
        if format == Format::Safetensors
            && !metadata.contains_key("config")
            && let Some(config) = shared_config(weights, &renaming.prefix)?
        {
            metadata.insert("config".to_owned(), config);
        }
        let head = match format {
            Format::Safetensors => lay_out(&mut tensors, &metadata)?,
            Format::Torch => pickled(&tensors),
        };
        Ok(Conversion { weights, head, format, tensors, metadata })
    }

    pub fn size_bytes(&self) -> u64 {
        let sizes = self.tensors.iter().map(|(slot, _)| slot.size_bytes() as u64);
        match self.format {
            Format::Safetensors => self.head.len() as u64 + sizes.sum::<u64>(),
            Format::Torch => archive::size_bytes(ROOT, self.head.len() as u64, sizes),
        }
    }

    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// The metadata of the copy.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Writes the copy; equal content gives equal bytes. `told` hears how many bytes have been written with each tensor,
    /// and at the end; `path` stands in errors. Returns which tensors lost values.
    ///
    /// # Errors
    /// A tensor cannot be read, or `out` cannot be written.
    pub fn write(&self, out: &mut impl Write, path: &Path, mut told: impl FnMut(u64)) -> Result<Vec<Lost>> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        match self.format {
            Format::Safetensors => {
                out.write_all(&self.head).map_err(failed)?;
                let mut written = self.head.len() as u64;
                let lost = self.each(failed, |_, bytes| {
                    written += bytes.len() as u64;
                    told(written);
                    out.write_all(bytes)
                })?;
                out.flush().map_err(failed)?;
                Ok(lost)
            }
            Format::Torch => {
                let mut archive = Archive::new(out, ROOT);
                archive.pickle(&self.head).map_err(failed)?;
                let lost = self.each(failed, |index, bytes| {
                    archive.storage(&index.to_string(), bytes)?;
                    told(archive.written());
                    Ok(())
                })?;
                archive.finish().map_err(failed)?;
                told(self.size_bytes());
                Ok(lost)
            }
        }
    }

    /// Hands each tensor's number and bytes in its new type to `put`.
    fn each(
        &self,
        failed: impl Fn(io::Error) -> Error,
        mut put: impl FnMut(usize, &[u8]) -> io::Result<()>,
    ) -> Result<Vec<Lost>> {
        let mut lost = Vec::new();
        for (index, (slot, name)) in self.tensors.iter().enumerate() {
            let (bytes, count) = self.stored(slot, name)?;
            if bytes.len() != slot.size_bytes() {
                let reason = format!("`{name}` gave {} bytes, but has {}", bytes.len(), slot.size_bytes());
                return Err(Error::Format { path: self.weights.path().to_owned(), reason });
            }
            if count > 0 {
                lost.push(Lost { name: slot.name.clone(), count });
            }
            put(index, &bytes).map_err(&failed)?;
        }
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

/// The state of a module: names to tensors, the n-th in the storage n.
fn pickled(tensors: &[(Slot, String)]) -> Vec<u8> {
    let numbered: Vec<(usize, &Slot)> = tensors.iter().map(|(slot, _)| slot).enumerate().collect();
    let mut pickle = Pickle::new();
    pickle.ordered_dict(&numbered, |pickle, (index, slot)| {
        pickle.text(&slot.name);
        pickle.tensor(&index.to_string(), slot.dtype.to_pickle(), &slot.shape);
    });
    pickle.stop()
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

    /// A copy as safetensors of what stands below `prefix`.
    fn below<'a>(weights: &'a Weights, prefix: &str, float_type: Option<SaveType>) -> Result<Conversion<'a>> {
        Conversion::new(weights, &Renaming::below(prefix), float_type, Format::Safetensors)
    }

    fn as_torch<'a>(weights: &'a Weights, prefix: &str) -> Conversion<'a> {
        Conversion::new(weights, &Renaming::below(prefix), None, Format::Torch).unwrap()
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
        let (bytes, lost) = written(&below(&weights, "net.", None).unwrap());
        assert_eq!(bytes, to_safetensors(&tensors(""), &metadata(), SaveType::F32).unwrap());
        assert_eq!(lost, []);
        let whole = below(&weights, "", None).unwrap();
        assert_eq!(written(&whole).0, std::fs::read(weights.path()).unwrap());
    }

    #[test]
    fn a_torch_checkpoint_becomes_safetensors() {
        let weights = Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nested.pt")).unwrap();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, written(&below(&weights, "model.network.", None).unwrap()).0).unwrap();
        let copy = Weights::open(path).unwrap();
        for name in ["lin.weight", "lin.bias", "norm.weight", "patcher._arange"] {
            let of = format!("model.network.{name}");
            assert_eq!((copy.dtype(name), copy.shape(name)), (weights.dtype(&of), weights.shape(&of)), "{name}");
            assert_eq!(copy.f64s(name).unwrap(), weights.f64s(&of).unwrap(), "{name}");
        }
        assert_eq!(copy.names().count(), 4);
    }

    /// Every type that a file may have, and shapes without axes and without elements.
    fn every_type(folder: &TempDir) -> Weights {
        let mut all = tensors("net.");
        all.extend([
            ("f64".to_owned(), TensorData::new(vec![0.1f64, -1e300], [1, 2])),
            ("bf16".to_owned(), TensorData::new(vec![bf16::from_f32(0.1); 2], [2])),
            ("i32".to_owned(), TensorData::new(vec![-7i32; 6], [1, 2, 3])),
            ("i16".to_owned(), TensorData::new(vec![-7i16], [1])),
            ("i8".to_owned(), TensorData::new(vec![-7i8], [1])),
            ("u64".to_owned(), TensorData::new(vec![7u64], [1])),
            ("u32".to_owned(), TensorData::new(vec![7u32], [1])),
            ("u16".to_owned(), TensorData::new(vec![65_535u16], [1])),
            ("u8".to_owned(), TensorData::new(vec![255u8; 5], [5])),
            ("no axes".to_owned(), TensorData::new(vec![2.5f32], [0; 0])),
            ("no elements".to_owned(), TensorData::new(Vec::<f32>::new(), [0, 4])),
        ]);
        let path = folder.path().join("every.safetensors");
        save_safetensors(&path, &all, &metadata(), SaveType::F32).unwrap();
        Weights::open(path).unwrap()
    }

    #[test]
    fn a_torch_copy_has_the_same_tensors_and_becomes_the_same_file_again() {
        let folder = TempDir::new().unwrap();
        let weights = every_type(&folder);
        let path = folder.path().join("copy.pt");
        std::fs::write(&path, written(&as_torch(&weights, "")).0).unwrap();
        let copy = Weights::open(&path).unwrap();
        assert_eq!(copy.names().collect::<Vec<_>>(), weights.names().collect::<Vec<_>>());
        for name in weights.names() {
            assert_eq!((copy.dtype(name), copy.shape(name)), (weights.dtype(name), weights.shape(name)), "{name}");
            assert_eq!(copy.bytes(name).unwrap(), weights.bytes(name).unwrap(), "{name}");
        }
        assert!(copy.metadata().is_empty(), "a .pt has no place for metadata");
        let [back, plain] = [&copy, &weights].map(|of| written(&below(of, "", None).unwrap()).0);
        // What the copy has lost is the configuration alone.
        let tensors = |file: &[u8]| file[8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize..].to_vec();
        assert_eq!(tensors(&back), tensors(&plain));
        assert_eq!(written(&as_torch(&copy, "")).0, std::fs::read(&path).unwrap());
    }

    #[test]
    fn the_name_tells_the_format() {
        for (name, format) in [
            ("a.pt", Format::Torch),
            ("a.b.PTH", Format::Torch),
            ("a.safetensors", Format::Safetensors),
            ("pt", Format::Safetensors),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn values_that_a_narrower_type_cannot_hold_are_counted() {
        let folder = TempDir::new().unwrap();
        let weights = file(&folder);
        let cases = [(SaveType::F32, vec![]), (SaveType::Bf16, vec![]), (SaveType::F16, vec![("b", 1)])];
        for (float_type, wanted) in cases {
            let (bytes, lost) = written(&below(&weights, "net.", Some(float_type)).unwrap());
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
        let error = below(&weights, "nett.", None).unwrap_err().to_string();
        assert!(error.contains("no name begins with `nett.`; names begin with `net.`, `other.`"), "{error}");
        for (conversion, room) in [below(&weights, "", None).unwrap(), as_torch(&weights, "")]
            .iter()
            .flat_map(|conversion| (0..conversion.size_bytes() as usize).map(move |room| (conversion, room)))
        {
            let error = conversion.write(&mut Full(room), Path::new("out"), |_| {}).unwrap_err().to_string();
            assert!(error.starts_with("cannot write weights out: "), "{error}");
        }
    }
}
