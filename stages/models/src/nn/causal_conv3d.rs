//! Convolution over frames. The one place that says how a convolution over time and space is computed.
//!
//! Shapes: x `[B, T, C, H, W]` with frames first, so that per-frame work is plain 2D work on `B*T` images; weight
//! `[out, in, kt, kh, kw]` as published -> `[B, T', out, H', W']`.
//! On Flex, `kt` time-shifted copies stacked along the channels and one 2D convolution were faster than its 3D one; see
//! [`convolve`] for the figures. A kernel of ours may take its place.

use burn::module::{Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Slice, Tensor, module};

use super::{Init, cost};
use crate::weights::{Named, Names, Visitor};

/// Weight and bias of a convolution over time and space; causal, as the caller pads time in front only.
#[derive(Module, Debug)]
pub struct CausalConv3d {
    pub weight: Param<Tensor<5>>,
    pub bias: Param<Tensor<1>>,
}

/// Steps and spatial zero padding of a convolution. Time is never padded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub time: usize,
    pub space: usize,
    pub pad: usize,
}

impl Steps {
    /// Step 1, and the padding that keeps height and width for a kernel of odd size.
    pub fn same(kernel: usize) -> Steps {
        Steps { time: 1, space: 1, pad: kernel / 2 }
    }
}

impl CausalConv3d {
    /// A convolution that keeps the deviation of its inputs, and starts without bias. `kernel` is `[kt, kh, kw]`.
    pub fn new(init: &mut Init, inputs: usize, outputs: usize, kernel: [usize; 3]) -> CausalConv3d {
        let [kt, kh, kw] = kernel;
        let fan_in = inputs * kt * kh * kw;
        CausalConv3d {
            weight: init.uniform([outputs, inputs, kt, kh, kw], (3.0 / fan_in as f32).sqrt()),
            bias: init.constant([outputs], 0.0),
        }
    }

    /// Frames that a call needs before the first one that it yields.
    pub fn context(&self) -> usize {
        self.weight.dims()[2] - 1
    }

    /// Same height and width, step 1: `[B, T + context, in, H, W] -> [B, T, out, H, W]`.
    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let [.., kernel] = self.weight.dims();
        self.forward_with(x, Steps::same(kernel))
    }

    pub fn forward_with(&self, x: Tensor<5>, steps: Steps) -> Tensor<5> {
        let weight = self.weight.val();
        let [_, inputs, kt, kh, kw] = weight.dims();
        let y = convolve(x, weight, self.bias.val(), steps);
        cost::product(inputs * kt * kh * kw, y.dims().iter().product());
        y
    }

    /// [`CausalConv3d::forward`] after copies of the first frame: `[B, T, in, H, W] -> [B, T, out, H, W]`.
    pub fn forward_repeating_first(&self, x: Tensor<5>) -> Tensor<5> {
        let padded = repeat_first(x, self.context());
        self.forward(padded)
    }
}

impl Named for CausalConv3d {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
        names.param("bias", &mut self.bias);
    }
}

/// `count` copies of the first frame in front: `[B, T, C, H, W] -> [B, count + T, C, H, W]`.
pub fn repeat_first(x: Tensor<5>, count: usize) -> Tensor<5> {
    if count == 0 {
        return x;
    }
    let first = x.clone().narrow(1, 0, 1).repeat_dim(1, count);
    Tensor::cat(vec![first, x], 1)
}

/// Each pixel to 2x2.
pub fn double_space(x: Tensor<5>) -> Tensor<5> {
    let [b, t, c, h, w] = x.dims();
    x.reshape([b * t * c, h, 1, w, 1]).expand([b * t * c, h, 2, w, 2]).reshape([b, t, c, 2 * h, 2 * w])
}

/// `[B, T, in, H, W] -> [B, (T - kt) / steps.time + 1, out, H', W']`.
pub fn convolve(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, steps: Steps) -> Tensor<5> {
    let [b, t, inputs, h, w] = x.dims();
    let [outputs, _, kt, kh, kw] = weight.dims();
    let frames = (t - kt) / steps.time + 1;
    let images = match kt {
        1 if steps.time == 1 => x,
        _ => Tensor::cat((0..kt).map(|tap| every(x.clone(), tap, frames, steps.time)).collect(), 2),
    };
    let images = images.reshape([b * frames, kt * inputs, h, w]);
    let weight = weight.swap_dims(1, 2).reshape([outputs, kt * inputs, kh, kw]);
    // On a map of one cell, such as a token, all but the centre of the kernel meets padding.
    let alone = h == 1 && w == 1 && kh == kw && kh == 2 * steps.pad + 1;
    let (weight, pad) = if alone { (weight.narrow(2, kh / 2, 1).narrow(3, kw / 2, 1), 0) } else { (weight, steps.pad) };
    let options = ConvOptions::new([steps.space; 2], [pad; 2], [1; 2], 1);
    let y = module::conv2d(images, weight, Some(bias), options);
    let [_, _, h, w] = y.dims();
    y.reshape([b, frames, outputs, h, w])
}

/// `count` frames from `start` on, `step` apart.
fn every(x: Tensor<5>, start: usize, count: usize, step: usize) -> Tensor<5> {
    let end = start + (count - 1) * step + 1;
    x.slice_dim(1, Slice::new(start as isize, Some(end as isize), step as isize))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// The definition, in plain loops and f64.
    fn reference(x: &[f32], xs: [usize; 5], k: &[f32], ks: [usize; 5], bias: &[f32], steps: Steps) -> Vec<f64> {
        let ([b, t, c, h, w], [o, _, kt, kh, kw]) = (xs, ks);
        let count = |length: usize, kernel: usize, step: usize, pad: usize| (length + 2 * pad - kernel) / step + 1;
        let (ot, oh, ow) =
            (count(t, kt, steps.time, 0), count(h, kh, steps.space, steps.pad), count(w, kw, steps.space, steps.pad));
        let mut y = Vec::new();
        for (bi, ti, oi, hi, wi) in indices([b, ot, o, oh, ow]) {
            let mut sum = f64::from(bias[oi]);
            for (ci, dt, dh, dw, _) in indices([c, kt, kh, kw, 1]) {
                let (row, column) = (hi * steps.space + dh, wi * steps.space + dw);
                if row < steps.pad || row >= h + steps.pad || column < steps.pad || column >= w + steps.pad {
                    continue;
                }
                let frame = bi * t + ti * steps.time + dt;
                let pixel = ((frame * c + ci) * h + row - steps.pad) * w + column - steps.pad;
                let weight = (((oi * c + ci) * kt + dt) * kh + dh) * kw + dw;
                sum += f64::from(x[pixel]) * f64::from(k[weight]);
            }
            y.push(sum);
        }
        y
    }

    fn indices(n: [usize; 5]) -> impl Iterator<Item = (usize, usize, usize, usize, usize)> {
        (0..n.iter().product()).map(move |index: usize| {
            let (rest, e) = (index / n[4], index % n[4]);
            let (rest, d) = (rest / n[3], rest % n[3]);
            let (rest, c) = (rest / n[2], rest % n[2]);
            (rest / n[1], rest % n[1], c, d, e)
        })
    }

    #[test]
    fn convolution_is_its_definition() {
        let device = Device::flex();
        let same = Steps::same;
        let cases = [
            ([2, 5, 3, 4, 6], [4, 3, 3, 3, 3], same(3)),
            ([1, 1, 2, 3, 3], [3, 2, 1, 3, 3], same(3)),
            ([2, 4, 3, 5, 1], [2, 3, 3, 1, 1], same(1)),
            ([1, 7, 2, 1, 3], [2, 2, 3, 1, 1], Steps { time: 2, space: 1, pad: 0 }),
            ([1, 2, 2, 5, 7], [2, 2, 1, 3, 3], Steps { time: 1, space: 2, pad: 0 }),
            // A map of one cell: only the kernel's centre counts.
            ([2, 6, 3, 1, 1], [4, 3, 1, 3, 3], same(3)),
            ([2, 6, 3, 1, 1], [4, 3, 3, 3, 3], same(3)),
        ];
        for (seed, (xs, ks, steps)) in cases.into_iter().enumerate() {
            let mut rng = StdRng::seed_from_u64(seed as u64);
            let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
            let (x, k, bias) = (draw(xs.iter().product()), draw(ks.iter().product()), draw(ks[0]));
            let expected = reference(&x, xs, &k, ks, &bias, steps);
            let y = convolve(
                Tensor::from_data(TensorData::new(x, xs), &device),
                Tensor::from_data(TensorData::new(k, ks), &device),
                Tensor::from_data(TensorData::new(bias, [ks[0]]), &device),
                steps,
            );
            let ours: Vec<f32> = y.into_data().try_into_vec().unwrap();
            assert_eq!(ours.len(), expected.len(), "{xs:?} {ks:?}");
            let error = ours.iter().zip(&expected).fold(0.0f64, |max, (a, b)| max.max((f64::from(*a) - b).abs()));
            assert!(error < 1e-5, "{xs:?} {ks:?} {steps:?}: {error}");
        }
    }
}
