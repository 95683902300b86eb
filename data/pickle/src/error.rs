//! What can be wrong with a pickle.

/// `at` is the byte at which the operation stands that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "byte {at}: `{name}` is asked for, which is not among the names that data needs; nothing was executed, and the \
         file should not be trusted"
    )]
    Global { at: usize, name: String },

    #[error("byte {at}: more than {limit} {what}; no file of data needs as many")]
    Limit { at: usize, what: &'static str, limit: u64 },

    #[error("byte {at}: {wanted} more bytes are wanted, but {left} are left; copy the file again")]
    Truncated { at: usize, wanted: u64, left: usize },

    #[error("byte {at}: {reason}")]
    Damaged { at: usize, reason: String },

    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Text of a file in a message: short, and without control characters.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
