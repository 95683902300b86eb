//! `default_neg.pickle`: the text embedding that guidance leads away from.
//!
//! Content: a pickled sequence whose element 0 is a numpy array of floats [N, D], as T5-11B gives it for a text of N
//! tokens (D = 1024). Padding to the model's number of tokens is the model's business.

use std::path::Path;

use vw2_pickle::{Limits, Value};

use crate::{Error, Result};

/// A text of more tokens is cut to these, as the model takes no more.
pub const MOST_TOKENS: usize = 512;

/// An embedding in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct NegativeEmbedding {
    /// Tokens (1 to [`MOST_TOKENS`]), width.
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

/// Reads a file of at most 64 MiB. Tokens behind [`MOST_TOKENS`] are left out.
///
/// # Errors
/// The file cannot be read, is no plain pickle, holds something else, or has values that are not finite.
pub fn read(path: &Path) -> Result<NegativeEmbedding> {
    let file = path.display().to_string();
    let bad = |place: &str, reason: String| Error::Format { file: file.clone(), place: place.to_owned(), reason };
    let value = vw2_pickle::read(path, &Limits { file_bytes: 64 << 20, ..Limits::default() });
    let value = value.map_err(|error| match error {
        vw2_pickle::Error::Io(source) => Error::Io { file: file.clone(), source },
        error => bad("pickle", error.to_string()),
    })?;
    let items = value.as_items().ok_or_else(|| bad("pickle", format!("wanted a list, found {}", value.kind())))?;
    let array = match items.first() {
        Some(Value::Array(array)) if array.dtype.is_float() => array,
        Some(Value::Array(array)) => return Err(bad("element 0", format!("wanted floats, found {:?}", array.dtype))),
        Some(other) => return Err(bad("element 0", format!("wanted a numpy array, found {}", other.kind()))),
        None => return Err(bad("pickle", "the list is empty, but its first element is wanted".into())),
    };
    let &[tokens @ (1..), width @ (1..)] = &array.shape[..] else {
        return Err(bad("element 0", format!("wanted an array of tokens and width, found shape {:?}", array.shape)));
    };
    let tokens = tokens.min(MOST_TOKENS);
    let mut values = array.f32s();
    values.truncate(tokens * width);
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let place = format!("element 0, token {}, column {}", index / width, index % width);
        return Err(bad(&place, format!("the value is {}; make the file again", values[index])));
    }
    Ok(NegativeEmbedding { shape: [tokens, width], values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pickle: &[u8]) -> Result<NegativeEmbedding> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("neg.pickle");
        std::fs::write(&path, pickle).unwrap();
        read(&path)
    }

    /// What numpy's protocol 5 makes of `[array]`.
    fn pickled(code: &str, shape: &[u16], bytes: &[u8]) -> Vec<u8> {
        let mut out = b"\x80\x05]cnumpy._core.numeric\n_frombuffer\n(B".to_vec();
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
        out.extend(format!("cnumpy\ndtype\n(V{code}\nI00\nI01\ntR(").as_bytes());
        for size in shape {
            out.push(b'M');
            out.extend(size.to_le_bytes());
        }
        out.extend(b"tVC\ntRa.");
        out
    }

    #[test]
    fn floats_of_each_size_are_read() {
        let values = [0.5f32, -2.0, 3.0, 0.0, 1.0, 65504.0];
        let halves = [0x3800u16, 0xC000, 0x4200, 0, 0x3C00, 0x7BFF];
        for (code, bytes) in [
            ("f2", halves.map(u16::to_le_bytes).concat()),
            ("f4", values.map(f32::to_le_bytes).concat()),
            ("f8", values.map(|value| f64::from(value).to_le_bytes()).concat()),
        ] {
            let embedding = file(&pickled(code, &[2, 3], &bytes)).unwrap();
            assert_eq!(embedding, NegativeEmbedding { shape: [2, 3], values: values.to_vec() }, "{code}");
        }
    }

    #[test]
    fn more_tokens_than_the_model_takes_are_cut() {
        let values: Vec<u8> = (0..600u16).flat_map(|token| f32::from(token).to_le_bytes()).collect();
        let embedding = file(&pickled("f4", &[600, 1], &values)).unwrap();
        assert_eq!((embedding.shape, embedding.values.len(), embedding.values[511]), ([512, 1], 512, 511.0));
    }

    #[test]
    fn another_content_is_told() {
        for (pickle, reason) in [
            (b"\x80\x02].".to_vec(), "the list is empty"),
            (b"\x80\x02}.".to_vec(), "pickle: wanted a list, found a dictionary"),
            (b"\x80\x02]Na.".to_vec(), "element 0: wanted a numpy array, found None"),
            (pickled("i4", &[1, 1], &[0; 4]), "element 0: wanted floats, found I32"),
            (pickled("f4", &[2], &[0; 8]), "tokens and width, found shape [2]"),
            (pickled("f4", &[0, 1024], &[]), "tokens and width, found shape [0, 1024]"),
            (pickled("f4", &[1, 2], &[0, 0, 0, 0, 0, 0, 0x80, 0x7F]), "element 0, token 0, column 1: the value is inf"),
            (b"cos\nsystem\n(Vtrue\ntR.".to_vec(), "`os.system` is asked for"),
            (b"not a pickle".to_vec(), "pickle: byte "),
        ] {
            let error = file(&pickle).unwrap_err().to_string();
            assert!(error.contains(reason), "wanted `{reason}`: {error}");
        }
        assert!(matches!(read(Path::new("/none.pickle")), Err(Error::Io { .. })));
    }
}
