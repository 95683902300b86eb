//! Coarse decoder: the feature map of one frame and the tokens of the codes to a clip.
//!
//! The first frame's map is repeated over time; each later frame learns from the codes up to its own what has changed.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use vw2_kernels::Activation;

use super::blocks::{CrossAttention, Factorised, FrameNorm, Residual, SelfAttention, Upsample};
use super::config::DldmConfig;
use super::patcher::Patcher;
use crate::nn::recompute::{self, Flat, Values};
use crate::nn::{Init, Tap};
use crate::weights::{Named, Names, Visitor};

#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv_in: Factorised,
    mid_block_1: Residual,
    mid_attn: Attentions,
    mid_block_2: Residual,
    up: Vec<Level>,
    norm_out: FrameNorm,
    conv_out: Factorised,
    unpatcher: Patcher,
    queries: usize,
}

impl Decoder {
    pub(super) fn new(init: &mut Init, config: &DldmConfig) -> Decoder {
        let last = config.level_count() - 1;
        let width = config.width(last);
        Decoder {
            conv_in: Factorised::new(init, config.z_channels, width),
            mid_block_1: Residual::new(init, width, width),
            mid_attn: Attentions::new(init, width, width),
            mid_block_2: Residual::new(init, width, width),
            up: (0..=last).map(|level| Level::new(init, config, level, width)).collect(),
            norm_out: FrameNorm::new(init, config.width(0)),
            conv_out: Factorised::new(init, config.width(0), config.patch_channels()),
            unpatcher: Patcher::new(init, config.patch_size, config.patch_method),
            queries: config.queries,
        }
    }

    /// Tokens `[B, N, z_channels, 1, 1]` and the first frame's map `[B, C, h, w]` -> frames `[B, 3, T, H, W]`.
    pub(super) fn forward(&self, tokens: Tensor<5>, first: Tensor<4>, tap: &mut Tap<'_>) -> Tensor<5> {
        let context = self.conv_in.forward(tokens, None);
        tap.frames(format_args!("decoder.conv_in"), &context);
        let [b, n, d, ..] = context.dims();
        let codes = Codes { context: context.reshape([b, n, d]), per_frame: self.queries };
        let (codes, first) = recompute::cut((codes, first));
        let [b, c, h, w] = first.dims();
        let frames = n / self.queries + 1;
        self.draw(first.reshape([b, 1, c, h, w]).expand([b, frames, c, h, w]), Some(&codes), tap)
    }

    /// Maps `[N, C, h, w]`, each as the first frame of a clip in which nothing follows -> `[N, 3, 1, H, W]`.
    pub(super) fn stills(&self, maps: Tensor<4>) -> Tensor<5> {
        self.draw(maps.unsqueeze_dim(1), None, &mut Tap::off())
    }

    fn draw(&self, mut x: Tensor<5>, codes: Option<&Codes>, tap: &mut Tap<'_>) -> Tensor<5> {
        x = self.mid_block_1.forward(x);
        tap.frames(format_args!("decoder.mid.block_1"), &x);
        x = self.mid_attn.forward(x, codes, |part| format!("decoder.mid.attn_1.{part}"), tap);
        x = self.mid_block_2.forward(x);
        tap.frames(format_args!("decoder.mid.block_2"), &x);
        for (index, level) in self.up.iter().enumerate().rev() {
            x = level.forward(x, codes, index, tap);
        }
        tap.see(format_args!("decoder.norm_out"), || {
            self.norm_out.forward(x.clone(), Activation::None).swap_dims(1, 2) // as published
        });
        let x = self.norm_out.forward(x, Activation::Silu);
        self.unpatcher.unpatch(self.conv_out.forward(x, None))
    }
}

impl Named for Decoder {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("unpatcher3d", &mut WithoutSize(&mut self.unpatcher));
        names.child("conv_in", &mut self.conv_in);
        names.child("mid.block_1", &mut self.mid_block_1);
        names.child("mid.attn_1", &mut self.mid_attn);
        names.child("mid.block_2", &mut self.mid_block_2);
        names.children("up", &mut self.up);
        names.child("norm_out", &mut self.norm_out);
        names.child("conv_out", &mut self.conv_out);
    }
}

struct WithoutSize<'a>(&'a mut Patcher);

impl Named for WithoutSize<'_> {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.0.walk(names, false);
    }
}

/// What the frames attend to: `per_frame` tokens for each frame after the first, `[B, N, D]`.
#[derive(Clone)]
struct Codes {
    context: Tensor<3>,
    per_frame: usize,
}

impl Values for Codes {
    fn inner(self) -> Codes {
        Codes { context: self.context.inner(), ..self }
    }

    fn leaf(self) -> Codes {
        Codes { context: self.context.leaf(), ..self }
    }

    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize) {
        self.context.collect_grads(pass, grads, place);
    }

    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>> {
        self.context.along(grads, place)
    }
}

/// Residual blocks, each followed by attention where the nominal size asks for it; then a step up, but for level 0.
#[derive(Module, Debug)]
struct Level {
    block: Vec<Residual>,
    attn: Vec<Attentions>,
    upsample: Option<Upsample>,
}

impl Level {
    fn new(init: &mut Init, config: &DldmConfig, level: usize, context: usize) -> Level {
        let width = config.width(level);
        let above = config.width((level + 1).min(config.level_count() - 1));
        let attends = config.decoder_attn_resolutions.contains(&config.nominal_size(level));
        let blocks = 0..config.num_res_blocks + 1;
        Level {
            block: blocks
                .clone()
                .map(|index| Residual::new(init, if index == 0 { above } else { width }, width))
                .collect(),
            attn: blocks.filter(|_| attends).map(|_| Attentions::new(init, width, context)).collect(),
            upsample: (level > 0).then(|| Upsample::new(init, width, config.up(level))),
        }
    }

    fn forward(&self, mut x: Tensor<5>, codes: Option<&Codes>, level: usize, tap: &mut Tap<'_>) -> Tensor<5> {
        for (index, block) in self.block.iter().enumerate() {
            x = block.forward(x);
            tap.frames(format_args!("decoder.up.{level}.block.{index}"), &x);
            if let Some(attn) = self.attn.get(index) {
                x = attn.forward(x, codes, |part| format!("decoder.up.{level}.attn.{index}.{part}"), tap);
            }
        }
        if let Some(upsample) = &self.upsample {
            x = upsample.forward(x);
            tap.frames(format_args!("decoder.up.{level}.upsample"), &x);
        }
        x
    }
}

impl Named for Level {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.children("block", &mut self.block);
        names.children("attn", &mut self.attn);
        if let Some(upsample) = &mut self.upsample {
            names.child("upsample", upsample);
        }
    }
}

/// Attention to the codes for all frames but the first; then within frames, then over time.
#[derive(Module, Debug)]
struct Attentions {
    cross: CrossAttention,
    space: SelfAttention,
    time: SelfAttention,
}

impl Attentions {
    fn new(init: &mut Init, width: usize, context: usize) -> Attentions {
        Attentions {
            cross: CrossAttention::new(init, width, context),
            space: SelfAttention::new(init, width),
            time: SelfAttention::new(init, width),
        }
    }

    fn forward(
        &self,
        x: Tensor<5>,
        codes: Option<&Codes>,
        name: impl Fn(usize) -> String,
        tap: &mut Tap<'_>,
    ) -> Tensor<5> {
        if recompute::is_on() {
            let forward = |attn: &Attentions, (x, codes): (Tensor<5>, Option<Codes>)| {
                attn.compute(x, codes.as_ref(), |_| String::new(), &mut Tap::off())
            };
            return recompute::block(self, (x, codes.cloned()), forward);
        }
        self.compute(x, codes, name, tap)
    }

    fn compute(
        &self,
        mut x: Tensor<5>,
        codes: Option<&Codes>,
        name: impl Fn(usize) -> String,
        tap: &mut Tap<'_>,
    ) -> Tensor<5> {
        if let Some(codes) = codes {
            let frames = x.dims()[1];
            let (first, later) = (x.clone().narrow(1, 0, 1), x.narrow(1, 1, frames - 1));
            let later = self.cross.forward(later, codes.context.clone(), codes.per_frame);
            tap.frames(format_args!("{}", name(0)), &later);
            x = Tensor::cat(vec![first, later], 1);
        }
        let x = self.space.within_frames(x);
        tap.frames(format_args!("{}", name(1)), &x);
        let x = self.time.over_time(x);
        tap.frames(format_args!("{}", name(2)), &x);
        x
    }
}

impl Named for Attentions {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("0", &mut self.cross);
        names.child("1", &mut self.space);
        names.child("2", &mut self.time);
    }
}
