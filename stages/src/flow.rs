//! The rectified-flow loss of a minibatch: what `train-dit` and `train-joint` share.
//!
//! Source: spec sections 5.1, 5.2 and 7.3. The first latent frame is given; noise follows from a seed.

use burn::tensor::{Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vw2_engine::stage::StageError;
use vw2_models::dit::{Conditions, Denoiser, VideoDit, flow_loss};
use vw2_models::sampler::{NumpyNormal, TrainingSigmas};

/// A noise level for each of `clips` clips of so many latent frames. `high_share`: how often it is of the high range.
pub(crate) fn sigmas(clips: usize, latent_frames: usize, high_share: f64, seed: u64) -> Vec<f64> {
    let levels = TrainingSigmas { high_share, ..TrainingSigmas::video(latent_frames) };
    let mut rng = StdRng::seed_from_u64(seed);
    (0..clips).map(|_| levels.at(rng.random(), rng.random())).collect()
}

/// The noise level of clip `index` of `count`, where they are spread evenly over the training distribution.
pub(crate) fn spread(index: usize, count: usize, latent_frames: usize) -> f64 {
    let levels = TrainingSigmas { high_share: 0.0, ..TrainingSigmas::video(latent_frames) };
    levels.at(1.0, (index as f64 + 0.5) / count as f64)
}

/// The mean loss of clean latents and hints `[B, C, T, H, W]` with tokens `[B, N, D]`, at a noise level for each clip.
pub(crate) fn loss(
    dit: &VideoDit,
    (clean, hint, context): (Tensor<5>, Tensor<5>, Tensor<3>),
    sigmas: &[f64],
    seed: u64,
) -> Result<Tensor<1>, StageError> {
    let shape = clean.dims();
    let noise = NumpyNormal::new(seed as u32).take(shape.iter().product());
    let per_clip = noise.len() / sigmas.len();
    let noise = noise.iter().enumerate().map(|(i, value)| value * sigmas[i / per_clip] as f32).collect::<Vec<f32>>();
    let x = clean.clone() + Tensor::from_data(TensorData::new(noise, shape), &clean.device());
    let conditions = Conditions { clean: clean.clone(), given: 1, hint: Some(hint), padding: None, fps: None };
    let predicted = Denoiser::new(dit, conditions)?.clean(x, sigmas, context)?;
    Ok(flow_loss(clean, predicted, sigmas).mean())
}
