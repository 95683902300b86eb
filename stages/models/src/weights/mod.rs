//! Weights by their published names: read from safetensors and `.pt`/`.pth`, written as either.
//!
//! A model lists each of its parameters once, in [`Named::walk`], under the name that upstream published. From this one
//! listing come strict loading ([`load`]), saving ([`save_model`], [`collect`]), access by name, and the answer to which
//! models a file holds ([`fits`]).
//!
//! Differs from upstream: loading is strict. All missing, unexpected and misshapen names stand in one error.

mod config;
mod convert;
mod file;
mod fit;
mod layout;
mod load;
mod named;
mod renaming;
mod save;
mod vet;

pub use config::{config_of, preset, presets};
pub use convert::{Conversion, Format, Lost};
pub use file::{Dtype, Weights};
pub use fit::{Fit, Origin, Verdict, fits};
pub use load::{Mismatch, Precision, compare, compare_among, load, load_among, load_as};
pub use named::{Named, Names, Note, Visitor, device_of, shapes};
pub use renaming::Renaming;
pub use save::{NamedClone, SaveType, collect, save_model, save_safetensors, to_safetensors};

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod released_width;
#[cfg(test)]
mod tests;
