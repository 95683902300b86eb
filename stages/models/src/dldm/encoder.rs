//! Encoder: frames to a feature map per latent frame, and what changed between them to one token per code.

use burn::module::Module;
use burn::tensor::Tensor;
use vw2_kernels::Activation;

use super::blocks::{Downsample, Factorised, FrameNorm, Residual, SelfAttention, pointwise, walk_conv, within};
use super::config::DldmConfig;
use super::patcher::Patcher;
use super::qformer::QFormer;
use crate::nn::{CausalConv3d, Init, Tap, recompute};
use crate::weights::{Named, Names, Visitor};

#[derive(Module, Debug)]
pub(super) struct Encoder {
    patcher: Patcher,
    conv_in: Factorised,
    down: Vec<Level>,
    mid_block_1: Residual,
    mid_attn: SelfAttentions,
    mid_block_2: Residual,
    norm_out: FrameNorm,
    qformer: QFormer,
    outproj: CausalConv3d,
}

impl Encoder {
    pub(super) fn new(init: &mut Init, config: &DldmConfig) -> Encoder {
        let mut width = config.channels;
        let patcher = Patcher::new(init, config.patch_size, config.patch_method);
        let conv_in = Factorised::new(init, config.patch_channels(), width);
        let down = (0..config.level_count()).map(|level| {
            let inputs = std::mem::replace(&mut width, config.width(level));
            Level::new(init, config, level, inputs)
        });
        let down = down.collect();
        Encoder {
            patcher,
            conv_in,
            down,
            mid_block_1: Residual::new(init, width, width),
            mid_attn: SelfAttentions::new(init, width),
            mid_block_2: Residual::new(init, width, width),
            norm_out: FrameNorm::new(init, width),
            qformer: QFormer::new(init, width, config.queries),
            outproj: pointwise(init, width, config.z_channels),
        }
    }

    /// Feature map, frames first: `[B, 3, T, H, W] -> [B, K, C, h, w]`.
    pub(super) fn features(&self, x: Tensor<5>, tap: &mut Tap<'_>) -> Tensor<5> {
        let mut x = self.conv_in.forward(self.patcher.patch(x), None);
        tap.frames(format_args!("encoder.conv_in"), &x);
        for (index, level) in self.down.iter().enumerate() {
            x = level.forward(x, index, tap);
        }
        x = self.mid_block_1.forward(x);
        tap.frames(format_args!("encoder.mid.block_1"), &x);
        x = self.mid_attn.forward(x, |part| format!("encoder.mid.attn_1.{part}"), tap);
        x = self.mid_block_2.forward(x);
        tap.frames(format_args!("encoder.mid.block_2"), &x);
        self.norm_out.forward(x, Activation::Silu)
    }

    /// One token per code, `[B, K, C, h, w] -> [B, N, z_channels, 1, 1]`. Wants two latent frames at least.
    pub(super) fn tokens(&self, h: Tensor<5>, tap: &mut Tap<'_>) -> Tensor<5> {
        let tokens = self.qformer.forward(h, tap);
        let [b, n, d] = tokens.dims();
        let z = within(&self.outproj, tokens.reshape([b, n, d, 1, 1]), None);
        tap.frames(format_args!("encoder.outproj_ldm"), &z);
        z
    }
}

impl Named for Encoder {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("patcher3d", &mut WithSize(&mut self.patcher));
        names.child("conv_in", &mut self.conv_in);
        names.children("down", &mut self.down);
        names.child("mid.block_1", &mut self.mid_block_1);
        names.child("mid.attn_1", &mut self.mid_attn);
        names.child("mid.block_2", &mut self.mid_block_2);
        names.child("norm_out", &mut self.norm_out);
        self.qformer.walk_encoder(names);
        walk_conv(names, "outproj_ldm", &mut self.outproj);
    }
}

struct WithSize<'a>(&'a mut Patcher);

impl Named for WithSize<'_> {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.0.walk(names, true);
    }
}

/// Residual blocks, each followed by attention where the nominal size asks for it; then a step down, but for the last.
#[derive(Module, Debug)]
struct Level {
    block: Vec<Residual>,
    attn: Vec<SelfAttentions>,
    downsample: Option<Downsample>,
}

impl Level {
    fn new(init: &mut Init, config: &DldmConfig, level: usize, inputs: usize) -> Level {
        let width = config.width(level);
        let attends = config.attn_resolutions.contains(&config.nominal_size(level));
        let last = level + 1 == config.level_count();
        Level {
            block: (0..config.num_res_blocks)
                .map(|index| Residual::new(init, if index == 0 { inputs } else { width }, width))
                .collect(),
            attn: (0..config.num_res_blocks).filter(|_| attends).map(|_| SelfAttentions::new(init, width)).collect(),
            downsample: (!last).then(|| Downsample::new(init, width, config.down(level))),
        }
    }

    fn forward(&self, mut x: Tensor<5>, level: usize, tap: &mut Tap<'_>) -> Tensor<5> {
        for (index, block) in self.block.iter().enumerate() {
            x = block.forward(x);
            tap.frames(format_args!("encoder.down.{level}.block.{index}"), &x);
            if let Some(attn) = self.attn.get(index) {
                x = attn.forward(x, |part| format!("encoder.down.{level}.attn.{index}.{part}"), tap);
            }
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(x);
            tap.frames(format_args!("encoder.down.{level}.downsample"), &x);
        }
        x
    }
}

impl Named for Level {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.children("block", &mut self.block);
        names.children("attn", &mut self.attn);
        if let Some(downsample) = &mut self.downsample {
            names.child("downsample", downsample);
        }
    }
}

/// Attention within frames, then over time.
#[derive(Module, Debug)]
struct SelfAttentions {
    space: SelfAttention,
    time: SelfAttention,
}

impl SelfAttentions {
    fn new(init: &mut Init, width: usize) -> SelfAttentions {
        SelfAttentions { space: SelfAttention::new(init, width), time: SelfAttention::new(init, width) }
    }

    fn forward(&self, x: Tensor<5>, name: impl Fn(usize) -> String, tap: &mut Tap<'_>) -> Tensor<5> {
        if recompute::is_on() {
            return recompute::block(self, x, |attn, x| attn.compute(x, |_| String::new(), &mut Tap::off()));
        }
        self.compute(x, name, tap)
    }

    fn compute(&self, x: Tensor<5>, name: impl Fn(usize) -> String, tap: &mut Tap<'_>) -> Tensor<5> {
        let x = self.space.within_frames(x);
        tap.frames(format_args!("{}", name(0)), &x);
        let x = self.time.over_time(x);
        tap.frames(format_args!("{}", name(1)), &x);
        x
    }
}

impl Named for SelfAttentions {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("0", &mut self.space);
        names.child("1", &mut self.time);
    }
}
