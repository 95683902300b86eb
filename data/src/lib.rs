//! The nouns: tables that stages exchange, video and image files, and the file formats of data sets.
//!
//! Nothing here knows a device, a model or the engine. The tables, in the order of the data's way:
//!
//! ```text
//! videos ──> clips ──> frames ──┬──> latents
//! (header)   (which    (pixels) │    (VAE)
//!            frames)            └──> codes ──> checkpoints ──> rollouts
//! images ───────────────────────────(dLDM)────(weights)───────(MP4)
//! (start scenes)
//! ```
//!
//! Each table is one file with one type that has a `schema()`, a `view(&RecordBatch)` which checks names and types once
//! (after that, access cannot fail) and a `row(…)` which builds a batch of exactly one row. [`sampling`] turns a video's
//! length into clips, [`media`] reads and writes pictures, [`formats`] reads and writes data sets.

#![forbid(unsafe_code)]

mod columns;
mod tensor;

pub mod video;

pub mod image;

pub mod clip;

pub mod frame;

pub mod latent;

pub mod code;

pub mod checkpoint;

pub mod shard;

pub mod rollout;

pub mod evaluation;

pub mod sampling;

pub mod media;

pub mod formats;

#[cfg(test)]
mod test_support;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use clip::{Clip, Clips, Origin};
pub use code::{Code, Codes, Feature};
pub use evaluation::{Evaluation, Evaluations};
pub use frame::Frames;
pub use image::{ImageInfo, Images};
pub use latent::Latents;
pub use media::MediaError;
pub use rollout::{Rollout, Rollouts};
pub use shard::{Shard, Shards};
pub use video::{VideoInfo, Videos};

/// What can be wrong with a table or a data set's file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("table `{table}`: no column `{column}`, but {found}")]
    NoColumn { table: &'static str, column: String, found: String },

    #[error("table `{table}`: column `{column}` wants {want}, found {found}")]
    ColumnType { table: &'static str, column: String, want: String, found: String },

    #[error("table `{table}`: column `{column}` has {nulls} nulls, but it must always have a value")]
    Null { table: &'static str, column: String, nulls: usize },

    #[error("table `{table}`: column `{column}`: {values} values do not fill the shape {shape:?}")]
    Shape { table: &'static str, column: &'static str, values: usize, shape: Vec<i64> },

    #[error(
        "table `{table}`: {values} values in one row are more than the 2147483647 which a list holds; use a smaller size or fewer frames"
    )]
    TooLong { table: &'static str, values: usize },

    /// `place` is a line, a row or a byte; `reason` also says what to do.
    #[error("{file}: {place}: {reason}")]
    Format { file: String, place: String, reason: String },

    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },

    #[error("{file}: {source}")]
    Parquet { file: String, source: parquet::errors::ParquetError },

    #[error(transparent)]
    Media(#[from] MediaError),
}

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
