//! Weights by their published names: read from safetensors and `.pt`/`.pth`, written as safetensors.
//!
//! A model lists each of its parameters once, in [`Named::walk`], under the name that upstream published. From this one
//! listing come strict loading ([`load`]), saving ([`save_model`], [`collect`]) and access by name.
//!
//! Differs from upstream: loading is strict. All missing, unexpected and misshapen names stand in one error.

mod config;
mod file;
mod load;
mod named;
mod save;
mod vet;

pub use config::{config_of, preset};
pub use file::{Dtype, Weights};
pub use load::{Mismatch, load};
pub use named::{Named, Names, Note, Visitor, device_of, shapes};
pub use save::{NamedClone, SaveType, collect, save_model, save_safetensors, to_safetensors};

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod released_width;
#[cfg(test)]
mod tests;
