//! Python pickles, read without executing anything, and written.
//!
//! A pickle is a program for a small stack machine that may call any function of Python. This reader runs the machine,
//! but knows only the calls that numpy's arrays and torch's tensors are made of ([`Value`]); any other name in the file
//! is an error that tells it. Protocols 0 to 5; data in the file itself (no out-of-band buffers).
//!
//! Memory and time are bounded by the input's size and by [`Limits`]: every length is held against what is left of the
//! input before anything is allocated, a value which is referred to many times is stored once, and only what the
//! finished tree would hold is counted and built.
//!
//! [`mod@write`] makes pickles and [`archive`] what `torch.load` opens.
//!
//! Source: CPython's `Lib/pickletools.py` (opcodes), numpy's `__reduce__` of arrays, dtypes and scalars, and
//! `torch/_utils.py`.
//! Differs: sets are lists; a number beyond 64 bits is an error; attributes of dictionaries and tensors are left out;
//! arrays come out row-major and little-endian however they were stored.
//!
//! ```
//! use vw2_pickle::{Limits, Value, parse};
//! // pickle.dumps({"a": [1, 2]}, 2)
//! let value = parse(b"\x80\x02}X\x01\x00\x00\x00a](K\x01K\x02es.", &Limits::default()).unwrap();
//! assert_eq!(value.get("a"), Some(&Value::List(vec![Value::Int(1), Value::Int(2)])));
//! // os.system("true") is not run, but named.
//! let error = parse(b"cos\nsystem\n(S'true'\ntR.", &Limits::default()).unwrap_err();
//! assert!(error.to_string().contains("`os.system`"));
//! ```

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

mod value;

mod limits;

mod error;

mod machine;

mod input;

mod text;

mod globals;

mod calls;

mod strides;

mod tree;

mod legacy;

pub mod write;

pub mod archive;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod writer;

pub use error::Error;
pub use legacy::LEGACY_START;
pub use limits::Limits;
pub use value::{Array, Dtype, Storage, Tensor, Value};

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The value of a pickle that is all of `bytes`.
///
/// # Errors
/// The bytes are no pickle, end early, go on behind it, name what is not allowed, or exceed a limit.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value> {
    let (value, used) = parse_first(bytes, limits)?;
    if used < bytes.len() {
        let reason =
            format!("the pickle ends here, but {} bytes follow; take the file that was meant", bytes.len() - used);
        return Err(Error::Damaged { at: used, reason });
    }
    Ok(value)
}

/// As [`parse`], for a pickle at the start of `bytes`; also the number of bytes that it takes.
///
/// # Errors
/// As [`parse`], except that anything may follow.
pub fn parse_first(bytes: &[u8], limits: &Limits) -> Result<(Value, usize)> {
    let (nodes, root, used) = machine::run(bytes, limits)?;
    Ok((tree::build(&nodes, root, used, limits)?, used))
}

/// As [`parse`], from a file of at most `limits.file_bytes`.
///
/// # Errors
/// As [`parse`]; also if the file cannot be read or is too large.
pub fn read(path: &Path, limits: &Limits) -> Result<Value> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    // A file that grows, or a device without a size, is cut off as well.
    file.take(limits.file_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if size > limits.file_bytes || bytes.len() as u64 > limits.file_bytes {
        return Err(Error::Limit { at: 0, what: "bytes in the file", limit: limits.file_bytes });
    }
    parse(&bytes, limits)
}
