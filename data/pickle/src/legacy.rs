//! The storage of a torch tensor that was pickled by itself, outside of `torch.save`: its pickle holds, as bytes, a file
//! of the format that torch had before ZIP archives.
//!
//! Content: three pickles (a number, the version 1001, sizes of the machine), a pickle that names the storage, a pickle
//! with the list of its key, the number of elements (u64), the elements.
//! Source: torch's `serialization.py` (`_legacy_save`) and `storage.py` (`_load_from_bytes`).

use std::sync::Arc;

use crate::{Error, Limits, Result, Storage, Value, parse_first};

/// What files of torch 0.1.10 to 1.5 start with: the pickled magic number, then the pickled version 1001.
pub const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

/// The one storage of a file in `bytes`, which it then refers to.
pub(crate) fn storage(bytes: &Arc<[u8]>, limits: &Limits) -> Result<Storage> {
    let damaged = |at: usize, reason: &str| Error::Damaged { at, reason: reason.to_owned() };
    if !bytes.starts_with(LEGACY_START) {
        return Err(damaged(0, "a storage that does not begin as torch writes it"));
    }
    let mut at = LEGACY_START.len();
    let mut next = || {
        let (value, used) = parse_first(&bytes[at..], limits)?;
        at += used;
        Ok::<_, Error>(value)
    };
    let (machine, value, keys) = (next()?, next()?, next()?);
    if machine.get("little_endian") != Some(&Value::Bool(true)) {
        return Err(damaged(at, "a storage of a big-endian machine; save it on another one"));
    }
    let Value::Storage(storage) = value else {
        return Err(damaged(at, "a storage is wanted, but something else is there"));
    };
    let key = match keys.as_items() {
        Some([key]) => key.as_str(),
        _ => None,
    };
    if key != Some(&storage.key) {
        return Err(damaged(at, "a storage whose key is not in its list of keys"));
    }
    let count = bytes[at..].first_chunk().map(|count| u64::from_le_bytes(*count));
    let start = at + 8;
    let size = storage.elements.checked_mul(storage.dtype.map_or(1, |dtype| dtype.size()));
    if count != Some(storage.elements as u64) || size != bytes.len().checked_sub(start) {
        return Err(damaged(at, "a storage that is longer or shorter than it says; copy the file again"));
    }
    Ok(Storage { contents: Some((bytes.clone(), start)), ..Arc::unwrap_or_clone(storage) })
}
