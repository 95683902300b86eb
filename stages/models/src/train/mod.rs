//! Training kit: what several trainers share, from the loss of one step to the file that resumes a run.
//!
//! One step:
//!
//! ```no_run
//! # use vw2_models::{Result, train::{Grads, AdamW, AdamWConfig, Schedule}, weights::Named};
//! # use burn::tensor::Tensor;
//! # fn step(model: &mut impl Named, loss: Tensor<1>, optimizer: &mut AdamW, schedule: &Schedule) {
//! let mut grads = Grads::of(&loss, model);
//! grads.clip(1.0, |_| true);
//! let rate = 1e-4 * schedule.factor(optimizer.steps());
//! optimizer.step(model, &grads, rate);
//! # }
//! ```
//!
//! Everything is keyed by published names, so that moments, gradients and weights of a checkpoint can be looked at and
//! compared. A training run is a function of its seeds: minibatches
//! come from [`order`], whose [`order::mix`] also seeds what a step draws.

pub mod checkpoint;
pub mod ema;
mod grads;
mod groups;
pub mod jitter;
mod log;
pub mod losses;
pub mod metrics;
pub mod mixture;
mod optim;
pub mod order;
pub mod perceptual;
mod schedule;

pub use grads::Grads;
pub(crate) use grads::floats;
pub use groups::{Group, group_of};
pub use log::Log;
pub use optim::{AdamW, AdamWConfig, Moments, Rule};
pub use schedule::Schedule;
