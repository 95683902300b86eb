//! Autoregressive transformer: the next token from all before it.
//!
//! Shapes: ids [B, T] -> embeddings f32 [B, T, D] -> hidden f32 [B, T, D] -> logits f32 [B, T, V].
//! Source: the InternLM-1 decoder of VideoWorld 1, which without biases is Llama: RMSNorm before attention and before the
//! SwiGLU feed-forward, rotary positions by halves, key and value heads shared by groups of query heads.
//! Names: the published ones (`model.layers.0.self_attn.q_proj.weight`). Stored `rotary_emb.inv_freq` buffers are ignored:
//! they follow from `rope_theta`.
//!
//! [`Ar`] is the decoder over ids; [`CodeModel`] puts the first frame of a scene and a task before it, and yields codes.

mod codes;
mod config;
mod decoder;
mod digits;
mod generate;
mod layers;
mod sampling;

pub use codes::{Clips, CodeConfig, CodeModel, Example, Judgement, Minibatch, Vocabulary};
pub use config::ArConfig;
pub(crate) use config::PRESETS;
pub use decoder::{Ar, Body, KvCache, Layer, causal_sight, cross_entropy, next_id_loss};
pub use generate::Stop;
pub use layers::{Attention, Embedding, Mlp, positions};
pub use sampling::{Draws, Sampling};
