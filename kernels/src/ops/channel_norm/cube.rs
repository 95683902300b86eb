//! The op on CubeCL devices: a unit per position goes through the channels twice; gains' gradients go over the positions.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{ChannelNormOps, TINY, most};
use crate::cube::{UNITS, dense, silu_slope, total};
use crate::ops::Activation;

/// One unit per position; neighbouring units touch neighbouring memory.
#[cube(launch)]
fn forward(x: &[f32], gain: &[f32], y: &mut [f32], factors: &mut [f32], positions: u32, #[comptime] then: Activation) {
    if ABSOLUTE_POS < factors.len() {
        let (channels, positions) = (gain.len(), positions as usize);
        let start = ABSOLUTE_POS / positions * channels * positions + ABSOLUTE_POS % positions;
        let mut sum = 0.0f32;
        for channel in 0..channels {
            let value = x[start + channel * positions];
            sum += value * value;
        }
        let factor = f32::sqrt(f32::cast_from(channels as u32)) / f32::max(f32::sqrt(sum), TINY);
        for channel in 0..channels {
            let mut value = x[start + channel * positions] * factor * gain[channel];
            if comptime!(then == Activation::Silu) {
                value /= 1.0f32 + f32::exp(-value);
            }
            y[start + channel * positions] = value;
        }
        factors[ABSOLUTE_POS] = factor;
    }
}

/// One unit per position. Factors from `most` on belong to positions without length.
#[cube(launch)]
fn backward(
    x: &[f32],
    gain: &[f32],
    factors: &[f32],
    grad: &[f32],
    of_x: &mut [f32],
    positions: u32,
    most: f32,
    #[comptime] then: Activation,
) {
    if ABSOLUTE_POS < factors.len() {
        let (channels, positions) = (gain.len(), positions as usize);
        let start = ABSOLUTE_POS / positions * channels * positions + ABSOLUTE_POS % positions;
        let factor = factors[ABSOLUTE_POS];
        let mut along = 0.0f32;
        for channel in 0..channels {
            let at = start + channel * positions;
            let slope = grad[at] * silu_slope(x[at] * factor * gain[channel], then) * gain[channel];
            along += slope * x[at];
        }
        if factor < most {
            along *= factor * factor / f32::cast_from(channels as u32);
        } else {
            along = 0.0f32;
        }
        for channel in 0..channels {
            let at = start + channel * positions;
            let slope = grad[at] * silu_slope(x[at] * factor * gain[channel], then) * gain[channel];
            of_x[at] = factor * (slope - x[at] * along);
        }
    }
}

/// One cube per channel; units take every 128th position.
#[cube(launch)]
fn gains(
    x: &[f32],
    gain: &[f32],
    factors: &[f32],
    grad: &[f32],
    of_gain: &mut [f32],
    positions: u32,
    #[comptime] then: Activation,
) {
    let (channel, unit) = (CUBE_POS as usize, UNIT_POS as usize);
    let (channels, positions) = (gain.len(), positions as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut end = factors.len();
    let mut own = 0.0f32;
    if channel >= channels {
        end = 0;
    } else {
        own = gain[channel];
    }
    let mut sum = 0.0f32;
    let mut position = unit;
    while position < end {
        let at = (position / positions * channels + channel) * positions + position % positions;
        let normed = x[at] * factors[position];
        sum += grad[at] * silu_slope(normed * own, then) * normed;
        position += UNITS;
    }
    sum = total(sum, &mut shared);
    if unit == 0 && channel < channels {
        of_gain[channel] = sum;
    }
}

fn like(x: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, DType::F32)
}

impl ChannelNormOps for CubeBackend {
    fn channel_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain] = [x, gain].map(dense);
        let client = x.client.clone();
        let [frames, channels, positions] = x.shape().dims();
        let (y, factors) = (like(&x, x.shape()), like(&x, Shape::new([frames, positions])));
        if frames * channels * positions > 0 {
            let dim = CubeDim::new_1d(256);
            forward::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * positions, dim),
                dim,
                x.into_buffer_arg(),
                gain.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                factors.clone().into_buffer_arg(),
                positions as u32,
                then,
            );
        }
        (y, factors)
    }

    fn channel_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, factors, grad] = [x, gain, factors, grad].map(dense);
        let client = x.client.clone();
        let [frames, channels, positions] = x.shape().dims();
        let (of_x, of_gain) = (like(&x, x.shape()), like(&x, gain.shape()));
        if frames * channels * positions > 0 {
            let dim = CubeDim::new_1d(256);
            backward::launch(
                &client,
                calculate_cube_count_elemwise(&client, frames * positions, dim),
                dim,
                x.clone().into_buffer_arg(),
                gain.clone().into_buffer_arg(),
                factors.clone().into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                of_x.clone().into_buffer_arg(),
                positions as u32,
                // A device may divide with a rounding of its own.
                most(channels) * 0.999,
                then,
            );
            let dim = CubeDim::new_1d(UNITS as u32);
            gains::launch(
                &client,
                calculate_cube_count_elemwise(&client, channels * UNITS, dim),
                dim,
                x.into_buffer_arg(),
                gain.into_buffer_arg(),
                factors.into_buffer_arg(),
                grad.into_buffer_arg(),
                of_gain.clone().into_buffer_arg(),
                positions as u32,
                then,
            );
        }
        (of_x, of_gain)
    }
}
