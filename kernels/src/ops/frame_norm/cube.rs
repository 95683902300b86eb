//! The op on CubeCL devices: parts of a frame are summed by cubes of 128 units and put together by one more; what remains
//! is done value by value.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Form, FrameNormOps};
use crate::cube::{UNITS, dense, silu_slope, total};
use crate::ops::Activation;

/// Values of a frame that one cube sums.
const PART: usize = 1 << 14;

/// One cube per part of a frame: its mean, and the sum of the squares of distances from it.
#[cube(launch)]
fn spreads(x: &[f32], parts: &mut [f32], size: u32, per_frame: u32) {
    let (index, unit) = (CUBE_POS as usize, UNIT_POS as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let frame = index / per_frame as usize * size as usize;
    let start = index % per_frame as usize * PART;
    let mut end = usize::min(start + PART, size as usize);
    if 2 * index >= parts.len() {
        end = start;
    }
    let mut sum = 0.0f32;
    let mut at = start + unit;
    while at < end {
        sum += x[frame + at];
        at += UNITS;
    }
    let mean = total(sum, &mut shared) / f32::cast_from((end - start) as u32);
    let mut squares = 0.0f32;
    at = start + unit;
    while at < end {
        let value = x[frame + at] - mean;
        squares += value * value;
        at += UNITS;
    }
    squares = total(squares, &mut shared);
    if unit == 0 && 2 * index < parts.len() {
        parts[2 * index] = mean;
        parts[2 * index + 1] = squares;
    }
}

/// One cube per frame: mean and reciprocal of the deviation from those of its parts.
#[cube(launch)]
fn together(parts: &[f32], stats: &mut [f32], size: u32, per_frame: u32, eps: f32) {
    let (frame, unit) = (CUBE_POS as usize, UNIT_POS as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let (size, per_frame) = (size as usize, per_frame as usize);
    let mut end = per_frame;
    if 2 * frame >= stats.len() {
        end = 0;
    }
    let whole = f32::cast_from(size as u32);
    let mut sum = 0.0f32;
    let mut part = unit;
    while part < end {
        let count = usize::min((part + 1) * PART, size) - part * PART;
        sum += parts[2 * (frame * per_frame + part)] * (f32::cast_from(count as u32) / whole);
        part += UNITS;
    }
    let mean = total(sum, &mut shared);
    sum = 0.0f32;
    part = unit;
    while part < end {
        let count = usize::min((part + 1) * PART, size) - part * PART;
        let distance = parts[2 * (frame * per_frame + part)] - mean;
        sum += parts[2 * (frame * per_frame + part) + 1] + f32::cast_from(count as u32) * distance * distance;
        part += UNITS;
    }
    let variance = total(sum, &mut shared) / whole;
    if unit == 0 && 2 * frame < stats.len() {
        stats[2 * frame] = mean;
        stats[2 * frame + 1] = 1.0f32 / f32::sqrt(variance + eps);
    }
}

/// One unit per value.
#[cube(launch)]
fn apply(
    x: &[f32],
    stats: &[f32],
    gain: &[f32],
    bias: &[f32],
    y: &mut [f32],
    size: u32,
    positions: u32,
    #[comptime] then: Activation,
) {
    if ABSOLUTE_POS < y.len() {
        let frame = ABSOLUTE_POS / size as usize;
        let channel = ABSOLUTE_POS % size as usize / positions as usize;
        let mut value = (x[ABSOLUTE_POS] - stats[2 * frame]) * stats[2 * frame + 1] * gain[channel] + bias[channel];
        if comptime!(then == Activation::Silu) {
            value /= 1.0f32 + f32::exp(-value);
        }
        y[ABSOLUTE_POS] = value;
    }
}

/// One cube per channel of a frame: the sum of gradients times normed values, and that of gradients.
#[cube(launch)]
fn plane_sums(
    x: &[f32],
    stats: &[f32],
    gain: &[f32],
    bias: &[f32],
    grad: &[f32],
    sums: &mut [f32],
    channels: u32,
    positions: u32,
    #[comptime] then: Activation,
) {
    let (plane, unit) = (CUBE_POS as usize, UNIT_POS as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let channel = plane % channels as usize;
    let frame = plane / channels as usize;
    let mut end = positions as usize;
    let mut mean = 0.0f32;
    let mut scale = 0.0f32;
    if 2 * plane >= sums.len() {
        end = 0;
    } else {
        mean = stats[2 * frame];
        scale = stats[2 * frame + 1];
    }
    let start = plane * positions as usize;
    let mut along = 0.0f32;
    let mut shift = 0.0f32;
    let mut at = unit;
    while at < end {
        let normed = (x[start + at] - mean) * scale;
        let slope = grad[start + at] * silu_slope(normed * gain[channel] + bias[channel], then);
        along += slope * normed;
        shift += slope;
        at += UNITS;
    }
    along = total(along, &mut shared);
    shift = total(shift, &mut shared);
    if unit == 0 && 2 * plane < sums.len() {
        sums[2 * plane] = along;
        sums[2 * plane + 1] = shift;
    }
}

/// One cube per frame: the means of both sums times the gains.
#[cube(launch)]
fn frame_means(sums: &[f32], gain: &[f32], means: &mut [f32], channels: u32, size: u32) {
    let (frame, unit) = (CUBE_POS as usize, UNIT_POS as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut end = channels as usize;
    if 2 * frame >= means.len() {
        end = 0;
    }
    let mut along = 0.0f32;
    let mut shift = 0.0f32;
    let mut channel = unit;
    while channel < end {
        let at = 2 * (frame * channels as usize + channel);
        along += gain[channel] * sums[at];
        shift += gain[channel] * sums[at + 1];
        channel += UNITS;
    }
    let count = f32::cast_from(size);
    along = total(along, &mut shared) / count;
    shift = total(shift, &mut shared) / count;
    if unit == 0 && 2 * frame < means.len() {
        means[2 * frame] = along;
        means[2 * frame + 1] = shift;
    }
}

/// One unit per channel: goes over the frames.
#[cube(launch)]
fn gains(sums: &[f32], of_gain: &mut [f32], of_bias: &mut [f32], frames: u32) {
    if ABSOLUTE_POS < of_gain.len() {
        let channels = of_gain.len();
        let mut gain = 0.0f32;
        let mut bias = 0.0f32;
        for frame in 0..frames as usize {
            gain += sums[2 * (frame * channels + ABSOLUTE_POS)];
            bias += sums[2 * (frame * channels + ABSOLUTE_POS) + 1];
        }
        of_gain[ABSOLUTE_POS] = gain;
        of_bias[ABSOLUTE_POS] = bias;
    }
}

/// One unit per value.
#[cube(launch)]
fn slopes(
    x: &[f32],
    stats: &[f32],
    gain: &[f32],
    bias: &[f32],
    means: &[f32],
    grad: &[f32],
    of_x: &mut [f32],
    size: u32,
    positions: u32,
    #[comptime] then: Activation,
) {
    if ABSOLUTE_POS < of_x.len() {
        let frame = ABSOLUTE_POS / size as usize;
        let channel = ABSOLUTE_POS % size as usize / positions as usize;
        let scale = stats[2 * frame + 1];
        let normed = (x[ABSOLUTE_POS] - stats[2 * frame]) * scale;
        let slope = grad[ABSOLUTE_POS] * silu_slope(normed * gain[channel] + bias[channel], then) * gain[channel];
        of_x[ABSOLUTE_POS] = scale * (slope - means[2 * frame + 1] - normed * means[2 * frame]);
    }
}

fn like(x: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, DType::F32)
}

impl FrameNormOps for CubeBackend {
    fn frame_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias] = [x, gain, bias].map(dense);
        let client = x.client.clone();
        let [frames, channels, positions] = x.shape().dims();
        let size = channels * positions;
        let (y, stats) = (like(&x, x.shape()), like(&x, Shape::new([frames, 2])));
        if frames * size > 0 {
            let per_frame = size.div_ceil(PART);
            let parts = like(&x, Shape::new([frames * per_frame, 2]));
            let dim = CubeDim::new_1d(UNITS as u32);
            spreads::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * per_frame * UNITS, dim),
                dim,
                x.clone().into_buffer_arg(),
                parts.clone().into_buffer_arg(),
                size as u32,
                per_frame as u32,
            );
            together::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * UNITS, dim),
                dim,
                parts.into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                size as u32,
                per_frame as u32,
                form.eps,
            );
            let dim = CubeDim::new_1d(256);
            apply::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * size, dim),
                dim,
                x.into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                gain.into_buffer_arg(),
                bias.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                size as u32,
                positions as u32,
                form.then,
            );
        }
        (y, stats)
    }

    fn frame_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias, stats, grad] = [x, gain, bias, stats, grad].map(dense);
        let client = x.client.clone();
        let [frames, channels, positions] = x.shape().dims();
        let size = channels * positions;
        let of_x = like(&x, x.shape());
        let (of_gain, of_bias) = (like(&x, gain.shape()), like(&x, gain.shape()));
        if frames * size > 0 {
            let sums = like(&x, Shape::new([frames * channels, 2]));
            let means = like(&x, Shape::new([frames, 2]));
            let dim = CubeDim::new_1d(UNITS as u32);
            plane_sums::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * channels * UNITS, dim),
                dim,
                x.clone().into_buffer_arg(),
                stats.clone().into_buffer_arg(),
                gain.clone().into_buffer_arg(),
                bias.clone().into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                sums.clone().into_buffer_arg(),
                channels as u32,
                positions as u32,
                form.then,
            );
            frame_means::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * UNITS, dim),
                dim,
                sums.clone().into_buffer_arg(),
                gain.clone().into_buffer_arg(),
                means.clone().into_buffer_arg(),
                channels as u32,
                size as u32,
            );
            gains::launch(
                &client,
                calculate_cube_count_elemwise(&client, channels, dim),
                dim,
                sums.into_buffer_arg(),
                of_gain.clone().into_buffer_arg(),
                of_bias.clone().into_buffer_arg(),
                frames as u32,
            );
            let dim = CubeDim::new_1d(256);
            slopes::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * size, dim),
                dim,
                x.into_buffer_arg(),
                stats.into_buffer_arg(),
                gain.into_buffer_arg(),
                bias.into_buffer_arg(),
                means.into_buffer_arg(),
                grad.into_buffer_arg(),
                of_x.clone().into_buffer_arg(),
                size as u32,
                positions as u32,
                form.then,
            );
        }
        (of_x, of_gain, of_bias)
    }
}
