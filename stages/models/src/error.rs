//! What can go wrong with a model, as things that a caller or user can act on.

use std::path::PathBuf;

use crate::weights::Mismatch;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("weights {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is readable, but is no weights file that we know, or is damaged.
    #[error("weights {}: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    /// Names or shapes in the file differ from what the configuration asks for.
    #[error(transparent)]
    Mismatch(Box<Mismatch>),
    #[error("cannot write weights {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// A configuration that exists upstream, but not here.
    #[error("configuration not supported: {0}")]
    Unsupported(String),
    /// A configuration that makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// An input of a shape or range which the model cannot take.
    #[error("{0}")]
    Input(String),
}
