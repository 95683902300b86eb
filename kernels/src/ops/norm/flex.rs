//! The op on the CPU: rows are shared out over threads.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{Form, NormOps};
use crate::simd::{LANES, sum, total, wide};

/// Rows that one thread takes at a time. Gradients of gains are summed over these first, so that threads change no bit.
const ROWS: usize = 32;

impl NormOps for Flex {
    fn norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias] = [x, gain, bias].map(|tensor| tensor.to_contiguous());
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let [values, gains, biases] = [&x, &gain, &bias].map(slice);
        let (mut y, mut means, mut scales) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
        if !y.is_empty() {
            let parts = y.par_chunks_mut(ROWS * width).zip(values.par_chunks(ROWS * width));
            let stats = means.par_chunks_mut(ROWS).zip(scales.par_chunks_mut(ROWS));
            parts.zip(stats).enumerate().for_each(|(part, ((y, x), (means, scales)))| {
                let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(means.iter_mut().zip(scales));
                for (row, ((y, x), (mean, scale))) in rows.enumerate() {
                    let group = (part * ROWS + row) / (values.len() / width / groups);
                    let gain = &gains[group * width..][..width];
                    let bias = form.biased.then(|| &biases[group * width..][..width]);
                    (*mean, *scale) = norm_row(x, gain, bias, form, y);
                }
            });
        }
        let stats = |values| FloatTensor::<Self>::from_data(TensorData::new(values, [rows]));
        let y = FloatTensor::<Self>::from_data(TensorData::new(y, [rows, width]));
        (y, stats(means), stats(scales))
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, grad] = [x, gain, grad].map(|tensor| tensor.to_contiguous());
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let [values, gains, grads, means, scales] = [&x, &gain, &grad, &mean, &scale].map(slice);
        let (mut of_x, mut of_gain) = (vec![0.0; rows * width], vec![0.0; groups * width]);
        let mut of_bias = of_gain.clone();
        if !of_x.is_empty() {
            // Rows of a group stand together, in parts that begin anew with each group.
            let group_rows = rows / groups;
            let parts: Vec<(usize, usize, &mut [f32])> = of_x
                .chunks_exact_mut(group_rows * width)
                .enumerate()
                .flat_map(|(group, of_x)| {
                    let parts = of_x.chunks_mut(ROWS * width).enumerate();
                    parts.map(move |(part, of_x)| (group, group * group_rows + part * ROWS, of_x))
                })
                .collect();
            let sums: Vec<(usize, Vec<f32>, Vec<f32>)> = parts
                .into_par_iter()
                .map(|(group, start, of_x)| {
                    let (mut of_gain, mut of_bias) = (vec![0.0; width], vec![0.0; width]);
                    let gain = &gains[group * width..][..width];
                    for (row, of_x) in (start..).zip(of_x.chunks_exact_mut(width)) {
                        let [x, grad] = [values, grads].map(|values| &values[row * width..][..width]);
                        let stats = (means[row], scales[row]);
                        norm_row_backward(x, gain, stats, grad, form, of_x, &mut of_gain, &mut of_bias);
                    }
                    (group, of_gain, of_bias)
                })
                .collect();
            for (group, gain, bias) in sums {
                for (sums, terms) in [(&mut of_gain, gain), (&mut of_bias, bias)] {
                    let sums = &mut sums[group * width..][..width];
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
            }
        }
        let tensor = |values, rows| FloatTensor::<Self>::from_data(TensorData::new(values, [rows, width]));
        (tensor(of_x, rows), tensor(of_gain, groups), tensor(of_bias, groups))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

wide! {
    /// One row; its mean and the reciprocal of its deviation.
    fn norm_row(x: &[f32], gain: &[f32], bias: Option<&[f32]>, form: Form, y: &mut [f32]) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if form.centred { sum(x, |value| value) / count } else { 0.0 };
        let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
        let scale = 1.0 / (variance + form.eps).sqrt();
        match bias {
            Some(bias) => {
                for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                    *y = (x - mean) * scale * gain + bias;
                }
            }
            None => {
                for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
                    *y = (x - mean) * scale * gain;
                }
            }
        }
        (mean, scale)
    }
}

wide! {
    /// The gradient of one row; adds to those of gain and bias.
    fn norm_row_backward(
        x: &[f32],
        gain: &[f32],
        stats: (f32, f32),
        grad: &[f32],
        form: Form,
        of_x: &mut [f32],
        of_gain: &mut [f32],
        of_bias: &mut [f32],
    ) {
        let (mean, scale) = stats;
        let count = x.len() as f32;
        // `of_x` holds the gradient of the normed row until its means are known.
        for ((of_x, &grad), &gain) in of_x.iter_mut().zip(grad).zip(gain) {
            *of_x = grad * gain;
        }
        let along = sum_products(of_x, x, mean, scale) / count;
        let shift = if form.centred { sum(of_x, |slope| slope) / count } else { 0.0 };
        for (of_x, &x) in of_x.iter_mut().zip(x) {
            *of_x = scale * (*of_x - shift - (x - mean) * scale * along);
        }
        for (((of_gain, of_bias), &grad), &x) in of_gain.iter_mut().zip(of_bias).zip(grad).zip(x) {
            *of_gain += grad * (x - mean) * scale;
            *of_bias += grad;
        }
    }
}

/// The sum of `a (b - mean) scale`, in fixed lanes.
#[inline(always)]
fn sum_products(a: &[f32], b: &[f32], mean: f32, scale: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (many_a, tail_a) = a.as_chunks::<LANES>();
    let (many_b, tail_b) = b.as_chunks::<LANES>();
    for (a, b) in many_a.iter().zip(many_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * ((b - mean) * scale);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(tail_a).zip(tail_b) {
        *lane += a * ((b - mean) * scale);
    }
    total(lanes)
}
