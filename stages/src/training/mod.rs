//! What the training stages share: the loop over steps, the optimizer's parameters, reading clips, where training starts,
//! what it publishes.
//!
//! A stage gives a [`Lesson`] to [`train`]; `train-vae` and `train-dldm` share theirs, [`Reconstructor`].

mod trainer;

mod optimizer;

mod live;

mod clips;

mod reconstruct;

mod held_out;

mod listening;

mod pixel_errors;

mod recipe;

mod start;

mod publish;

mod plot;

mod ways;

pub(crate) use clips::{ClipReader, fold, held_out, is_held_out};
pub(crate) use held_out::HeldOut;
pub(crate) use listening::Listening;
pub(crate) use optimizer::OptimizerParams;
pub(crate) use pixel_errors::PixelErrors;
pub(crate) use plot::{Curve, plot_svg};
pub(crate) use publish::{Publication, publish};
pub(crate) use recipe::expand;
pub(crate) use reconstruct::Reconstruction;
pub(crate) use reconstruct::{Drawn, Learn, Picture, Reconstruct, Reconstructed, Reconstructor};
pub(crate) use start::{connected_weights, parent_weights};
pub(crate) use trainer::Upkeep;
pub(crate) use trainer::{Check, Course, Draw, Lesson, Losses, Phase, Trained, train};
pub(crate) use ways::Ways;

/// For parameters that stay out of the fingerprint as long as they do nothing.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
