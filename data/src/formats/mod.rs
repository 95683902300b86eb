//! Files that hold a data set's descriptions and codes.

pub mod annotations;

pub mod clip_name;

pub mod code_dataset;

pub mod episodes;

pub mod latent_code_infos;

pub mod metrics;

pub mod negative_embedding;

pub mod openx_lists;

pub mod torch;

pub mod upstream_codes;

pub mod videocraft_codes;
