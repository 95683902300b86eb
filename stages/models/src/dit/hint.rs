//! From a coarse clip to the control hint of the diffusion model: a larger, gray clip.

use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Tensor, TensorData};

/// The hint that the VAE encodes for the control branch (spec 5.7): a coarse clip `[B, 3, T, h, w]`, about [-1, 1], to
/// `[B, 3, T, height, width]` gray in [-1, 1].
pub fn control_hint(coarse: Tensor<5>, height: usize, width: usize) -> Tensor<5> {
    let large = resize(coarse, height, width);
    gray(large.mul_scalar(0.5).add_scalar(0.5).clamp(0.0, 1.0).mul_scalar(255.0))
}

/// Bilinear resize of every frame, [B, C, T, H, W] to [B, C, T, height, width]: pixel centres at half positions, no
/// antialiasing.
pub fn resize(x: Tensor<5>, height: usize, width: usize) -> Tensor<5> {
    let [b, c, t, h, w] = x.dims();
    let options =
        InterpolateOptions::new(InterpolateMode::Bilinear).with_align_corners(false).with_output_size([height, width]);
    interpolate(x.reshape([b, c * t, h, w]), options).reshape([b, c, t, height, width])
}

/// Luma of RGB in 0..255, three times, in [-1, 1]: [B, 3, T, H, W]. Values between the 256 levels stay as they are.
pub fn gray(x: Tensor<5>) -> Tensor<5> {
    let device = x.device();
    // torchvision's weights, which differ from BT.601's in the fourth digit of red.
    let weights = TensorData::new(vec![0.2989f32, 0.587, 0.114], [1, 3, 1, 1, 1]);
    let luma = (x * Tensor::from_data(weights, &device)).sum_dim(1);
    luma.div_scalar(127.5).sub_scalar(1.0).repeat_dim(1, 3)
}
