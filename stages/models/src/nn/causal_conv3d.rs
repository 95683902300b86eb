//! Convolution over frames, with its weight and bias.
//!
//! Shapes: x `[B, T, C, H, W]` with frames first, so that per-frame work is plain 2D work on `B*T` images; weight
//! `[out, in, kt, kh, kw]` as published -> `[B, T', out, H', W']`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use vw2_kernels::{Front, Steps, conv3d};

use super::{Init, cost};
use crate::weights::{Named, Names, Visitor};

/// Weight and bias of a convolution over time and space; causal, as the caller pads time in front only.
#[derive(Module, Debug)]
pub struct CausalConv3d {
    pub weight: Param<Tensor<5>>,
    pub bias: Param<Tensor<1>>,
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

    /// A pointwise map that starts as nothing: what it is added to passes unchanged until it has learned something.
    pub fn zero(init: &mut Init, width: usize) -> CausalConv3d {
        let weight = init.constant([width, width, 1, 1, 1], 0.0);
        CausalConv3d { weight, bias: init.constant([width], 0.0) }
    }

    /// Frames that a call needs before the first one that it yields.
    pub fn context(&self) -> usize {
        self.weight.dims()[2] - 1
    }

    /// Same height and width, step 1: `[B, T, in, H, W] -> [B, T, out, H, W]` for a front of [`CausalConv3d::context`]
    /// frames. Adds the result to `onto` if that is given.
    pub fn forward(&self, x: Tensor<5>, front: Front, onto: Option<Tensor<5>>) -> Tensor<5> {
        let [.., kernel] = self.weight.dims();
        self.forward_with(x, front, Steps::same(kernel), onto)
    }

    pub fn forward_with(&self, x: Tensor<5>, front: Front, steps: Steps, onto: Option<Tensor<5>>) -> Tensor<5> {
        let weight = self.weight.val();
        let [_, inputs, kt, kh, kw] = weight.dims();
        let y = conv3d(x, front, weight, self.bias.val(), steps, onto);
        cost::product(inputs * kt * kh * kw, y.dims().iter().product());
        y
    }

    /// [`CausalConv3d::forward`] after copies of the first frame.
    pub fn forward_repeating_first(&self, x: Tensor<5>, onto: Option<Tensor<5>>) -> Tensor<5> {
        self.forward(x, Front::First(self.context()), onto)
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
