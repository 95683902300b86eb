//! The parts of a decoder's layer: embedding, rotary positions, attention, feed-forward.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, module};
use vw2_kernels::{Sight, attention, swiglu};

use super::config::ArConfig;
use crate::nn::{Init, Linear, Rotary, cost};
use crate::weights::{Named, Names, Visitor};

/// A row of the table per id.
#[derive(Module, Debug)]
pub struct Embedding {
    pub weight: Param<Tensor<2>>, // [V, D]
}

impl Embedding {
    pub(crate) fn init(rows: usize, width: usize, init: &mut Init) -> Embedding {
        Embedding { weight: init.normal([rows, width], 0.02) }
    }

    /// Ids [B, T], each below V, to [B, T, D].
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        Embedding::rows_of(self.weight.val(), ids)
    }

    /// Rows of a table [V, D]: [B, T] to [B, T, D].
    pub(crate) fn rows_of(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(table, ids)
    }

    /// The table as a head: [B, T, D] to [B, T, V].
    pub fn scores(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, t, width] = x.dims();
        cost::product(width, b * t * self.weight.dims()[0]);
        x.reshape([b * t, width]).matmul(self.weight.val().transpose()).reshape([b, t, self.weight.dims()[0]])
    }
}

impl Named for Embedding {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
    }
}

/// Rotary positions `start..start + length` of a decoder. Angles are f32 products, as the reference has them.
pub fn positions(config: &ArConfig, start: usize, length: usize, device: &Device) -> Rotary {
    let width = config.head_size();
    let frequencies: Vec<f32> =
        (0..width / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / width as f64) as f32).collect();
    let angles = (start..start + length).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
    Rotary::new(angles.collect(), length, device)
}

/// Keys and values that one layer has seen: [B, key-value heads, places, head size], filled from the front.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) keys: Tensor<4>,
    pub(crate) values: Tensor<4>,
}

/// Writes `new` at `place` of the third axis, in place where the tensor has one owner.
fn write(into: &mut Tensor<4>, new: Tensor<4>, place: usize) {
    let [b, heads, length, width] = new.dims();
    let empty = Tensor::empty([0, 0, 0, 0], &new.device());
    let all = std::mem::replace(into, empty);
    *into = all.slice_assign([0..b, 0..heads, place..place + length, 0..width], new);
}

/// Causal attention; groups of query heads share a key-value head.
#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub heads: usize,
    pub key_value_heads: usize,
}

impl Attention {
    pub(crate) fn init(config: &ArConfig, init: &mut Init) -> Attention {
        let (width, bias) = (config.hidden_size, config.bias);
        let shared = config.key_value_heads() * config.head_size();
        Attention {
            q_proj: Linear::new(init, width, width, bias),
            k_proj: Linear::new(init, width, shared, bias),
            v_proj: Linear::new(init, width, shared, bias),
            o_proj: Linear::new(init, width, width, bias),
            heads: config.num_attention_heads,
            key_value_heads: config.key_value_heads(),
        }
    }

    /// [B, T, D] to [B, T, D].
    pub fn forward(&self, x: Tensor<3>, rotary: &Rotary, sight: &Sight) -> Tensor<3> {
        let (q, k, v) = self.project(x, rotary);
        self.mix(q, k, v, sight)
    }

    /// As [`Attention::forward`] for T positions after the `seen` ones that `memory` holds; adds them to it.
    pub(crate) fn extend(&self, x: Tensor<3>, rotary: &Rotary, memory: &mut Memory, seen: usize) -> Tensor<3> {
        let length = x.dims()[1];
        let (q, k, v) = self.project(x, rotary);
        write(&mut memory.keys, k, seen);
        write(&mut memory.values, v, seen);
        let k = memory.keys.clone().narrow(2, 0, seen + length);
        let v = memory.values.clone().narrow(2, 0, seen + length);
        self.mix(q, k, v, &Sight::causal())
    }

    /// Queries [B, heads, T, d], keys and values [B, key-value heads, T, d], turned by position.
    fn project(&self, x: Tensor<3>, rotary: &Rotary) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [b, t, width] = x.dims();
        let d = width / self.heads;
        let split = |x: Tensor<3>, heads: usize| x.reshape([b, t, heads, d]).swap_dims(1, 2);
        let q = rotary.turn(split(self.q_proj.forward(x.clone()), self.heads));
        let k = rotary.turn(split(self.k_proj.forward(x.clone()), self.key_value_heads));
        (q, k, split(self.v_proj.forward(x), self.key_value_heads))
    }

    fn mix(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<3> {
        let [b, heads, t, d] = q.dims();
        let mixed = attention(q, k, v, sight).swap_dims(1, 2).reshape([b, t, heads * d]);
        self.o_proj.forward(mixed)
    }
}

impl Named for Attention {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("q_proj", &mut self.q_proj);
        names.child("k_proj", &mut self.k_proj);
        names.child("v_proj", &mut self.v_proj);
        names.child("o_proj", &mut self.o_proj);
    }
}

/// SwiGLU: down(silu(gate x) * up x).
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

impl Mlp {
    pub(crate) fn init(config: &ArConfig, init: &mut Init) -> Mlp {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Mlp {
            gate_proj: Linear::new(init, width, inner, false),
            up_proj: Linear::new(init, width, inner, false),
            down_proj: Linear::new(init, inner, width, false),
        }
    }

    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.gate_proj.forward(x.clone());
        self.down_proj.forward(swiglu(gate, self.up_proj.forward(x)))
    }
}

impl Named for Mlp {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("gate_proj", &mut self.gate_proj);
        names.child("up_proj", &mut self.up_proj);
        names.child("down_proj", &mut self.down_proj);
    }
}
