//! The op on the CPU: parts of fixed size are shared out over threads, so that their number changes no bit.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{Form, FrameNormOps};
use crate::ops::Activation;
use crate::simd::{LANES, sigmoid, silu_slope, sum, total, wide};

/// Values of a frame whose mean and spread are found at once, in the nearest cache; parts are put together in f64.
const PART: usize = 1 << 12;

/// Values of whole channels that one thread takes at a time.
const CHANNELS: usize = 1 << 14;

impl FrameNormOps for Flex {
    fn frame_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias] = [x, gain, bias].map(|tensor| tensor.to_contiguous());
        let [values, gains, biases] = [&x, &gain, &bias].map(slice);
        let [frames, channels, positions] = x.shape().dims();
        let size = channels * positions;
        let (mut y, mut stats) = (vec![0.0; values.len()], Vec::with_capacity(2 * frames));
        if !y.is_empty() {
            let parts: Vec<&[f32]> = values.chunks(size).flat_map(|frame| frame.chunks(PART)).collect();
            let spreads: Vec<(f32, f32)> = parts.par_iter().with_min_len(4).map(|part| spread(part)).collect();
            let parts: Vec<(f64, (f32, f32))> = parts.iter().map(|part| part.len() as f64).zip(spreads).collect();
            for parts in parts.chunks(size.div_ceil(PART)) {
                stats.extend(together(parts, size as f64, f64::from(form.eps)));
            }
            let many = (CHANNELS / positions).max(1);
            let norm = Norm { channels, positions, stats: &stats, gains, biases, then: form.then };
            let parts = y.par_chunks_mut(many * positions).zip(values.par_chunks(many * positions));
            parts.enumerate().for_each(|(part, (y, x))| apply(x, part * many, norm, y));
        }
        let y = FloatTensor::<Self>::from_data(TensorData::new(y, x.shape()));
        stats.resize(2 * frames, 0.0);
        (y, FloatTensor::<Self>::from_data(TensorData::new(stats, [frames, 2])))
    }

    fn frame_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias, grad] = [x, gain, bias, grad].map(|tensor| tensor.to_contiguous());
        let [values, gains, biases, grads, stats] = [&x, &gain, &bias, &grad, &stats].map(slice);
        let [frames, channels, positions] = x.shape().dims();
        let size = channels * positions;
        let mut of_x = vec![0.0; values.len()];
        let (mut of_gain, mut of_bias) = (vec![0.0f64; channels], vec![0.0f64; channels]);
        if !of_x.is_empty() {
            let many = (CHANNELS / positions).max(1);
            let norm = Norm { channels, positions, stats, gains, biases, then: form.then };
            let inputs = values.par_chunks(many * positions).zip(grads.par_chunks(many * positions)).enumerate();
            let sums: Vec<Vec<[f32; 2]>> =
                inputs.map(|(part, (x, grad))| plane_sums(x, grad, part * many, norm)).collect();
            let sums: Vec<[f32; 2]> = sums.concat();
            // What the gradient of every value of a frame has along its normed value, and in common.
            let mut means = Vec::with_capacity(2 * frames);
            for sums in sums.chunks(channels) {
                let mut mean = [0.0f64; 2];
                for (channel, &[along, shift]) in sums.iter().enumerate() {
                    mean[0] += f64::from(gains[channel]) * f64::from(along);
                    mean[1] += f64::from(gains[channel]) * f64::from(shift);
                    of_gain[channel] += f64::from(along);
                    of_bias[channel] += f64::from(shift);
                }
                means.extend(mean.map(|sum| (sum / size as f64) as f32));
            }
            let inputs = values.par_chunks(many * positions).zip(grads.par_chunks(many * positions));
            let parts = of_x.par_chunks_mut(many * positions).zip(inputs).enumerate();
            parts.for_each(|(part, (of_x, (x, grad)))| slopes(x, grad, part * many, norm, &means, of_x));
        }
        let of_x = FloatTensor::<Self>::from_data(TensorData::new(of_x, x.shape()));
        let tensor = |sums: Vec<f64>| {
            let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
            FloatTensor::<Self>::from_data(TensorData::new(sums, [channels]))
        };
        (of_x, tensor(of_gain), tensor(of_bias))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

/// What each value of whole channels is normed with.
#[derive(Clone, Copy)]
struct Norm<'a> {
    channels: usize,
    positions: usize,
    /// Of each frame: mean and reciprocal of the deviation.
    stats: &'a [f32],
    gains: &'a [f32],
    biases: &'a [f32],
    then: Activation,
}

/// What the values of one channel of one frame are normed with.
#[derive(Clone, Copy)]
struct Plane {
    frame: usize,
    mean: f32,
    scale: f32,
    gain: f32,
    bias: f32,
}

impl Norm<'_> {
    /// Counted from channel 0 of frame 0.
    #[inline(always)]
    fn plane(&self, index: usize) -> Plane {
        let (frame, channel) = (index / self.channels, index % self.channels);
        let (mean, scale) = (self.stats[2 * frame], self.stats[2 * frame + 1]);
        Plane { frame, mean, scale, gain: self.gains[channel], bias: self.biases[channel] }
    }
}

/// Mean and reciprocal of the deviation of a frame, from counts, means and summed squares of its parts.
fn together(parts: &[(f64, (f32, f32))], size: f64, eps: f64) -> [f32; 2] {
    let mean = parts.iter().map(|(count, (mean, _))| count * f64::from(*mean)).sum::<f64>() / size;
    let squares =
        parts.iter().map(|(count, (own, squares))| f64::from(*squares) + count * (f64::from(*own) - mean).powi(2));
    [mean as f32, (1.0 / (squares.sum::<f64>() / size + eps).sqrt()) as f32]
}

wide! {
    /// The mean, and the sum of the squares of distances from it.
    fn spread(part: &[f32]) -> (f32, f32) {
        let mean = sum(part, |value| value) / part.len() as f32;
        (mean, sum(part, |value| (value - mean) * (value - mean)))
    }
}

wide! {
    fn apply(x: &[f32], first: usize, norm: Norm<'_>, y: &mut [f32]) {
        let parts = x.chunks_exact(norm.positions).zip(y.chunks_exact_mut(norm.positions));
        for (index, (x, y)) in (first..).zip(parts) {
            let Plane { mean, scale, gain, bias, .. } = norm.plane(index);
            let factor = scale * gain;
            match norm.then {
                Activation::None => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = (x - mean) * factor + bias;
                    }
                }
                Activation::Silu => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        let n = (x - mean) * factor + bias;
                        *y = n * sigmoid(n);
                    }
                }
            }
        }
    }
}

/// The gradient of a value before what follows the norm.
#[inline(always)]
fn slope(n: f32, grad: f32, then: Activation) -> f32 {
    match then {
        Activation::None => grad,
        Activation::Silu => grad * silu_slope(n),
    }
}

wide! {
    /// Of each channel of each frame: the sum of gradients times normed values, and that of gradients.
    fn plane_sums(x: &[f32], grad: &[f32], first: usize, norm: Norm<'_>) -> Vec<[f32; 2]> {
        let parts = x.chunks_exact(norm.positions).zip(grad.chunks_exact(norm.positions));
        let mut sums = Vec::with_capacity(parts.len());
        for (index, (x, grad)) in (first..).zip(parts) {
            let Plane { mean, scale, gain, bias, .. } = norm.plane(index);
            let (mut along, mut shift) = ([0.0; LANES], [0.0; LANES]);
            let (many_x, tail_x) = x.as_chunks::<LANES>();
            let (many_grad, tail_grad) = grad.as_chunks::<LANES>();
            for (x, grad) in many_x.iter().zip(many_grad) {
                for (((along, shift), &x), &grad) in along.iter_mut().zip(&mut shift).zip(x).zip(grad) {
                    let normed = (x - mean) * scale;
                    let slope = slope(normed * gain + bias, grad, norm.then);
                    *along += slope * normed;
                    *shift += slope;
                }
            }
            for (((along, shift), &x), &grad) in along.iter_mut().zip(&mut shift).zip(tail_x).zip(tail_grad) {
                let normed = (x - mean) * scale;
                let slope = slope(normed * gain + bias, grad, norm.then);
                *along += slope * normed;
                *shift += slope;
            }
            sums.push([total(along), total(shift)]);
        }
        sums
    }
}

wide! {
    /// `means` has what the gradients of each frame have along the normed values, and in common.
    fn slopes(x: &[f32], grad: &[f32], first: usize, norm: Norm<'_>, means: &[f32], of_x: &mut [f32]) {
        let inputs = x.chunks_exact(norm.positions).zip(grad.chunks_exact(norm.positions));
        let parts = of_x.chunks_exact_mut(norm.positions).zip(inputs);
        for (index, (of_x, (x, grad))) in (first..).zip(parts) {
            let Plane { frame, mean, scale, gain, bias } = norm.plane(index);
            let (along, shift) = (means[2 * frame], means[2 * frame + 1]);
            for ((of_x, &x), &grad) in of_x.iter_mut().zip(x).zip(grad) {
                let normed = (x - mean) * scale;
                *of_x = scale * (slope(normed * gain + bias, grad, norm.then) * gain - shift - normed * along);
            }
        }
    }
}
