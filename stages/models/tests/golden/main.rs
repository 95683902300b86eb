//! The models against recorded tensors of their publication. Every case in the golden folder is found by the prefix of its
//! file names and built from its metadata, whatever its sizes. `VW2_GOLDEN` names another folder than this crate's own.

mod harness;

mod ar;
mod dit;
mod dldm;
mod losses;
mod patcher;
mod quantizer;
mod sampler;
mod vae;
