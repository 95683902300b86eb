//! The op on the CPU: blocks of positions, small enough that all their channels stay in a near cache, are shared out over
//! threads.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{ChannelNormOps, TINY, most};
use crate::ops::Activation;
use crate::simd::{LANES, sigmoid, silu_slope, total, wide};

/// Values of a block, about: 256 KiB.
const BLOCK: usize = 1 << 16;

impl ChannelNormOps for Flex {
    fn channel_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain] = [x, gain].map(|tensor| tensor.to_contiguous());
        let [values, gains] = [&x, &gain].map(slice);
        let [frames, channels, positions] = x.shape().dims();
        let mut y = vec![0.0; values.len()];
        let factors: Vec<Vec<f32>> = blocks(&mut y, [channels, positions])
            .into_par_iter()
            .map(|mut block| {
                let x = Frame { values: &values[block.frame * channels * positions..], positions, start: block.start };
                norm_block(x, gains, then, &mut block.planes)
            })
            .collect();
        let mut factors: Vec<f32> = factors.concat();
        factors.resize(frames * positions, 0.0);
        let y = FloatTensor::<Self>::from_data(TensorData::new(y, x.shape()));
        (y, FloatTensor::<Self>::from_data(TensorData::new(factors, [frames, positions])))
    }

    /// Gradients of gains are summed over each block first, so that threads change no bit.
    fn channel_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, grad] = [x, gain, grad].map(|tensor| tensor.to_contiguous());
        let [values, gains, factors, grads] = [&x, &gain, &factors, &grad].map(slice);
        let [_, channels, positions] = x.shape().dims();
        let mut of_x = vec![0.0; values.len()];
        let sums: Vec<Vec<f32>> = blocks(&mut of_x, [channels, positions])
            .into_par_iter()
            .map(|mut block| {
                let (frame, start) = (block.frame * channels * positions, block.start);
                let [x, grad] = [values, grads].map(|values| Frame { values: &values[frame..], positions, start });
                let factors = &factors[block.frame * positions + start..];
                norm_block_backward(x, grad, gains, factors, then, &mut block.planes)
            })
            .collect();
        let mut of_gain = vec![0.0f64; channels];
        for sums in sums {
            of_gain.iter_mut().zip(sums).for_each(|(gain, sum)| *gain += f64::from(sum));
        }
        let of_gain: Vec<f32> = of_gain.into_iter().map(|sum| sum as f32).collect();
        let of_x = FloatTensor::<Self>::from_data(TensorData::new(of_x, x.shape()));
        (of_x, FloatTensor::<Self>::from_data(TensorData::new(of_gain, [channels])))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

/// Where the result of some positions of a frame goes, channel by channel.
struct Block<'a> {
    frame: usize,
    start: usize,
    planes: Vec<&'a mut [f32]>,
}

/// All blocks, in the order of frames and positions.
fn blocks(y: &mut [f32], [channels, positions]: [usize; 2]) -> Vec<Block<'_>> {
    let width = (BLOCK / channels.max(1)).next_multiple_of(LANES);
    let mut all = Vec::new();
    for (frame, y) in y.chunks_exact_mut((channels * positions).max(1)).enumerate() {
        let starts = (0..positions).step_by(width);
        let mut blocks: Vec<Block<'_>> =
            starts.map(|start| Block { frame, start, planes: Vec::with_capacity(channels) }).collect();
        for plane in y.chunks_exact_mut(positions) {
            for (block, part) in blocks.iter_mut().zip(plane.chunks_mut(width)) {
                block.planes.push(part);
            }
        }
        all.extend(blocks);
    }
    all
}

/// A frame's values, of which those of a block's positions are read.
#[derive(Clone, Copy)]
struct Frame<'a> {
    values: &'a [f32],
    positions: usize,
    start: usize,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    fn plane(&self, channel: usize, width: usize) -> &'a [f32] {
        &self.values[channel * self.positions + self.start..][..width]
    }
}

wide! {
    /// Yields what each position is multiplied by.
    fn norm_block(x: Frame<'_>, gains: &[f32], then: Activation, y: &mut [&mut [f32]]) -> Vec<f32> {
        let width = y[0].len();
        let mut factors = vec![0.0; width];
        for channel in 0..gains.len() {
            for (sum, &x) in factors.iter_mut().zip(x.plane(channel, width)) {
                *sum += x * x;
            }
        }
        let root = (gains.len() as f32).sqrt();
        for factor in &mut factors {
            let length = factor.sqrt();
            *factor = root / if length > TINY { length } else { TINY };
        }
        for ((channel, y), &gain) in y.iter_mut().enumerate().zip(gains) {
            let inputs = x.plane(channel, width).iter().zip(&factors);
            match then {
                Activation::None => {
                    for (y, (&x, &factor)) in y.iter_mut().zip(inputs) {
                        *y = x * factor * gain;
                    }
                }
                Activation::Silu => {
                    for (y, (&x, &factor)) in y.iter_mut().zip(inputs) {
                        let n = x * factor * gain;
                        *y = n * sigmoid(n);
                    }
                }
            }
        }
        factors
    }
}

wide! {
    /// Yields the block's part of the gradient of each gain.
    fn norm_block_backward(
        x: Frame<'_>,
        grad: Frame<'_>,
        gains: &[f32],
        factors: &[f32],
        then: Activation,
        of_x: &mut [&mut [f32]],
    ) -> Vec<f32> {
        let width = of_x[0].len();
        let factors = &factors[..width];
        let mut along = vec![0.0; width];
        let mut of_gain = Vec::with_capacity(gains.len());
        for ((channel, slopes), &gain) in of_x.iter_mut().enumerate().zip(gains) {
            let (x, grad) = (x.plane(channel, width), grad.plane(channel, width));
            for (((slope, &x), &grad), &factor) in slopes.iter_mut().zip(x).zip(grad).zip(factors) {
                *slope = match then {
                    Activation::None => grad,
                    Activation::Silu => grad * silu_slope(x * factor * gain),
                };
            }
            of_gain.push(sum_products(slopes, x, factors));
            for ((slope, along), &x) in slopes.iter_mut().zip(&mut along).zip(x) {
                *slope *= gain;
                *along += *slope * x;
            }
        }
        let (count, most) = (gains.len() as f32, most(gains.len()));
        for (along, &factor) in along.iter_mut().zip(factors) {
            // The square of the length is count / factor^2; a length that counts as TINY is no function of x.
            *along = if factor < most { *along * (factor * factor / count) } else { 0.0 };
        }
        for (channel, of_x) in of_x.iter_mut().enumerate() {
            let x = x.plane(channel, width);
            for (((of_x, &x), &along), &factor) in of_x.iter_mut().zip(x).zip(&along).zip(factors) {
                *of_x = factor * (*of_x - x * along);
            }
        }
        of_gain
    }
}

/// The sum of `a b c`, in fixed lanes.
#[inline(always)]
fn sum_products(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((many_a, tail_a), (many_b, tail_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (many_c, tail_c) = c.as_chunks::<LANES>();
    for ((a, b), c) in many_a.iter().zip(many_b).zip(many_c) {
        for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane += a * b * c;
        }
    }
    for (((lane, &a), &b), &c) in lanes.iter_mut().zip(tail_a).zip(tail_b).zip(tail_c) {
        *lane += a * b * c;
    }
    total(lanes)
}
