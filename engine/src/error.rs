//! What can go wrong between a TOML file and a report. A bad clip is not among it: that is a quarantine row.

use std::io;
use std::path::{Path, PathBuf};

use crate::spec::SpecErrors;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Each variant is something that the caller or the user can act on.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// The pipeline's TOML says something that cannot be planned; all faults of the file at once.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Spec(#[from] SpecErrors),

    /// `what` completes "cannot … `path`".
    #[error("cannot {what} `{}`: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },

    #[error("stage `{stage}`: `{key}` names `{}`, which cannot be read ({reason}); \
             relative paths start at the working directory", path.display())]
    MissingFile { stage: String, key: String, path: PathBuf, reason: String },

    #[error("store `{}` is in use by another run{holder}; wait for it to end, or choose another store with `--store`",
            dir.display())]
    Locked { dir: PathBuf, holder: String },

    #[error("there is no store at `{}`; `vw2-pipe run` makes one", dir.display())]
    NoStore { dir: PathBuf },

    #[error("store `{}` has format {found}, and this program knows formats up to {known}; use a newer vw2-pipe, or \
             another store with `--store`", dir.display())]
    NewerStore { dir: PathBuf, found: i64, known: i64 },

    #[error("store `{}` has the older format {found}; a `vw2-pipe run` with it brings it to format {known}",
            dir.display())]
    OlderStore { dir: PathBuf, found: i64, known: i64 },

    /// `what` completes "cannot … in the store's manifest".
    #[error("cannot {what} in the store's manifest: {source}")]
    #[diagnostic(help(
        "the manifest is `manifest.sqlite` in the store's folder: see that its disk has room and can be written, or \
                       choose another store with `--store`; the same command goes on from what was finished"
    ))]
    Manifest { what: &'static str, source: rusqlite::Error },

    /// The store holds something that this program did not write so.
    #[error("the store holds {what} that cannot be used: {reason}")]
    Corrupt { what: String, reason: String },

    #[error("a table row cannot be {what}: {source}")]
    Arrow { what: &'static str, source: arrow::error::ArrowError },

    /// A stage asks to publish a file at a place that is not below its folder.
    #[error("stage `{stage}`: `{file}` is no plain relative path, so it is not written below `{}`", root.display())]
    Escapes { stage: String, file: String, root: PathBuf },

    /// The plan or run cannot go on, for a reason told in full.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// For `map_err`: names what was tried, and on which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { what, path: path.to_owned(), source }
    }

    pub(crate) fn manifest(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
        move |source| Error::Manifest { what, source }
    }

    pub(crate) fn arrow(what: &'static str) -> impl FnOnce(arrow::error::ArrowError) -> Error {
        move |source| Error::Arrow { what, source }
    }
}
