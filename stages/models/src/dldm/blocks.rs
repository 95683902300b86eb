//! The blocks of the dLDM's encoder and decoder. All take and give frames first: `[B, T, C, H, W]`.
//!
//! Convolutions are factorised, (1,3,3) then (3,1,1); time is padded by copies of the first frame, space by zeros. Norms
//! are group norms of one group with the statistics of one frame. All is causal in time.

use burn::module::{Module, Param};
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Tensor, module};
use vw2_kernels::{Activation, Front, Sight, Steps, attention, frame_norm};

use super::config::Halve;
use crate::nn::causal_conv3d::{double_space, repeat_first};
use crate::nn::{CausalConv3d, Init, Linear, recompute};
use crate::weights::{Named, Names, Visitor};

/// Lists a convolution as published: its parameters stand below `conv3d`.
pub(super) fn walk_conv<V: Visitor>(names: &mut Names<'_, V>, name: &str, conv: &mut CausalConv3d) {
    names.child(format_args!("{name}.conv3d"), conv);
}

pub(super) fn pointwise(init: &mut Init, inputs: usize, outputs: usize) -> CausalConv3d {
    CausalConv3d::new(init, inputs, outputs, [1; 3])
}

/// A convolution within each frame. Adds the result to `onto` if that is given.
pub(super) fn within(conv: &CausalConv3d, x: Tensor<5>, onto: Option<Tensor<5>>) -> Tensor<5> {
    conv.forward(x, Front::Zeros(0), onto)
}

/// Convolution over space, then over time.
#[derive(Module, Debug)]
pub(super) struct Factorised {
    space: CausalConv3d,
    time: CausalConv3d,
}

impl Factorised {
    pub(super) fn new(init: &mut Init, inputs: usize, outputs: usize) -> Factorised {
        Factorised {
            space: CausalConv3d::new(init, inputs, outputs, [1, 3, 3]),
            time: CausalConv3d::new(init, outputs, outputs, [3, 1, 1]),
        }
    }

    /// Adds the result to `onto` if that is given.
    pub(super) fn forward(&self, x: Tensor<5>, onto: Option<Tensor<5>>) -> Tensor<5> {
        self.time.forward_repeating_first(within(&self.space, x, None), onto)
    }
}

impl Named for Factorised {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        walk_conv(names, "0", &mut self.space);
        walk_conv(names, "1", &mut self.time);
    }
}

/// Group norm of one group, per frame: statistics over C, H and W. Eps 1e-6.
#[derive(Module, Debug)]
pub(super) struct FrameNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl FrameNorm {
    pub(super) fn new(init: &mut Init, channels: usize) -> FrameNorm {
        FrameNorm { weight: init.constant([channels], 1.0), bias: init.constant([channels], 0.0) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, then: Activation) -> Tensor<5> {
        frame_norm(x, self.weight.val(), self.bias.val(), 1e-6, then)
    }
}

impl Named for FrameNorm {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("norm.weight", &mut self.weight);
        names.param("norm.bias", &mut self.bias);
    }
}

/// Norm, SiLU, factorised convolution, twice; plus the input.
#[derive(Module, Debug)]
pub(super) struct Residual {
    norm1: FrameNorm,
    conv1: Factorised,
    norm2: FrameNorm,
    conv2: Factorised,
    nin_shortcut: Option<CausalConv3d>,
}

impl Residual {
    pub(super) fn new(init: &mut Init, inputs: usize, outputs: usize) -> Residual {
        Residual {
            norm1: FrameNorm::new(init, inputs),
            conv1: Factorised::new(init, inputs, outputs),
            norm2: FrameNorm::new(init, outputs),
            conv2: Factorised::new(init, outputs, outputs),
            nin_shortcut: (inputs != outputs).then(|| pointwise(init, inputs, outputs)),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        recompute::block(self, x, Residual::compute)
    }

    fn compute(&self, x: Tensor<5>) -> Tensor<5> {
        let y = self.conv1.forward(self.norm1.forward(x.clone(), Activation::Silu), None);
        let y = self.norm2.forward(y, Activation::Silu);
        let x = match &self.nin_shortcut {
            Some(shortcut) => within(shortcut, x, None),
            None => x,
        };
        self.conv2.forward(y, Some(x))
    }
}

impl Named for Residual {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("norm1", &mut self.norm1);
        names.child("conv1", &mut self.conv1);
        names.child("norm2", &mut self.norm2);
        names.child("conv2", &mut self.conv2);
        if let Some(shortcut) = &mut self.nin_shortcut {
            walk_conv(names, "nin_shortcut", shortcut);
        }
    }
}

/// Self-attention of one head: within each frame, or at each position over the frames up to one's own.
#[derive(Module, Debug)]
pub(super) struct SelfAttention {
    norm: FrameNorm,
    q: CausalConv3d,
    k: CausalConv3d,
    v: CausalConv3d,
    proj_out: CausalConv3d,
}

impl SelfAttention {
    pub(super) fn new(init: &mut Init, width: usize) -> SelfAttention {
        let norm = FrameNorm::new(init, width);
        let mut conv = || pointwise(init, width, width);
        SelfAttention { norm, q: conv(), k: conv(), v: conv(), proj_out: conv() }
    }

    fn qkv(&self, x: &Tensor<5>) -> [Tensor<5>; 3] {
        let normed = self.norm.forward(x.clone(), Activation::None);
        [&self.q, &self.k, &self.v].map(|conv| within(conv, normed.clone(), None))
    }

    pub(super) fn within_frames(&self, x: Tensor<5>) -> Tensor<5> {
        let [b, t, c, h, w] = x.dims();
        let [q, k, v] = self.qkv(&x).map(|part| part.reshape([b * t, 1, c, h * w]).swap_dims(2, 3)); // [B*T, 1, N, C]
        let y = attention(q, k, v, &Sight::all()).swap_dims(2, 3).reshape([b, t, c, h, w]);
        within(&self.proj_out, y, Some(x))
    }

    pub(super) fn over_time(&self, x: Tensor<5>) -> Tensor<5> {
        let [b, t, c, h, w] = x.dims();
        let to_rows = |part: Tensor<5>| part.permute([0, 3, 4, 1, 2]).reshape([b * h * w, 1, t, c]); // [B*N, 1, T, C]
        let [q, k, v] = self.qkv(&x).map(to_rows);
        let y = attention(q, k, v, &Sight::causal());
        within(&self.proj_out, y.reshape([b, h, w, t, c]).permute([0, 3, 4, 1, 2]), Some(x))
    }
}

impl Named for SelfAttention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("norm", &mut self.norm);
        walk_conv(names, "q", &mut self.q);
        walk_conv(names, "k", &mut self.k);
        walk_conv(names, "v", &mut self.v);
        walk_conv(names, "proj_out", &mut self.proj_out);
    }
}

/// Frames attend to code tokens; frame i sees the first (i + 1) x `per_frame` of them.
#[derive(Module, Debug)]
pub(super) struct CrossAttention {
    norm: FrameNorm,
    q_proj: CausalConv3d,
    kv_proj: Linear,
    proj_out: CausalConv3d,
}

impl CrossAttention {
    pub(super) fn new(init: &mut Init, width: usize, context: usize) -> CrossAttention {
        CrossAttention {
            norm: FrameNorm::new(init, width),
            q_proj: pointwise(init, width, width),
            kv_proj: Linear::new(init, context, 2 * width, true),
            proj_out: CausalConv3d::zero(init, width),
        }
    }

    /// x `[B, T, C, H, W]`, context `[B, T * per_frame, D]`.
    pub(super) fn forward(&self, x: Tensor<5>, context: Tensor<3>, per_frame: usize) -> Tensor<5> {
        let [b, t, c, h, w] = x.dims();
        let tokens = context.dims()[1];
        let q = within(&self.q_proj, self.norm.forward(x.clone(), Activation::None), None);
        let q = q.permute([0, 1, 3, 4, 2]).reshape([b, 1, t * h * w, c]);
        let kv = self.kv_proj.forward(context).reshape([b, 1, tokens, 2 * c]);
        let (k, v) = (kv.clone().narrow(3, 0, c), kv.narrow(3, c, c));
        let y = attention(q, k, v, &Sight::frames(h * w, per_frame)).reshape([b, t, h, w, c]).permute([0, 1, 4, 2, 3]);
        within(&self.proj_out, y, Some(x))
    }
}

impl Named for CrossAttention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("norm", &mut self.norm);
        walk_conv(names, "q_proj", &mut self.q_proj);
        names.child("kv_proj", &mut self.kv_proj);
        walk_conv(names, "proj_out", &mut self.proj_out);
    }
}

/// Convolution plus average, each where space or time is halved; then a pointwise convolution.
#[derive(Module, Debug)]
pub(super) struct Downsample {
    conv1: Option<CausalConv3d>,
    conv2: Option<CausalConv3d>,
    conv3: Option<CausalConv3d>,
}

impl Downsample {
    pub(super) fn new(init: &mut Init, width: usize, halve: Halve) -> Downsample {
        Downsample {
            conv1: halve.space.then(|| CausalConv3d::new(init, width, width, [1, 3, 3])),
            conv2: halve.time.then(|| CausalConv3d::new(init, width, width, [3, 1, 1])),
            conv3: Some(pointwise(init, width, width)),
        }
    }

    pub(super) fn forward(&self, mut x: Tensor<5>) -> Tensor<5> {
        if let Some(conv) = &self.conv1 {
            // Zeros stand at the right and at the bottom only. Sizes are even, so the average does not reach them.
            let steps = Steps { time: 1, space: 2, pad: [0, 1] };
            x = conv.forward_with(x.clone(), Front::Zeros(0), steps, Some(halve_space(x)));
        }
        if let Some(conv) = &self.conv2 {
            let steps = Steps { time: 2, space: 1, pad: [0, 0] };
            x = conv.forward_with(x.clone(), Front::First(2), steps, Some(halve_time(repeat_first(x, 1))));
        }
        match &self.conv3 {
            Some(conv) => within(conv, x, None),
            None => x,
        }
    }
}

impl Named for Downsample {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        walk_steps(names, [&mut self.conv1, &mut self.conv2, &mut self.conv3]);
    }
}

/// Repetition plus its convolution, each where time or space is doubled; then a pointwise convolution.
#[derive(Module, Debug)]
pub(super) struct Upsample {
    conv1: Option<CausalConv3d>,
    conv2: Option<CausalConv3d>,
    conv3: Option<CausalConv3d>,
}

impl Upsample {
    pub(super) fn new(init: &mut Init, width: usize, double: Halve) -> Upsample {
        Upsample {
            conv1: double.time.then(|| CausalConv3d::new(init, width, width, [3, 1, 1])),
            conv2: double.space.then(|| CausalConv3d::new(init, width, width, [1, 3, 3])),
            conv3: Some(pointwise(init, width, width)),
        }
    }

    pub(super) fn forward(&self, mut x: Tensor<5>) -> Tensor<5> {
        if let Some(conv) = &self.conv1 {
            x = double_time(x);
            x = conv.forward_repeating_first(x.clone(), Some(x));
        }
        if let Some(conv) = &self.conv2 {
            x = double_space(x);
            x = within(conv, x.clone(), Some(x));
        }
        match &self.conv3 {
            Some(conv) => within(conv, x, None),
            None => x,
        }
    }
}

impl Named for Upsample {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        walk_steps(names, [&mut self.conv1, &mut self.conv2, &mut self.conv3]);
    }
}

fn walk_steps<V: Visitor>(names: &mut Names<'_, V>, convs: [&mut Option<CausalConv3d>; 3]) {
    for (name, conv) in ["conv1", "conv2", "conv3"].into_iter().zip(convs) {
        if let Some(conv) = conv {
            walk_conv(names, name, conv);
        }
    }
}

/// Mean of 2x2 pixels.
fn halve_space(x: Tensor<5>) -> Tensor<5> {
    let [b, t, c, h, w] = x.dims();
    let y = module::avg_pool2d(x.reshape([b * t, c, h, w]), AvgPoolOptions::new([2, 2]));
    y.reshape([b, t, c, h / 2, w / 2])
}

/// Mean of frames 2i and 2i + 1; a last odd frame is dropped.
fn halve_time(x: Tensor<5>) -> Tensor<5> {
    let [b, t, c, h, w] = x.dims();
    let pairs = x.narrow(1, 0, t / 2 * 2).reshape([b, t / 2, 2, c * h * w]);
    pairs.mean_dim(2).reshape([b, t / 2, c, h, w])
}

/// Each frame twice, but the first once.
fn double_time(x: Tensor<5>) -> Tensor<5> {
    let [b, t, c, h, w] = x.dims();
    if t == 1 {
        return x;
    }
    let twice = x.reshape([b, t, 1, c * h * w]).expand([b, t, 2, c * h * w]).reshape([b, 2 * t, c, h, w]);
    twice.narrow(1, 1, 2 * t - 1)
}
