//! The parts of the network: patches, time embedding, modulation, attention, feed-forward, final layer.
//!
//! Tokens are `[B, T, N, D]`: T latent frames of N patches each, row by row, so that what is given per frame spreads over
//! the third axis.

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::{DType, Tensor, TensorData};
use half::bf16;
use vw2_kernels::{Sight, attention, gelu};

use super::config::DitConfig;
use crate::nn::{Init, Linear, RmsNorm, Rotary, Tap};
use crate::weights::{Named, Names, Visitor};

/// Epsilon of every norm of the network.
const EPS: f64 = 1e-6;

/// `[B, C, T, H, W]` to patches `[B, T', N, C * pt * p * p]`, values in the order channel, frame, row, column.
pub(crate) fn patches(x: Tensor<5>, config: &DitConfig) -> Tensor<4> {
    let [b, c, t, h, w] = x.dims();
    let (p, pt) = (config.patch_spatial, config.patch_temporal);
    let (t, h, w) = (t / pt, h / p, w / p);
    let x: Tensor<8> = x.reshape([b, c, t, pt, h, p, w, p]);
    x.permute([0, 2, 4, 6, 1, 3, 5, 7]).reshape([b, t, h * w, c * pt * p * p])
}

/// The inverse, for values in the network's output order row, column, frame, channel. `size` is `[T, H, W]`.
pub(crate) fn unpatch(y: Tensor<4>, config: &DitConfig, size: [usize; 3]) -> Tensor<5> {
    let [b, ..] = y.dims();
    let ([t, h, w], c) = (size, config.out_channels);
    let (p, pt) = (config.patch_spatial, config.patch_temporal);
    let y: Tensor<8> = y.reshape([b, t / pt, h / p, w / p, p, p, pt, c]);
    y.permute([0, 7, 1, 6, 2, 4, 3, 5]).reshape([b, c, t, h, w])
}

/// Angles of every token of a latent grid `[T, H, W]` in patches: time, then height, then width (spec 4.4).
pub fn positions(config: &DitConfig, grid: [usize; 3], fps: Option<f64>) -> Vec<f32> {
    let width = config.head_size();
    let space = width / 6 * 2;
    let time = width - 2 * space;
    let frequencies = |size: usize, ratio: f64| -> Vec<f64> {
        let base = 10_000.0 * ratio.powf(size as f64 / (size as f64 - 2.0).max(1.0));
        (0..size / 2).map(|j| base.powf(-2.0 * j as f64 / size as f64)).collect()
    };
    let in_time = frequencies(time, config.rope_t_extrapolation_ratio);
    let in_height = frequencies(space, config.rope_h_extrapolation_ratio);
    let in_width = frequencies(space, config.rope_w_extrapolation_ratio);
    let pace = match fps {
        Some(fps) if config.rope_enable_fps_modulation => 24.0 / fps,
        _ => 1.0,
    };
    let mut angles = Vec::with_capacity(grid.iter().product::<usize>() * width / 2);
    for t in 0..grid[0] {
        for h in 0..grid[1] {
            for w in 0..grid[2] {
                let axes = [(t as f64 * pace, &in_time), (h as f64, &in_height), (w as f64, &in_width)];
                angles.extend(axes.iter().flat_map(|(place, f)| f.iter().map(move |f| (place * f) as f32)));
            }
        }
    }
    angles
}

/// Cosines, then sines, of times in 0..=1 at `width / 2` frequencies from 1 down to 1/10000: `[B, T] -> [B, T, width]`.
pub fn sinusoid(times: Tensor<2>, width: usize) -> Tensor<3> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half).map(|j| 10_000f64.powf(-(j as f64) / half as f64) as f32).collect();
    let frequencies = Tensor::<3>::from_data(TensorData::new(frequencies, [1, 1, half]), &times.device());
    let angles = times.unsqueeze_dim::<3>(2) * frequencies;
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 2)
}

/// Times as bf16 has them.
pub(crate) fn round_times(times: Tensor<2>) -> Tensor<2> {
    let (shape, device) = (times.dims(), times.device());
    let values: Vec<f32> = crate::train::floats(times).into_iter().map(|t| bf16::from_f32(t).to_f32()).collect();
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// What a block knows about the noise of each frame.
#[derive(Clone, Debug)]
pub(crate) struct Time {
    /// The normed sinusoid, `[B, T, D]`.
    pub(crate) e: Tensor<3>,
    /// Shift, scale and gate that all blocks start from, `[B, T, 3D]`.
    pub(crate) adaln: Tensor<3>,
}

impl Time {
    pub(crate) fn cast(self, dtype: DType) -> Time {
        Time { e: self.e.cast(dtype), adaln: self.adaln.cast(dtype) }
    }
}

/// Two maps from the sinusoid to [`Time::adaln`].
#[derive(Module, Debug)]
pub(crate) struct TimeEmbedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedder {
    pub(crate) fn new(init: &mut Init, width: usize) -> TimeEmbedder {
        TimeEmbedder {
            linear_1: Linear::normal(init, width, width, 0.02),
            linear_2: Linear::normal(init, width, 3 * width, 0.02),
        }
    }

    /// `[B, T, D] -> [B, T, 3D]`.
    pub(crate) fn forward(&self, s: Tensor<3>) -> Tensor<3> {
        self.linear_2.forward(silu(self.linear_1.forward(s)))
    }
}

impl Named for TimeEmbedder {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("linear_1", &mut self.linear_1);
        names.child("linear_2", &mut self.linear_2);
    }
}

/// Vectors per frame from the time, by a map of low rank added to [`Time::adaln`].
#[derive(Module, Debug)]
pub(crate) struct Modulation {
    down: Linear,
    up: Linear,
}

impl Modulation {
    pub(crate) fn new(init: &mut Init, config: &DitConfig, parts: usize) -> Modulation {
        let (width, rank) = (config.model_channels, config.adaln_lora_dim);
        Modulation {
            down: Linear::truncated(init, width, rank, false),
            up: Linear::normal(init, rank, parts * width, 0.0),
        }
    }

    /// As many parts as it was made for, each `[B, T, 1, D]`.
    pub(crate) fn forward<const PARTS: usize>(&self, time: &Time) -> [Tensor<4>; PARTS] {
        let width = time.e.dims()[2];
        let all = self.up.forward(self.down.forward(silu(time.e.clone())));
        let all = all + time.adaln.clone().narrow(2, 0, PARTS * width);
        std::array::from_fn(|part| all.clone().narrow(2, part * width, width).unsqueeze_dim(2))
    }
}

impl Named for Modulation {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("1", &mut self.down);
        names.child("2", &mut self.up);
    }
}

/// `norm(x) (1 + scale) + shift`, where the norm has no gain of its own.
pub(crate) fn modulate(x: Tensor<4>, shift: Tensor<4>, scale: Tensor<4>) -> Tensor<4> {
    vw2_kernels::modulate(x, shift, scale, EPS)
}

/// Attention with normed queries and keys: of tokens to each other, or to a context.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    q_proj: Linear,
    q_norm: RmsNorm,
    k_proj: Linear,
    k_norm: RmsNorm,
    v_proj: Linear,
    output_proj: Linear,
    heads: usize,
}

/// What tokens attend to.
pub(crate) enum Attended<'a> {
    /// Each other, at these places.
    Selves(&'a Rotary),
    /// A context `[B, M, C]`, as far as it is in sight.
    Context { tokens: &'a Tensor<3>, sight: &'a Sight },
}

impl Attention {
    pub(crate) fn new(init: &mut Init, config: &DitConfig, context: usize) -> Attention {
        let (width, head) = (config.model_channels, config.head_size());
        Attention {
            q_proj: Linear::truncated(init, width, width, false),
            q_norm: RmsNorm::new(init, head, EPS),
            k_proj: Linear::truncated(init, context, width, false),
            k_norm: RmsNorm::new(init, head, EPS),
            v_proj: Linear::truncated(init, context, width, false),
            output_proj: Linear::truncated(init, width, width, false),
            heads: config.num_heads,
        }
    }

    /// `[B, N, D] -> [B, N, D]`.
    pub(crate) fn forward(&self, x: Tensor<3>, attended: &Attended<'_>, tap: &mut Tap<'_>, name: &str) -> Tensor<3> {
        let [b, n, width] = x.dims();
        let (heads, d) = (self.heads, width / self.heads);
        let split = |x: Tensor<3>| {
            let [_, n, _] = x.dims();
            x.reshape([b, n, heads, d]).swap_dims(1, 2) // [B, heads, N, d]
        };
        let q = self.q_norm.forward(split(self.q_proj.forward(x.clone())));
        tap.see(format_args!("{name}.q_norm"), || q.clone().swap_dims(1, 2));
        let y = match attended {
            Attended::Selves(rotary) => {
                let q = rotary.turn(q);
                let k = rotary.turn(self.k_norm.forward(split(self.k_proj.forward(x.clone()))));
                let v = split(self.v_proj.forward(x));
                attention(q, k, v, &Sight::all())
            }
            Attended::Context { tokens, sight } => {
                let k = self.k_norm.forward(split(self.k_proj.forward((*tokens).clone())));
                let v = split(self.v_proj.forward((*tokens).clone()));
                attention(q, k, v, sight)
            }
        };
        let y = self.output_proj.forward(y.swap_dims(1, 2).reshape([b, n, width]));
        tap.see(format_args!("{name}"), || y.clone());
        y
    }
}

impl Named for Attention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("q_proj", &mut self.q_proj);
        names.child("q_norm", &mut self.q_norm);
        names.child("k_proj", &mut self.k_proj);
        names.child("k_norm", &mut self.k_norm);
        names.child("v_proj", &mut self.v_proj);
        names.child("output_proj", &mut self.output_proj);
    }
}

/// Feed-forward with exact GELU.
#[derive(Module, Debug)]
pub(crate) struct Mlp {
    layer1: Linear,
    layer2: Linear,
}

impl Mlp {
    pub(crate) fn new(init: &mut Init, config: &DitConfig) -> Mlp {
        let width = config.model_channels;
        let inner = (width as f64 * config.mlp_ratio) as usize;
        Mlp {
            layer1: Linear::truncated(init, width, inner, false),
            layer2: Linear::truncated(init, inner, width, false),
        }
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.layer2.forward(gelu(self.layer1.forward(x)))
    }
}

impl Named for Mlp {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("layer1", &mut self.layer1);
        names.child("layer2", &mut self.layer2);
    }
}
