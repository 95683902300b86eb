//! The op on CubeCL devices: a cube of 128 units shares a row; gradients of gains go down the columns.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Form, NormOps};
use crate::cube::{UNITS, dense, total};

/// One cube per row; units take every 128th column.
#[cube(launch)]
fn forward(
    x: &[f32],
    gain: &[f32],
    bias: &[f32],
    y: &mut [f32],
    means: &mut [f32],
    scales: &mut [f32],
    width: u32,
    group_rows: u32,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] biased: bool,
) {
    let (row, unit, width) = (CUBE_POS as usize, UNIT_POS as usize, width as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut end = width;
    if row >= means.len() {
        end = 0;
    }
    let count = f32::cast_from(width as u32);
    let mut mean = 0.0f32;
    if comptime!(centred) {
        let mut sum = 0.0f32;
        let mut at = unit;
        while at < end {
            sum += x[row * width + at];
            at += UNITS;
        }
        mean = total(sum, &mut shared) / count;
    }
    let mut sum = 0.0f32;
    let mut at = unit;
    while at < end {
        let value = x[row * width + at] - mean;
        sum += value * value;
        at += UNITS;
    }
    let scale = 1.0f32 / f32::sqrt(total(sum, &mut shared) / count + eps);
    let group = row as u32 / group_rows;
    let group = group as usize * width;
    at = unit;
    while at < end {
        let mut value = (x[row * width + at] - mean) * scale * gain[group + at];
        if comptime!(biased) {
            value += bias[group + at];
        }
        y[row * width + at] = value;
        at += UNITS;
    }
    if unit == 0 && row < means.len() {
        means[row] = mean;
        scales[row] = scale;
    }
}

/// One cube per row; units take every 128th column.
#[cube(launch)]
fn backward_rows(
    x: &[f32],
    gain: &[f32],
    means: &[f32],
    scales: &[f32],
    grad: &[f32],
    of_x: &mut [f32],
    width: u32,
    group_rows: u32,
    #[comptime] centred: bool,
) {
    let (row, unit, width) = (CUBE_POS as usize, UNIT_POS as usize, width as usize);
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut end = width;
    let mut mean = 0.0f32;
    let mut scale = 0.0f32;
    if row >= means.len() {
        end = 0;
    } else {
        mean = means[row];
        scale = scales[row];
    }
    let count = f32::cast_from(width as u32);
    let group = row as u32 / group_rows;
    let group = group as usize * width;
    let mut along = 0.0f32;
    let mut shift = 0.0f32;
    let mut at = unit;
    while at < end {
        let slope = grad[row * width + at] * gain[group + at];
        along += slope * ((x[row * width + at] - mean) * scale);
        shift += slope;
        at += UNITS;
    }
    along = total(along, &mut shared) / count;
    if comptime!(centred) {
        shift = total(shift, &mut shared) / count;
    } else {
        shift = 0.0f32;
    }
    at = unit;
    while at < end {
        let slope = grad[row * width + at] * gain[group + at];
        of_x[row * width + at] = scale * (slope - shift - (x[row * width + at] - mean) * scale * along);
        at += UNITS;
    }
}

/// One unit per gain: goes down the rows of its group.
#[cube(launch)]
fn backward_gains(
    x: &[f32],
    means: &[f32],
    scales: &[f32],
    grad: &[f32],
    of_gain: &mut [f32],
    of_bias: &mut [f32],
    width: u32,
    group_rows: u32,
) {
    if ABSOLUTE_POS < of_gain.len() {
        let width = width as usize;
        let column = ABSOLUTE_POS % width;
        let first = ABSOLUTE_POS / width * group_rows as usize;
        let mut gain = 0.0f32;
        let mut bias = 0.0f32;
        for row in first..first + group_rows as usize {
            let slope = grad[row * width + column];
            gain += slope * ((x[row * width + column] - means[row]) * scales[row]);
            bias += slope;
        }
        of_gain[ABSOLUTE_POS] = gain;
        of_bias[ABSOLUTE_POS] = bias;
    }
}

fn like(x: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
}

impl NormOps for CubeBackend {
    fn norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias] = [x, gain, bias].map(dense);
        let client = x.client.clone();
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let y = like(&x);
        let row = || empty_device_contiguous_dtype(client.clone(), x.device.clone(), Shape::new([rows]), DType::F32);
        let (means, scales) = (row(), row());
        if rows * width > 0 {
            let dim = CubeDim::new_1d(UNITS as u32);
            forward::launch(
                &client,
                calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                dim,
                x.clone().into_buffer_arg(),
                gain.into_buffer_arg(),
                bias.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                means.clone().into_buffer_arg(),
                scales.clone().into_buffer_arg(),
                width as u32,
                (rows / groups) as u32,
                form.eps,
                form.centred,
                form.biased,
            );
        }
        (y, means, scales)
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, mean, scale, grad] = [x, gain, mean, scale, grad].map(dense);
        let client = x.client.clone();
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let (of_x, of_gain, of_bias) = (like(&x), like(&gain), like(&gain));
        if rows * width > 0 {
            let dim = CubeDim::new_1d(UNITS as u32);
            backward_rows::launch(
                &client,
                calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                dim,
                x.clone().into_buffer_arg(),
                gain.into_buffer_arg(),
                mean.clone().into_buffer_arg(),
                scale.clone().into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                of_x.clone().into_buffer_arg(),
                width as u32,
                (rows / groups) as u32,
                form.centred,
            );
            backward_gains::launch(
                &client,
                calculate_cube_count_elemwise(&client, groups * width, dim),
                dim,
                x.into_buffer_arg(),
                mean.into_buffer_arg(),
                scale.into_buffer_arg(),
                grad.into_buffer_arg(),
                of_gain.clone().into_buffer_arg(),
                of_bias.clone().into_buffer_arg(),
                width as u32,
                (rows / groups) as u32,
            );
        }
        (of_x, of_gain, of_bias)
    }
}
