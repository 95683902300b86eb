//! A dataflow engine for Arrow tables that computes again only what a change affects.
//!
//! ```text
//! TOML --spec--> PipelineSpec --plan--> Plan --run--> Report
//!                                         |     ^
//!                                         '-----+---- Store (memo, published rows, blobs)
//! ```
//!
//! * [`spec`] reads the TOML and looks nothing up; [`plan`] matches it with a table of [`stage::StageKind`]s and opens no
//!   file; [`run`] brings what is published in a [`store`] to what the plan wants.
//! * Timely moves batches, differential moves keys. Nothing outside this crate names a type of theirs.
//! * A result is found by the hash of everything that determines it ([`fingerprint`]); names, paths, threads and
//!   companions in a batch never count.
//! * No dataflow state is saved: a run compares what is wanted with what is published, so a crash at any point is healed
//!   by the next run.
//! * A stage's failure concerns its unit: it ends in quarantine, and never reaches a timely worker.

#![forbid(unsafe_code)]

pub mod spec;

pub mod stage;

pub mod plan;

pub mod fingerprint;

pub mod batch;

pub mod derive;

pub mod pool;

pub mod run;

pub mod store;

pub mod report;

pub mod explain;

pub mod recompute;

mod error;

pub use error::{Error, Result};
pub use fingerprint::{Fingerprint, Hash};
