//! The workspace as its user sees it. Modules in reading order.

#![forbid(unsafe_code)]

mod project;

mod cli;

mod pipelines;

mod incremental;

#[path = "../engine/tests/engine/full_disk.rs"]
mod full_disk;

mod contract;

mod explain;

mod store_tools;

mod media;

mod lying_media;

mod repository;
mod rollout;

mod mixed;
mod training;

mod torch_files;

mod layers;

mod outputs;

mod tidy;
