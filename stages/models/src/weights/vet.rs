//! A look at a PyTorch checkpoint before it is opened: is it data, and as large as it says?
//!
//! `burn-store` executes no pickle either, but skips unknown calls, bounds no number of values (20 MB of them took it 5
//! GB) and makes a tensor of any size out of one repeated element. So the pickle first goes through [`vw2_pickle`],
//! with its limits, and each tensor's storage is looked up in the archive's directory. No storage is read: a file of
//! gigabytes takes milliseconds.
//!
//! Two containers pass: ZIP archives (torch 1.6 and newer), and the format before them, which published VGG weights
//! have.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use vw2_pickle::{LEGACY_START, Limits, Storage, Value};
use zip::ZipArchive;

use crate::error::{Error, Result};

/// Bytes of a checkpoint's pickles. The released ones have a few hundred kilobytes.
const MOST_PICKLE: u64 = 32 << 20;

/// Passes a file that can be opened without danger.
///
/// # Errors
/// It cannot be read, is no checkpoint, names what is not data, exceeds a limit, or has a storage that is missing or
/// shorter than its tensors.
pub(super) fn checkpoint(path: &Path) -> Result<()> {
    let unread = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unread)?;
    let file_bytes = file.metadata().map_err(unread)?.len();
    let mut start = Vec::new();
    file.by_ref().take(LEGACY_START.len() as u64).read_to_end(&mut start).map_err(unread)?;
    file.rewind().map_err(unread)?;
    let passed = match &start[..] {
        [b'P', b'K', ..] => zipped(file, file_bytes),
        LEGACY_START => legacy(file, file_bytes),
        _ => Err("there is neither a ZIP archive nor torch's number; save it again with torch.save".into()),
    };
    passed.map_err(|reason| Error::Format {
        path: path.to_owned(),
        reason: format!("neither a safetensors file nor a PyTorch checkpoint that can be read: {reason}"),
    })
}

/// An archive that holds a pickle and, beside it, an entry for each storage; the error is a reason.
fn zipped(file: File, file_bytes: u64) -> Result<(), String> {
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| error.to_string())?;
    let names = archive.file_names().filter_map(Result::ok);
    let mut roots = names.filter_map(|name| name.strip_suffix("data.pkl").map(str::to_owned));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("the archive must hold one data.pkl".into());
    };
    drop(roots);
    let mut pickle = Vec::new();
    let entry = archive.by_name(&format!("{root}data.pkl")).map_err(|error| format!("data.pkl: {error}"))?;
    // The size in the directory is a claim; what is read is bounded all the same.
    entry.take(MOST_PICKLE + 1).read_to_end(&mut pickle).map_err(|error| format!("data.pkl: {error}"))?;
    if pickle.len() as u64 > MOST_PICKLE {
        return Err(format!("data.pkl: more than {MOST_PICKLE} bytes"));
    }
    let value = vw2_pickle::parse(&pickle, &limits()).map_err(|error| format!("data.pkl: {error}"))?;
    drop(pickle);
    each_storage(&value, &mut |storage| {
        let name = format!("{root}data/{}", storage.key);
        let index = archive.index_for_name(&name).ok_or("it is not in the archive")?;
        let entry = archive.by_index_raw(index).map_err(|error| error.to_string())?;
        // What torch writes is stored as it is. Compressed, it may be larger than the file, so it is not let pass.
        let found = entry.size().min(file_bytes);
        if size_bytes(storage).is_none_or(|wanted| wanted > found) {
            return Err(format!("{} elements do not lie in its {found} bytes", storage.elements));
        }
        Ok(())
    })
}

/// Pickles one after the other (number, version, machine, values, keys), then the storages; the error is a reason.
fn legacy(file: File, file_bytes: u64) -> Result<(), String> {
    let mut start = Vec::new();
    file.take(MOST_PICKLE).read_to_end(&mut start).map_err(|error| error.to_string())?;
    let mut at = LEGACY_START.len();
    let mut values = Vec::new();
    for what in ["machine", "values", "keys"] {
        let (value, used) = vw2_pickle::parse_first(&start[at..], &limits())
            .map_err(|error| format!("the pickle of its {what}, from byte {at} on: {error}"))?;
        values.push(value);
        at += used;
    }
    // Which bytes belong to which storage is seen by the reader; here it is enough that they are in the file.
    values.iter().try_for_each(|value| {
        each_storage(value, &mut |storage| match size_bytes(storage) {
            Some(wanted) if wanted <= file_bytes => Ok(()),
            _ => Err(format!("{} elements do not lie in the file's {file_bytes} bytes", storage.elements)),
        })
    })
}

/// A tensor is some 25 values, so this is for 10,000 tensors. `burn-store` takes about 250 bytes for each value. No file
/// within the pickle is let pass: `burn-store` does not look there, but beside it.
fn limits() -> Limits {
    Limits { items: 250_000, memo: 250_000, nested: 0, ..Limits::default() }
}

fn size_bytes(storage: &Storage) -> Option<u64> {
    (storage.elements as u64).checked_mul(storage.dtype.map_or(1, |dtype| dtype.size() as u64))
}

/// Calls `check` with the storage of every tensor below a value; an error gets the storage's name.
fn each_storage(value: &Value, check: &mut impl FnMut(&Storage) -> Result<(), String>) -> Result<(), String> {
    let storage = match value {
        Value::Tensor(tensor) => &tensor.storage,
        Value::Storage(storage) => storage,
        Value::List(items) | Value::Tuple(items) => {
            return items.iter().try_for_each(|item| each_storage(item, check));
        }
        Value::Dict(pairs) => return pairs.iter().try_for_each(|(_, value)| each_storage(value, check)),
        _ => return Ok(()),
    };
    check(storage).map_err(|reason| format!("storage `{}`: {reason}", storage.key.escape_debug()))
}
