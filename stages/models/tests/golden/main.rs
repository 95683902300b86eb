//! The models against recorded tensors of their publication. Every case in the golden folder is found by the prefix of its
//! file names and built from its metadata, whatever its sizes. `VW2_GOLDEN` names another folder than this crate's own.

mod harness;

mod ar;
mod dldm;
mod losses;
mod patcher;
mod quantizer;
mod vae;
