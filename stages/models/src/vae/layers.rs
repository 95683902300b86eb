//! The layers of the VAE. All take and give frames first: `[B, T, C, H, W]`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use vw2_kernels::{Activation, Front, Sight, Steps, attention, channel_norm, conv3d};

use super::stream::{Stream, causal, zero_frames};
use crate::nn::causal_conv3d::double_space;
use crate::nn::{CausalConv3d, Init, Tap};
use crate::weights::{Named, Names, Visitor};

/// At each position: channels to length sqrt(C), times gamma; then what follows.
fn rms_norm<const D: usize>(x: Tensor<5>, gamma: &Param<Tensor<D>>, then: Activation) -> Tensor<5> {
    let channels = x.dims()[2];
    channel_norm(x, gamma.val().reshape([channels]), then)
}

#[derive(Module, Debug)]
pub(super) struct Residual {
    gamma1: Param<Tensor<4>>,
    conv1: CausalConv3d,
    gamma2: Param<Tensor<4>>,
    conv2: CausalConv3d,
    shortcut: Option<CausalConv3d>,
}

impl Residual {
    pub(super) fn new(init: &mut Init, inputs: usize, outputs: usize) -> Residual {
        Residual {
            gamma1: init.constant([inputs, 1, 1, 1], 1.0),
            conv1: CausalConv3d::new(init, inputs, outputs, [3; 3]),
            gamma2: init.constant([outputs, 1, 1, 1], 1.0),
            conv2: CausalConv3d::new(init, outputs, outputs, [3; 3]),
            shortcut: (inputs != outputs).then(|| CausalConv3d::new(init, inputs, outputs, [1; 3])),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let y = causal(&self.conv1, rms_norm(x.clone(), &self.gamma1, Activation::Silu), stream, None);
        let y = rms_norm(y, &self.gamma2, Activation::Silu);
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, Front::Zeros(0), None),
            None => x,
        };
        causal(&self.conv2, y, stream, Some(x))
    }
}

impl Named for Residual {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("residual.0.gamma", &mut self.gamma1);
        names.child("residual.2", &mut self.conv1);
        names.param("residual.3.gamma", &mut self.gamma2);
        names.child("residual.6", &mut self.conv2);
        if let Some(shortcut) = &mut self.shortcut {
            names.child("shortcut", shortcut);
        }
    }
}

/// Residual, attention within each frame, residual.
#[derive(Module, Debug)]
pub(super) struct Middle {
    first: Residual,
    attention: Attention,
    last: Residual,
}

impl Middle {
    pub(super) fn new(init: &mut Init, width: usize) -> Middle {
        Middle {
            first: Residual::new(init, width, width),
            attention: Attention::new(init, width),
            last: Residual::new(init, width, width),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream, part: &str, tap: &mut Tap<'_>) -> Tensor<5> {
        let x = self.first.forward(x, stream);
        tap.frames(format_args!("{part}.middle.0"), &x);
        let x = self.attention.forward(x);
        tap.frames(format_args!("{part}.middle.1"), &x);
        let x = self.last.forward(x, stream);
        tap.frames(format_args!("{part}.middle.2"), &x);
        x
    }
}

impl Named for Middle {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("0", &mut self.first);
        names.child("1", &mut self.attention);
        names.child("2", &mut self.last);
    }
}

#[derive(Module, Debug)]
struct Attention {
    gamma: Param<Tensor<3>>,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl Attention {
    pub(super) fn new(init: &mut Init, width: usize) -> Attention {
        Attention {
            gamma: init.constant([width, 1, 1], 1.0),
            to_qkv: Conv2d::new(init, width, 3 * width, 1),
            // The block starts as the identity.
            proj: Conv2d { weight: init.constant([width, width, 1, 1], 0.0), ..Conv2d::new(init, width, width, 1) },
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let [b, t, c, h, w] = x.dims();
        let qkv = self
            .to_qkv
            .forward(rms_norm(x.clone(), &self.gamma, Activation::None), Steps::same(1), None)
            .reshape([b * t, 1, 3 * c, h * w]);
        let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(2, part * c, c).swap_dims(2, 3)); // [B*T, 1, N, C]
        let y = attention(q, k, v, &Sight::all()).swap_dims(2, 3).reshape([b, t, c, h, w]);
        self.proj.forward(y, Steps::same(1), Some(x))
    }
}

impl Named for Attention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("norm.gamma", &mut self.gamma);
        names.child("to_qkv", &mut self.to_qkv);
        names.child("proj", &mut self.proj);
    }
}

/// Halves height and width; with `time_conv` also the time, of which the first frame passes unchanged.
#[derive(Module, Debug)]
pub(super) struct Down {
    resample: Conv2d,
    time_conv: Option<CausalConv3d>,
}

impl Down {
    pub(super) fn new(init: &mut Init, width: usize, time: bool) -> Down {
        Down {
            resample: Conv2d::new(init, width, width, 3),
            time_conv: time.then(|| CausalConv3d::new(init, width, width, [3, 1, 1])),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        // Padding stands at the right and at the bottom only.
        let x = self.resample.forward(x, Steps { time: 1, space: 2, pad: [0, 1] }, None);
        let Some(conv) = &self.time_conv else { return x };
        let past = stream.take();
        stream.put(&[&x], 1);
        let steps = Steps { time: 2, space: 1, pad: [0, 0] };
        if let Some(past) = past {
            return conv.forward_with(x, Front::Frames(past), steps, None);
        }
        if x.dims()[1] <= conv.context() {
            return x;
        }
        let first = x.clone().narrow(1, 0, 1);
        Tensor::cat(vec![first, conv.forward_with(x, Front::Zeros(0), steps, None)], 1)
    }
}

impl Named for Down {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("resample.1", &mut self.resample);
        if let Some(conv) = &mut self.time_conv {
            names.child("time_conv", conv);
        }
    }
}

/// Doubles height and width and halves the channels; with `time_conv` also doubles the time after the first frame.
#[derive(Module, Debug)]
pub(super) struct Up {
    time_conv: Option<CausalConv3d>,
    resample: Conv2d,
}

impl Up {
    pub(super) fn new(init: &mut Init, width: usize, time: bool) -> Up {
        Up {
            time_conv: time.then(|| CausalConv3d::new(init, width, 2 * width, [3, 1, 1])),
            resample: Conv2d::new(init, width, width / 2, 3),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        let x = match &self.time_conv {
            Some(conv) => double_time(conv, x, stream),
            None => x,
        };
        self.resample.forward(double_space(x), Steps::same(3), None)
    }
}

impl Named for Up {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("resample.1", &mut self.resample);
        if let Some(conv) = &mut self.time_conv {
            names.child("time_conv", conv);
        }
    }
}

/// Each frame to two, by a convolution that yields both. The clip's first frame passes unchanged, and the second sees
/// zeros in its place.
fn double_time(conv: &CausalConv3d, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
    let context = conv.context();
    let [b, t, c, h, w] = x.dims();
    let (first, past, rest) = match stream.take() {
        Some(past) => (None, past, Some(x)),
        None => {
            let rest = (t > 1).then(|| x.clone().narrow(1, 1, t - 1));
            (Some(x.clone().narrow(1, 0, 1)), zero_frames(&x, context), rest)
        }
    };
    let seen: Vec<&Tensor<5>> = std::iter::once(&past).chain(&rest).collect();
    stream.put(&seen, context);
    let doubled = rest.map(|rest| {
        let count = rest.dims()[1];
        let pairs = conv.forward(rest, Front::Frames(past), None); // [B, count, 2 C, H, W]
        pairs.reshape([b, 2 * count, c, h, w])
    });
    Tensor::cat(first.into_iter().chain(doubled).collect(), 1)
}

#[derive(Module, Debug)]
pub(super) struct Head {
    gamma: Param<Tensor<4>>,
    conv: CausalConv3d,
}

impl Head {
    pub(super) fn new(init: &mut Init, inputs: usize, outputs: usize) -> Head {
        Head { gamma: init.constant([inputs, 1, 1, 1], 1.0), conv: CausalConv3d::new(init, inputs, outputs, [3; 3]) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        causal(&self.conv, rms_norm(x, &self.gamma, Activation::Silu), stream, None)
    }
}

impl Named for Head {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("0.gamma", &mut self.gamma);
        names.child("2", &mut self.conv);
    }
}

/// A convolution within each frame, with a weight of rank 4.
#[derive(Module, Debug)]
struct Conv2d {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

impl Conv2d {
    pub(super) fn new(init: &mut Init, inputs: usize, outputs: usize, kernel: usize) -> Conv2d {
        let bound = (3.0 / (inputs * kernel * kernel) as f32).sqrt();
        Conv2d { weight: init.uniform([outputs, inputs, kernel, kernel], bound), bias: init.constant([outputs], 0.0) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, steps: Steps, onto: Option<Tensor<5>>) -> Tensor<5> {
        conv3d(x, Front::Zeros(0), self.weight.val().unsqueeze_dim(2), self.bias.val(), steps, onto)
    }
}

impl Named for Conv2d {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
        names.param("bias", &mut self.bias);
    }
}
