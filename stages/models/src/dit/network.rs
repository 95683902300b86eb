//! The base network: embeddings, blocks, final layer. The control branch has the same parts.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use vw2_kernels::{Sight, gated};

use super::config::DitConfig;
use super::layers::{
    Attended, Attention, Mlp, Modulation, Time, TimeEmbedder, modulate, patches, round_times, sinusoid, unpatch,
};
use crate::nn::recompute::{self, Flat, Inner as _, Values};
use crate::nn::{Init, Linear, RmsNorm, Rotary, Tap};
use crate::weights::{Named, Names, Visitor};

/// What all blocks of a pass share.
#[derive(Clone)]
pub(crate) struct Pass {
    pub(crate) time: Time,
    pub(crate) rotary: Rotary,
    pub(crate) context: Tensor<3>,
    /// What patches see of the context.
    pub(crate) sight: Sight,
    /// Height and width in patches, to show tensors as published.
    pub(crate) grid: [usize; 2],
}

impl Pass {
    /// Shows tokens `[B, T, N, D]` as `[B, T, H, W, D]`.
    pub(crate) fn show(&self, tap: &mut Tap<'_>, name: std::fmt::Arguments<'_>, x: &Tensor<4>) {
        tap.see(name, || {
            let ([b, t, _, d], [h, w]) = (x.dims(), self.grid);
            x.clone().reshape([b, t, h, w, d])
        });
    }
}

/// Gradients are wanted of times and context.
impl Values for Pass {
    fn inner(self) -> Pass {
        let Time { e, adaln } = self.time;
        let (time, context) = (Time { e: e.inner(), adaln: adaln.inner() }, self.context.inner());
        Pass { time, rotary: self.rotary.inner(), context, sight: self.sight.inner(), ..self }
    }

    fn leaf(self) -> Pass {
        let Time { e, adaln } = self.time;
        Pass { time: Time { e: e.leaf(), adaln: adaln.leaf() }, context: self.context.leaf(), ..self }
    }

    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize) {
        self.time.e.collect_grads(pass, grads, place);
        self.time.adaln.collect_grads(pass, grads, place);
        self.context.collect_grads(pass, grads, place);
    }

    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>> {
        let values = ((self.time.e.clone(), self.time.adaln.clone()), self.context.clone());
        values.along(grads, place)
    }
}

/// Self-attention, cross-attention and feed-forward, each modulated and gated by the time.
#[derive(Module, Debug)]
pub(crate) struct Block {
    adaln_self_attn: Modulation,
    self_attn: Attention,
    adaln_cross_attn: Modulation,
    cross_attn: Attention,
    adaln_mlp: Modulation,
    mlp: Mlp,
}

impl Block {
    pub(crate) fn new(init: &mut Init, config: &DitConfig) -> Block {
        Block {
            adaln_self_attn: Modulation::new(init, config, 3),
            self_attn: Attention::new(init, config, config.model_channels),
            adaln_cross_attn: Modulation::new(init, config, 3),
            cross_attn: Attention::new(init, config, config.crossattn_emb_channels),
            adaln_mlp: Modulation::new(init, config, 3),
            mlp: Mlp::new(init, config),
        }
    }

    /// `[B, T, N, D] -> [B, T, N, D]`.
    pub(crate) fn forward(&self, x: Tensor<4>, pass: &Pass, tap: &mut Tap<'_>, name: &str) -> Tensor<4> {
        if recompute::is_on() {
            let forward = |block: &Block, (x, pass): (Tensor<4>, Pass)| block.compute(x, &pass, &mut Tap::off(), "");
            return recompute::block(self, (x, pass.clone()), forward);
        }
        self.compute(x, pass, tap, name)
    }

    fn compute(&self, x: Tensor<4>, pass: &Pass, tap: &mut Tap<'_>, name: &str) -> Tensor<4> {
        let shape @ [b, t, n, d] = x.dims();
        let flat = |x: Tensor<4>| x.reshape([b, t * n, d]);

        let [shift, scale, gate] = self.adaln_self_attn.forward(&pass.time);
        let attended = Attended::Selves(&pass.rotary);
        let y = flat(modulate(x.clone(), shift, scale));
        let y = self.self_attn.forward(y, &attended, tap, &format!("{name}.self_attn"));
        let x = gated(x, y.reshape(shape), gate);

        let [shift, scale, gate] = self.adaln_cross_attn.forward(&pass.time);
        let attended = Attended::Context { tokens: &pass.context, sight: &pass.sight };
        let y = flat(modulate(x.clone(), shift, scale));
        let y = self.cross_attn.forward(y, &attended, tap, &format!("{name}.cross_attn"));
        let x = gated(x, y.reshape(shape), gate);

        let [shift, scale, gate] = self.adaln_mlp.forward(&pass.time);
        let y = self.mlp.forward(modulate(x.clone(), shift, scale));
        pass.show(tap, format_args!("{name}.mlp"), &y);
        let x = gated(x, y, gate);
        pass.show(tap, format_args!("{name}"), &x);
        x
    }
}

impl Named for Block {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("self_attn", &mut self.self_attn);
        names.child("cross_attn", &mut self.cross_attn);
        names.child("mlp", &mut self.mlp);
        names.child("adaln_modulation_self_attn", &mut self.adaln_self_attn);
        names.child("adaln_modulation_cross_attn", &mut self.adaln_cross_attn);
        names.child("adaln_modulation_mlp", &mut self.adaln_mlp);
    }
}

/// Tokens back to patches.
#[derive(Module, Debug)]
struct FinalLayer {
    adaln: Modulation,
    linear: Linear,
}

impl FinalLayer {
    fn forward(&self, x: Tensor<4>, time: &Time) -> Tensor<4> {
        let [shift, scale] = self.adaln.forward(time);
        self.linear.forward(modulate(x, shift, scale))
    }
}

impl Named for FinalLayer {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("linear", &mut self.linear);
        names.child("adaln_modulation", &mut self.adaln);
    }
}

/// Patch and time embeddings, blocks, final layer.
#[derive(Module, Debug)]
pub(crate) struct Network {
    x_embedder: Linear,
    t_embedder: TimeEmbedder,
    t_embedding_norm: RmsNorm,
    pub(crate) blocks: Vec<Block>,
    final_layer: FinalLayer,
}

impl Network {
    pub(crate) fn new(init: &mut Init, config: &DitConfig, blocks: usize) -> Network {
        let width = config.model_channels;
        let channels = config.in_channels + usize::from(config.condition_mask) + 1;
        Network {
            x_embedder: Linear::truncated(init, config.patch_values(channels), width, false),
            t_embedder: TimeEmbedder::new(init, width),
            t_embedding_norm: RmsNorm::new(init, width, 1e-6),
            blocks: (0..blocks).map(|_| Block::new(init, config)).collect(),
            final_layer: FinalLayer {
                adaln: Modulation::new(init, config, 2),
                linear: Linear::normal(init, width, config.patch_values(config.out_channels), 0.0),
            },
        }
    }

    /// Latents with their mask channels to tokens: `[B, C, T, H, W] -> [B, T, N, D]`.
    pub(crate) fn embed(&self, x: Tensor<5>, config: &DitConfig) -> Tensor<4> {
        self.x_embedder.forward(patches(x, config))
    }

    /// Times `[B, T]` in 0..=1 to what modulates the blocks.
    pub(crate) fn time(&self, times: Tensor<2>, config: &DitConfig, tap: &mut Tap<'_>) -> Time {
        let times = if config.round_times { round_times(times) } else { times };
        let s = sinusoid(times, config.model_channels);
        tap.see(format_args!("timesteps_sincos"), || s.clone());
        // Upstream's embedder hands the sinusoid on unchanged, as its first output.
        tap.see(format_args!("t_embedder_out0"), || s.clone());
        let time = Time { e: self.t_embedding_norm.forward(s.clone()), adaln: self.t_embedder.forward(s) };
        tap.see(format_args!("t_embedding_norm"), || time.e.clone());
        time
    }

    /// Tokens to the network's output `[B, C, T, H, W]`; `size` is that of the latents.
    pub(crate) fn finish(
        &self,
        x: Tensor<4>,
        pass: &Pass,
        config: &DitConfig,
        size: [usize; 3],
        tap: &mut Tap<'_>,
    ) -> Tensor<5> {
        let y = self.final_layer.forward(x, &pass.time);
        pass.show(tap, format_args!("final_layer"), &y);
        unpatch(y, config, size)
    }
}

impl Named for Network {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("x_embedder.proj.1", &mut self.x_embedder);
        names.child("t_embedder.1", &mut self.t_embedder);
        names.children("blocks", &mut self.blocks);
        names.child("final_layer", &mut self.final_layer);
        names.child("t_embedding_norm", &mut self.t_embedding_norm);
    }
}
