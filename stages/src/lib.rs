//! The stages: the only place where engine, data, kernels and models meet.
//!
//! One folder per stage kind; its name, its module and its `kind` in TOML are the same word. A new stage is one folder
//! (`mod.rs` with params, `impl Stage` and operator, `tests.rs`, `example.toml`) and one row in [`STAGES`].

#![forbid(unsafe_code)]

use vw2_engine::stage::StageKind;

pub mod tables;

pub mod videos;

pub mod openx;

pub mod images;

pub mod slice;

pub mod decode;

pub mod encode;

pub mod extract;

pub mod export;

pub mod train_vae;

pub mod train_dldm;

pub mod train_dit;

pub mod train_joint;

pub mod train_ar;

pub mod rollout;

pub mod evaluate;

pub mod report;

mod autoregressor;
mod baselines;
mod diffusion;
mod flow;
mod ids;
mod mixing;
mod model_file;
mod scenes;
mod source;
mod training;

/// All stages, in the order of the data's way.
pub static STAGES: &[StageKind] = &[
    StageKind::of::<videos::VideosSource>(),
    StageKind::of::<openx::OpenX>(),
    StageKind::of::<images::ImagesSource>(),
    StageKind::of::<slice::Slice>(),
    StageKind::of::<decode::Decode>(),
    StageKind::of::<encode::Encode>(),
    StageKind::of::<extract::Extract>(),
    StageKind::of::<export::Export>(),
    StageKind::of::<train_vae::TrainVae>(),
    StageKind::of::<train_dldm::TrainDldm>(),
    StageKind::of::<train_dit::TrainDit>(),
    StageKind::of::<train_joint::TrainJoint>(),
    StageKind::of::<train_ar::TrainAr>(),
    StageKind::of::<rollout::Rollout>(),
    StageKind::of::<evaluate::Evaluate>(),
    StageKind::of::<report::Report>(),
];
