//! Losses of the autoencoders: color, KL, window consistency, Gram matrices, and the weights that change while training.
//!
//! Shapes: clips f32 [B, C, T, H, W] with pixels in [-1, 1]; features f32 [frames, C, H, W].
//! Source: the Cosmos tokenizer losses that VideoWorld 2 trains its dLDM with.
//! Differs: the perceptual loss has a file of its own (`perceptual`), as it wants weights. Optical flow is off upstream, too.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A weight that jumps at given iterations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piecewise {
    pub boundaries: Vec<u64>,
    /// The i-th value applies below the i-th boundary; the last one after all boundaries.
    pub values: Vec<f64>,
}

impl Piecewise {
    /// # Errors
    /// Boundaries that do not rise, or not one value more than boundaries.
    pub fn check(&self) -> Result<()> {
        let Piecewise { boundaries, values } = self;
        if values.len() == boundaries.len() + 1 && boundaries.is_sorted() {
            return Ok(());
        }
        let want = "boundaries must rise, and values be one more than these";
        Err(Error::Config(format!("loss weight: {want}; found {boundaries:?} and {values:?}")))
    }

    /// The weight at an iteration.
    ///
    /// # Panics
    /// There are no values, which [`Piecewise::check`] would have told.
    pub fn at(&self, iteration: u64) -> f64 {
        let passed = self.boundaries.iter().take_while(|&&boundary| iteration >= boundary).count();
        self.values[passed.min(self.values.len() - 1)]
    }
}

/// How a loss per element becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Mean over all elements.
    Mean,
    /// Sum over the elements of a clip; mean over clips.
    Sum,
    /// As `Sum`, over the clip's frames.
    SumPerFrame,
}

/// |x - recon|, times `mask` where there is one (masked elements count as 0 and stay in the mean).
pub fn color(x: Tensor<5>, recon: Tensor<5>, mask: Option<Tensor<5>>, reduction: Reduction) -> Tensor<1> {
    let [clips, _, frames, _, _] = x.dims();
    let distance = (x - recon).abs();
    let distance = match mask {
        Some(mask) => distance * mask,
        None => distance,
    };
    match reduction {
        Reduction::Mean => distance.mean(),
        Reduction::Sum => distance.sum().div_scalar(clips as f64),
        Reduction::SumPerFrame => distance.sum().div_scalar((clips * frames) as f64),
    }
}

/// KL divergence of a normal distribution from the standard one, per element.
pub fn kl<const D: usize>(mean: Tensor<D>, logvar: Tensor<D>) -> Tensor<D> {
    (mean.square() + logvar.clone().exp() - logvar).sub_scalar(1.0).mul_scalar(0.5)
}

/// Overlapping windows of `length` frames, each `step` frames after the last: [B, C, T, H, W] to
/// [B windows, C, length, H, W], the windows of a clip beside each other.
///
/// # Panics
/// The clip is shorter than a window.
pub fn windows(x: Tensor<5>, length: usize, step: usize) -> Tensor<5> {
    let [b, c, t, h, w] = x.dims();
    assert!(
        length > 0 && length <= t && step > 0,
        "windows of {length} frames every {step} do not fit into {t} frames"
    );
    let count = (t - length) / step + 1;
    let windows = (0..count).map(|i| x.clone().narrow(2, i * step, length).unsqueeze_dim::<6>(1)).collect();
    Tensor::cat(windows, 1).reshape([b * count, c, length, h, w])
}

/// Mean |difference| of the frames that neighbouring windows share. `recon` is laid out as by [`windows`].
///
/// # Panics
/// Fewer than two windows a clip, or windows without a common frame.
pub fn consistency(recon: Tensor<5>, windows: usize, step: usize) -> Tensor<1> {
    let [rows, c, length, h, w] = recon.dims();
    assert!(windows > 1 && rows % windows == 0, "{rows} windows are not clips of {windows} (at least 2) windows each");
    assert!(step > 0 && step < length, "windows of {length} frames every {step} share no frame");
    let recon = recon.reshape([rows / windows, windows, c, length, h * w]);
    let before = recon.clone().narrow(1, 0, windows - 1).narrow(3, step, length - step);
    let after = recon.narrow(1, 1, windows - 1).narrow(3, 0, length - step);
    (before - after).abs().mean()
}

/// Products of channels summed over a frame's H W positions and divided by their number: [frames, C, H, W] to [frames, C, C].
pub fn gram_spatial(x: Tensor<4>) -> Tensor<3> {
    let [frames, c, h, w] = x.dims();
    gram(x.reshape([frames, c, h * w]))
}

/// As [`gram_spatial`], over all positions of `frames` frames each: [B frames, C, H, W] to [B, C, C].
pub fn gram_temporal(x: Tensor<4>, frames: usize) -> Tensor<3> {
    let [rows, c, h, w] = x.dims();
    assert!(frames > 0 && rows % frames == 0, "{rows} frames are not clips of {frames} frames");
    let clips = x.reshape([rows / frames, frames, c, h * w]).swap_dims(1, 2);
    gram(clips.reshape([rows / frames, c, frames * h * w]))
}

fn gram(x: Tensor<3>) -> Tensor<3> {
    let positions = x.dims()[2] as f64;
    x.clone().matmul(x.swap_dims(1, 2)).div_scalar(positions)
}

/// What of the reconstruction's loss weighs how much (spec 3.7, without the perceptual term).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconstruction {
    pub color: Piecewise,
    pub reduction: Reduction,
}

impl Default for Reconstruction {
    fn default() -> Reconstruction {
        Reconstruction { color: Piecewise { boundaries: Vec::new(), values: vec![1.0] }, reduction: Reduction::Mean }
    }
}

impl Reconstruction {
    pub fn loss(&self, x: Tensor<5>, recon: Tensor<5>, mask: Option<Tensor<5>>, iteration: u64) -> Tensor<1> {
        color(x, recon, mask, self.reduction).mul_scalar(self.color.at(iteration))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::train::grads::floats;

    #[test]
    fn a_value_applies_below_its_boundary() {
        let weight = Piecewise { boundaries: vec![10, 20], values: vec![1.0, 0.5, 0.25] };
        for (iteration, wanted) in [(0, 1.0), (9, 1.0), (10, 0.5), (19, 0.5), (20, 0.25), (99, 0.25)] {
            assert_eq!(weight.at(iteration), wanted, "at {iteration}");
        }
        assert!(weight.check().is_ok());
        for (boundaries, values) in [(vec![20, 10], vec![1.0; 3]), (vec![], vec![]), (vec![5], vec![1.0])] {
            assert!(Piecewise { boundaries, values }.check().is_err());
        }
    }

    #[test]
    fn windows_of_a_clip_agree_with_themselves() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats(std::array::from_fn::<f32, 12, _>(|i| (i * i) as f32), &device)
            .reshape([2, 1, 6, 1, 1]);
        let cut = windows(x, 4, 1);
        assert_eq!(cut.dims(), [6, 1, 4, 1, 1]);
        assert_eq!(floats(cut.clone())[4..8], [1.0, 4.0, 9.0, 16.0]);
        assert_eq!(floats(consistency(cut, 3, 1)), [0.0]);
    }
}
