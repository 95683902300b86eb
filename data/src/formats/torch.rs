//! Files of `torch.save`: a ZIP archive that holds a pickle and, beside it, the storages of its tensors; read and written.
//!
//! Source: torch's `serialization.py`, format since 1.6: `<name>/data.pkl`, `<name>/data/<key>`, `<name>/byteorder`.
//! Differs: nothing is executed ([`vw2_pickle`]); big-endian files and the older formats are errors.
//!
//! This is for files of data, which are read whole. Weights are opened by `vw2-models`, lazily.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use vw2_pickle::archive;
use vw2_pickle::{Limits, Storage, Tensor, Value};
use zip::ZipArchive;

use crate::{Error, Result};

/// Bytes of the pickle.
const MOST_PICKLE: u64 = 32 << 20;

/// Bytes of all storages that are read, and elements of all tensors that are asked for.
const MOST_READ: u64 = 256 << 20;

type Archive = ZipArchive<BufReader<File>>;

/// An open file.
pub struct TorchFile {
    /// What was saved; its tensors say where they lie.
    pub value: Value,
    file: String,
    /// What stands before `data.pkl` in the archive.
    root: String,
    archive: Archive,
    storages: HashMap<Arc<str>, Vec<u8>>,
    bytes_left: u64,
    elements_left: u64,
}

impl TorchFile {
    /// Opens a file and reads its pickle.
    ///
    /// # Errors
    /// It cannot be read, is no such archive, is big-endian, or its pickle is damaged, too large or not plain data.
    pub fn open(path: &Path, limits: &Limits) -> Result<TorchFile> {
        let file = path.display().to_string();
        let bad = |place: &str, reason: String| Error::Format { file: file.clone(), place: place.to_owned(), reason };
        let opened = File::open(path).map_err(|source| Error::Io { file: file.clone(), source })?;
        let no_archive = |error| bad("archive", format!("{error}; it must be written by torch.save of 1.6 or newer"));
        let mut archive = ZipArchive::new(BufReader::new(opened)).map_err(no_archive)?;
        let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
        let mut roots = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
        let (Some(root), None) = (roots.next().map(str::to_owned), roots.next()) else {
            return Err(bad("archive", "it must hold one data.pkl, as torch.save writes it".into()));
        };
        if names.contains(&format!("{root}byteorder")) {
            let order =
                entry(&mut archive, &format!("{root}byteorder"), 16).map_err(|reason| bad("byteorder", reason))?;
            if order.trim_ascii() != b"little" {
                return Err(bad("byteorder", "it was saved on a big-endian machine; save it on another one".into()));
            }
        }
        let pickle =
            entry(&mut archive, &format!("{root}data.pkl"), MOST_PICKLE).map_err(|reason| bad("data.pkl", reason))?;
        let value = vw2_pickle::parse(&pickle, limits).map_err(|error| bad("data.pkl", error.to_string()))?;
        let storages = HashMap::new();
        Ok(TorchFile { value, file, root, archive, storages, bytes_left: MOST_READ, elements_left: MOST_READ })
    }

    /// Row-major values of an integer tensor.
    ///
    /// # Errors
    /// It is of floats, or its storage is missing, shorter than it claims, or too large.
    pub fn i64s(&mut self, tensor: &Tensor) -> Result<Vec<i64>> {
        let bad = |reason: String| Error::Format {
            file: self.file.clone(),
            place: format!("storage `{}`", tensor.storage.key.escape_debug()),
            reason,
        };
        let left = self.elements_left.checked_sub(tensor.elements() as u64);
        let left = left.ok_or_else(|| bad(format!("its tensors have more than {MOST_READ} elements in all")))?;
        let key = &tensor.storage.key;
        if !self.storages.contains_key(key) {
            let path = format!("{}data/{key}", self.root);
            let bytes = storage(&mut self.archive, &path, &tensor.storage, self.bytes_left).map_err(bad)?;
            self.bytes_left -= bytes.len() as u64;
            self.storages.insert(key.clone(), bytes);
        }
        let values =
            tensor.row_major(&self.storages[key]).ok_or_else(|| bad("it is shorter than its tensor".into()))?;
        self.elements_left = left;
        let wanted = || bad(format!("it holds {:?}, but integers are wanted", tensor.dtype));
        tensor.dtype.i64s(&values).ok_or_else(wanted)
    }
}

/// The bytes of a file that `torch.load` opens: a pickle, and the storages that it names 0, 1, 2, … `root` is the folder
/// within the archive.
pub(super) fn saved(root: &str, pickle: &[u8], storages: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut archive = archive::Archive::new(Vec::new(), root);
    let mut write = || {
        archive.pickle(pickle)?;
        storages.iter().enumerate().try_for_each(|(key, bytes)| archive.storage(&key.to_string(), bytes))
    };
    let written = write().and_then(|()| archive.finish());
    written.map_err(|source| Error::Io { file: root.to_owned(), source })
}

/// The bytes of a storage; the error is a reason.
fn storage(archive: &mut Archive, path: &str, storage: &Storage, most_bytes: u64) -> Result<Vec<u8>, String> {
    let wanted = (storage.elements as u64).checked_mul(storage.dtype.map_or(1, |dtype| dtype.size() as u64));
    let wanted = wanted.filter(|wanted| *wanted <= most_bytes);
    let wanted = wanted.ok_or_else(|| format!("more than {MOST_READ} bytes of tensors are no file of codes"))?;
    let bytes = entry(archive, path, wanted)?;
    if (bytes.len() as u64) < wanted {
        return Err(format!("it has {} bytes, but should have {wanted}; copy the file again", bytes.len()));
    }
    Ok(bytes)
}

/// An entry of at most so many bytes; the error is a reason.
fn entry(archive: &mut Archive, name: &str, most_bytes: u64) -> Result<Vec<u8>, String> {
    let entry = archive.by_name(name).map_err(|error| error.to_string())?;
    if entry.size() > most_bytes {
        return Err(format!("it has {} bytes, but at most {most_bytes} are wanted", entry.size()));
    }
    let mut bytes = Vec::new();
    // The size in the directory is a claim; what is read is bounded all the same.
    let read = entry.take(most_bytes + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if read as u64 > most_bytes {
        return Err(format!("it has more than the {most_bytes} bytes that are wanted"));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use zip::CompressionMethod::{self, Deflated, Stored};
    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    /// One entry of an archive.
    pub(in crate::formats) struct Part(String, Vec<u8>, CompressionMethod);

    impl Part {
        pub(in crate::formats) fn stored(name: &str, bytes: &[u8]) -> Part {
            Part(name.to_owned(), bytes.to_vec(), Stored)
        }
    }

    pub(in crate::formats) fn write(path: &Path, parts: &[Part]) {
        let mut archive = ZipWriter::new(File::create(path).unwrap());
        for Part(name, bytes, method) in parts {
            archive.start_file(name, SimpleFileOptions::default().compression_method(*method)).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
    }

    #[test]
    fn what_is_no_archive_of_torch_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.pt");
        let pickle = Part::stored("a/data.pkl", b"\x80\x02N.");
        for (parts, reason) in [
            (vec![], "archive: it must hold one data.pkl"),
            (vec![Part::stored("a/data.pkl", b"N."), Part::stored("b/data.pkl", b"N.")], "archive: it must hold one"),
            (vec![pickle, Part::stored("a/byteorder", b"big")], "byteorder: it was saved on a big-endian machine"),
            (vec![Part::stored("a/data.pkl", b"")], "data.pkl: byte 0"),
            // A megabyte that becomes more than what is allowed.
            (vec![Part("data.pkl".into(), vec![b'N'; (MOST_PICKLE + 1) as usize], Deflated)], "at most 33554432"),
        ] {
            write(&path, &parts);
            let error = TorchFile::open(&path, &Limits::default()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(reason), "wanted `{reason}`: {error}");
        }
        // The format before ZIP archives starts with this number.
        for bytes in [&b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."[..], b""] {
            std::fs::write(&path, bytes).unwrap();
            let error = TorchFile::open(&path, &Limits::default()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("torch.save of 1.6 or newer"), "{error}");
        }
    }

    #[test]
    fn no_cut_and_no_changed_byte_makes_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.pt");
        write(
            &path,
            &[Part::stored("a/data.pkl", b"\x80\x02N."), Part("a/byteorder".into(), b"little".into(), Deflated)],
        );
        let good = std::fs::read(&path).unwrap();
        TorchFile::open(&path, &Limits::default()).unwrap();
        let try_out = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            TorchFile::open(&path, &Limits::default()).is_ok()
        };
        for at in 0..good.len() {
            assert!(!try_out(&good[..at]), "cut to {at}");
            let mut changed = good.clone();
            changed[at] ^= 0xFF;
            try_out(&changed);
        }
    }
}
