//! Q-Former: what changed between two adjacent latent frames, as a few tokens.
//!
//! Shapes: h `[B, K, D, H, W]` (frames first) -> tokens `[B, queries * (K - 1), D]`, pair by pair.
//! The same learned queries and weights serve every pair; they see the 2 H W cells of both frames with a position code of
//! random Fourier features, which is the same for every frame.
//! Source: the two-way decoder of Segment Anything, of which only the tokens-to-image half is left.

use std::f64::consts::TAU;

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Int, Tensor};
use vw2_kernels::{Sight, attention};

use crate::nn::{Init, LayerNorm, Linear, Tap};
use crate::weights::{Named, Names, Visitor};

const LAYERS: usize = 2;
const HEADS: usize = 4;

/// Initial values of a fresh Q-Former. With PyTorch's defaults, codes of different clips differ by 0.002 before they are
/// rounded, so that a short training starts, and stays, with the same codes for every clip; with these by 0.3.
const QUERY_DEVIATION: f32 = 0.3;
const SHARP: f32 = 3.0;

#[derive(Module, Debug)]
pub(super) struct QFormer {
    act: Param<Tensor<2>>,
    /// Gaussian directions of the position code, `[2, D/2]`; stored, not trained.
    directions: Param<Tensor<2>>,
    layers: Vec<Layer>,
    final_attn: Attention,
    norm_final_attn: LayerNorm,
}

impl QFormer {
    pub(super) fn new(init: &mut Init, width: usize, queries: usize) -> QFormer {
        QFormer {
            act: init.normal([queries, width], QUERY_DEVIATION),
            directions: init.normal([2, width / 2], 1.0).set_require_grad(false),
            layers: (0..LAYERS).map(|_| Layer::new(init, width)).collect(),
            final_attn: Attention::new(init, width),
            norm_final_attn: LayerNorm::new(init, width),
        }
    }

    pub(super) fn forward(&self, h: Tensor<5>, tap: &mut Tap<'_>) -> Tensor<3> {
        let [b, frames, d, height, width] = h.dims();
        let pairs = frames - 1;
        let positions = self.positions(height, width).cast(h.dtype()); // [N, D]
        let queries_at_start = self.act.val().cast(h.dtype());
        tap.see(format_args!("pos_embedding"), || positions.clone().transpose().reshape([d, height, width]));
        let cells = h.permute([0, 1, 3, 4, 2]).reshape([b, frames, height * width, d]);
        let adjacent = vec![cells.clone().narrow(1, 0, pairs), cells.narrow(1, 1, pairs)];
        let values = Tensor::cat(adjacent, 2).reshape([b * pairs, 2 * height * width, d]);
        let keys = values.clone() + positions.repeat_dim(0, 2).unsqueeze();

        let queries = self.act.dims()[0];
        let mut q = queries_at_start.unsqueeze::<3>().expand([b * pairs, queries, d]);
        for (index, layer) in self.layers.iter().enumerate() {
            q = layer.forward(q, keys.clone(), values.clone());
            for pair in 0..pairs {
                let name = format_args!("encoder.qformer_ldm.qformer.layers.{index}");
                tap.see(name, || q.clone().reshape([b, pairs, queries, d]).narrow(1, pair, 1).squeeze_dim::<3>(1));
            }
        }
        // The last attention is asked with twice the tokens: as content and as their own position code.
        let q = q.clone() + self.final_attn.forward(q * 2.0, keys, values);
        let q = self.norm_final_attn.forward(q).reshape([b, pairs, queries, d]);
        for pair in 0..pairs {
            let name = format_args!("encoder.qformer_ldm.qformer");
            tap.see(name, || q.clone().narrow(1, pair, 1).squeeze_dim::<3>(1));
        }
        let tokens = q.reshape([b, pairs * queries, d]);
        tap.see(format_args!("encoder.qformer_ldm"), || tokens.clone());
        tokens
    }

    /// Position code of each cell, rows first, `[N, D]`: sines, then cosines, of random directions.
    fn positions(&self, height: usize, width: usize) -> Tensor<2> {
        let device = self.directions.device();
        let centres = |count: usize| {
            let index = Tensor::<1, Int>::arange(0..count as i64, &device).float();
            (index + 0.5) * (2.0 / count as f64) - 1.0
        };
        let shape = [height, width, 1];
        let x = centres(width).reshape([1, width, 1]).expand(shape);
        let y = centres(height).reshape([height, 1, 1]).expand(shape);
        let points = Tensor::cat(vec![x, y], 2).reshape([height * width, 2]);
        let angles = points.matmul(self.directions.val()) * TAU;
        Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
    }

    /// Lists the parts that upstream's encoder owns outside of its Q-Former.
    pub(super) fn walk_encoder<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("pos_embedding.positional_encoding_gaussian_matrix", &mut self.directions);
        names.param("act.weight", &mut self.act);
        names.child("qformer_ldm.qformer", self);
    }
}

impl Named for QFormer {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.children("layers", &mut self.layers);
        names.child("final_attn_token_to_image", &mut self.final_attn);
        names.child("norm_final_attn", &mut self.norm_final_attn);
    }
}

#[derive(Module, Debug)]
struct Layer {
    cross_attn: Attention,
    norm2: LayerNorm,
    lin1: Linear,
    lin2: Linear,
    norm3: LayerNorm,
}

impl Layer {
    fn new(init: &mut Init, width: usize) -> Layer {
        Layer {
            cross_attn: Attention::new(init, width),
            norm2: LayerNorm::new(init, width),
            lin1: Linear::with_gain(init, width, width, 1.0),
            lin2: Linear::with_gain(init, width, width, 1.0),
            norm3: LayerNorm::new(init, width),
        }
    }

    fn forward(&self, q: Tensor<3>, keys: Tensor<3>, values: Tensor<3>) -> Tensor<3> {
        let q = self.norm2.forward(q.clone() + self.cross_attn.forward(q, keys, values));
        let y = self.lin2.forward(relu(self.lin1.forward(q.clone())));
        self.norm3.forward(q + y)
    }
}

impl Named for Layer {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("cross_attn_token_to_image", &mut self.cross_attn);
        names.child("norm2", &mut self.norm2);
        names.child("mlp.lin1", &mut self.lin1);
        names.child("mlp.lin2", &mut self.lin2);
        names.child("norm3", &mut self.norm3);
    }
}

/// Attention of 4 heads at half the width.
#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

impl Attention {
    fn new(init: &mut Init, width: usize) -> Attention {
        Attention {
            q_proj: Linear::with_gain(init, width, width / 2, SHARP),
            k_proj: Linear::with_gain(init, width, width / 2, SHARP),
            v_proj: Linear::with_gain(init, width, width / 2, SHARP),
            out_proj: Linear::with_gain(init, width / 2, width, 1.0),
        }
    }

    fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let heads = |x: Tensor<3>| {
            let [b, n, d] = x.dims();
            x.reshape([b, n, HEADS, d / HEADS]).swap_dims(1, 2) // [B, heads, N, d]
        };
        let q = heads(self.q_proj.forward(q));
        let k = heads(self.k_proj.forward(k));
        let v = heads(self.v_proj.forward(v));
        let [b, _, n, d] = q.dims();
        self.out_proj.forward(attention(q, k, v, &Sight::all()).swap_dims(1, 2).reshape([b, n, HEADS * d]))
    }
}

impl Named for Attention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("q_proj", &mut self.q_proj);
        names.child("k_proj", &mut self.k_proj);
        names.child("v_proj", &mut self.v_proj);
        names.child("out_proj", &mut self.out_proj);
    }
}
