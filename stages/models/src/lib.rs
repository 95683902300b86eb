//! The models of VideoWorld 2 as Burn modules: VAE, latent-dynamics autoencoder (dLDM), AR transformer over codes,
//! diffusion transformer (DiT) with its sampler.
//!
//! A model is plain arithmetic on tensors: it reads no video, knows no stage and does no I/O but its weights, which carry
//! the published names ([`weights`]). Configurations are data (`presets/*.toml`), and every width, depth, level and patch
//! size comes from them. The device is a run-time value; a model built on an autodiff device can be trained.

#![forbid(unsafe_code)]

pub mod ar;
pub mod dit;
pub mod dldm;
pub mod error;
pub mod nn;
pub mod sampler;
pub mod train;
pub mod vae;
pub mod weights;

pub use error::{Error, Result};
