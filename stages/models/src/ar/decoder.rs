//! The decoder: layers, norm and head; its loss; its cache of keys and values.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use vw2_kernels::Sight;

use super::config::ArConfig;
use super::digits::Digits;
use super::layers::{Attention, Embedding, Memory, Mlp, positions};
use crate::nn::recompute::{self, Fixed};
use crate::nn::{Init, Linear, RmsNorm, Rotary};
use crate::weights::{self, Named, Names, Visitor, Weights};
use crate::{Error, Result};

/// The decoder over ids.
#[derive(Module, Debug)]
pub struct Ar {
    pub model: Body,
    /// Absent where the head is the embedding table.
    pub lm_head: Option<Linear>,
    /// Where ids are codes that consist of digits.
    pub digits: Option<Digits>,
    #[module(skip)]
    pub config: ArConfig,
}

/// All but the head.
#[derive(Module, Debug)]
pub struct Body {
    pub embed_tokens: Embedding,
    pub layers: Vec<Layer>,
    pub norm: RmsNorm,
}

/// Attention, then feed-forward, each on the normed stream and added to it.
#[derive(Module, Debug)]
pub struct Layer {
    pub input_layernorm: RmsNorm,
    pub self_attn: Attention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: Mlp,
}

/// Keys and values of the positions seen so far, in memory for `places` positions that is written in place.
pub struct KvCache {
    layers: Vec<Memory>,
    seen: usize,
    places: usize,
}

impl KvCache {
    pub fn new(config: &ArConfig, batch: usize, places: usize, device: &Device) -> KvCache {
        let shape = [batch, config.key_value_heads(), places, config.head_size()];
        let memory = || Memory { keys: Tensor::zeros(shape, device), values: Tensor::zeros(shape, device) };
        KvCache { layers: (0..config.num_hidden_layers).map(|_| memory()).collect(), seen: 0, places }
    }

    /// Positions seen so far.
    pub fn seen(&self) -> usize {
        self.seen
    }
}

impl Ar {
    /// Random start values from `seed`, drawn at first use. On an autodiff device, the decoder can be trained.
    ///
    /// # Errors
    /// See [`ArConfig::check`].
    pub fn init(config: &ArConfig, seed: u64, device: &Device) -> Result<Ar> {
        config.check()?;
        Ok(Ar::new(config, &mut Init::new(device, seed)))
    }

    /// As [`Ar::init`], for a checked configuration.
    pub(crate) fn new(config: &ArConfig, init: &mut Init) -> Ar {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let layer = |init: &mut Init| Layer {
            input_layernorm: RmsNorm::new(init, width, config.rms_norm_eps),
            self_attn: Attention::init(config, init),
            post_attention_layernorm: RmsNorm::new(init, width, config.rms_norm_eps),
            mlp: Mlp::init(config, init),
        };
        let model = Body {
            embed_tokens: Embedding::init(vocab, width, init),
            layers: (0..config.num_hidden_layers).map(|_| layer(init)).collect(),
            norm: RmsNorm::new(init, width, config.rms_norm_eps),
        };
        let lm_head = (!config.tie_word_embeddings).then(|| Linear::new(init, width, vocab, false));
        Ar { model, lm_head, digits: None, config: config.clone() }
    }

    /// The decoder that `weights` holds.
    ///
    /// # Errors
    /// All missing, unexpected and misshapen names at once.
    pub fn load(weights: &Weights, config: &ArConfig, device: &Device) -> Result<Ar> {
        let mut decoder = Ar::init(config, 0, device)?;
        weights::load(&mut decoder, weights, "")?;
        Ok(decoder)
    }

    /// Logits [B, T, V] of ids [B, T]. `mask` [B, T] is 1 for real positions and 0 for padding, if there is any.
    pub fn forward(&self, ids: Tensor<2, Int>, mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        self.forward_embeddings(self.embed(ids), mask)
    }

    /// As [`Ar::forward`], from embeddings [B, T, D].
    pub fn forward_embeddings(&self, x: Tensor<3>, mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        self.logits(self.hidden(x, mask))
    }

    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match &self.digits {
            Some(digits) => self.model.embed_tokens.forward(ids.clone()) + digits.embed(ids),
            None => self.model.embed_tokens.forward(ids),
        }
    }

    /// Embeddings [B, T, D] to the normed stream after the last layer.
    pub fn hidden(&self, x: Tensor<3>, mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        let [_, length, _] = x.dims();
        let device = x.device();
        let rotary = positions(&self.config, 0, length, &device);
        let sight = causal_sight(mask);
        let x = self.model.layers.iter().fold(x, |x, layer| {
            let values = (x, Fixed((rotary.clone(), sight.clone())));
            recompute::block(layer, values, |layer, (x, Fixed((rotary, sight)))| layer.forward(x, &rotary, &sight))
        });
        self.model.norm.forward(x)
    }

    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let scores = match &self.lm_head {
            Some(head) => head.forward(hidden.clone()),
            None => self.model.embed_tokens.scores(hidden.clone()),
        };
        match &self.digits {
            Some(digits) => scores + digits.scores(hidden),
            None => scores,
        }
    }

    /// The normed stream [B, T, D] of T positions after those that `cache` has seen. Adds them to it.
    ///
    /// # Errors
    /// More positions than the cache has places for.
    pub fn extend(&self, x: Tensor<3>, cache: &mut KvCache) -> Result<Tensor<3>> {
        let [_, length, _] = x.dims();
        if cache.seen + length > cache.places {
            return Err(Error::Input(format!(
                "decoder: {length} positions after {} do not fit into a cache of {}",
                cache.seen, cache.places
            )));
        }
        let device = x.device();
        let rotary = positions(&self.config, cache.seen, length, &device);
        let mut x = x;
        for (layer, memory) in self.model.layers.iter().zip(&mut cache.layers) {
            let normed = layer.input_layernorm.forward(x.clone());
            let attended = layer.self_attn.extend(normed, &rotary, memory, cache.seen);
            x = layer.feed(x + attended);
        }
        cache.seen += length;
        Ok(self.model.norm.forward(x))
    }
}

impl Named for Ar {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("model.embed_tokens", &mut self.model.embed_tokens);
        names.children("model.layers", &mut self.model.layers);
        names.child("model.norm", &mut self.model.norm);
        if let Some(head) = &mut self.lm_head {
            names.child("lm_head", head);
        }
        if let Some(digits) = &mut self.digits {
            names.child("code_digits", digits);
        }
    }
}

impl Layer {
    pub fn forward(&self, x: Tensor<3>, rotary: &Rotary, sight: &Sight) -> Tensor<3> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(x.clone()), rotary, sight);
        self.feed(x + attended)
    }

    fn feed(&self, x: Tensor<3>) -> Tensor<3> {
        let fed = self.mlp.forward(self.post_attention_layernorm.forward(x.clone()));
        x + fed
    }
}

impl Named for Layer {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("input_layernorm", &mut self.input_layernorm);
        names.child("self_attn", &mut self.self_attn);
        names.child("post_attention_layernorm", &mut self.post_attention_layernorm);
        names.child("mlp", &mut self.mlp);
    }
}

/// Every position looks back, and at no padding: `mask` [B, T] is 0 there.
pub fn causal_sight(mask: Option<Tensor<2, Int>>) -> Sight {
    Sight { real: mask.map(|mask| mask.float()), ..Sight::causal() }
}

/// Mean cross-entropy of the next id, as published: logits [B, T, V] at t are judged by the label at t + 1.
/// Labels [B, T] below 0 (-100 by custom) are left out; without any label the loss is 0.
pub fn next_id_loss(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let length = logits.dims()[1] - 1;
    cross_entropy(logits.narrow(1, 0, length), labels.narrow(1, 1, length))
}

/// As [`next_id_loss`], where each label stands at the position that predicts it.
pub fn cross_entropy(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [b, t, vocab] = logits.dims();
    let labels = labels.reshape([b * t]);
    let count = labels.clone().greater_equal_elem(0).float().sum().clamp_min(1.0);
    vw2_kernels::cross_entropy(logits.reshape([b * t, vocab]), labels).sum() / count
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, TensorData};

    use super::*;
    use crate::train::floats;

    /// Two groups of two query heads; a vocabulary of 11.
    fn decoder(tied: bool, bias: bool) -> Ar {
        let config = ArConfig {
            vocab_size: 11,
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            intermediate_size: 24,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            max_position_embeddings: 32,
            bias,
            tie_word_embeddings: tied,
        };
        Ar::init(&config, 5, &Device::flex()).unwrap()
    }

    fn ids(ids: &[i64]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &Device::flex())
    }

    fn check_close(a: Tensor<3>, b: Tensor<3>, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let error = floats((a - b).abs().max())[0];
        assert!(error < 2e-6, "{what}: {error}");
    }

    #[test]
    fn positions_given_in_pieces_give_what_all_at_once_give() {
        for (tied, bias) in [(false, false), (true, true)] {
            let decoder = decoder(tied, bias);
            let x = decoder.embed(ids(&[1, 5, 2, 9, 0, 3, 3, 10]));
            let whole = decoder.hidden(x.clone(), None);
            for pieces in [&[8][..], &[1; 8], &[3, 1, 4], &[1, 6, 1]] {
                let mut cache = KvCache::new(&decoder.config, 1, 8, &Device::flex());
                let mut parts = Vec::new();
                for &length in pieces {
                    parts.push(decoder.extend(x.clone().narrow(1, cache.seen(), length), &mut cache).unwrap());
                }
                check_close(Tensor::cat(parts, 1), whole.clone(), &format!("pieces {pieces:?}"));
                assert!(decoder.extend(x.clone(), &mut cache).is_err(), "a full cache takes nothing");
            }
        }
    }

    #[test]
    fn shared_heads_equal_repeated_ones() {
        let shared = decoder(false, true);
        let config = ArConfig { num_key_value_heads: None, ..shared.config.clone() };
        let mut repeated = Ar::init(&config, 5, &Device::flex()).unwrap();
        repeated.model.embed_tokens = shared.model.embed_tokens.clone();
        // Each key-value head, four rows wide, serves two query heads.
        fn twice(linear: &mut Linear) {
            linear.weight = linear.weight.clone().map(|w| w.reshape([2, 1, 4, 16]).repeat_dim(1, 2).reshape([16, 16]));
            linear.bias = linear.bias.take().map(|b| b.map(|b| b.reshape([2, 1, 4]).repeat_dim(1, 2).reshape([16])));
        }
        for (to, from) in repeated.model.layers.iter_mut().zip(&shared.model.layers) {
            *to = from.clone();
            to.self_attn.key_value_heads = 4;
            twice(&mut to.self_attn.k_proj);
            twice(&mut to.self_attn.v_proj);
        }
        let x = shared.embed(ids(&[4, 4, 7, 1, 0]));
        check_close(repeated.hidden(x.clone(), None), shared.hidden(x, None), "repeated heads");
    }

    #[test]
    fn padding_on_either_side_changes_no_real_position() {
        let decoder = decoder(false, false);
        let device = Device::flex();
        let x = Tensor::<3>::random([1, 4, 16], Distribution::Default, &device);
        let junk = Tensor::<3>::random([1, 2, 16], Distribution::Default, &device);
        let alone = decoder.hidden(x.clone(), None);
        let right = Tensor::cat(vec![x.clone(), junk.clone()], 1);
        check_close(decoder.hidden(right.clone(), None).narrow(1, 0, 4), alone.clone(), "right, without a mask");
        check_close(decoder.hidden(right, Some(ids(&[1, 1, 1, 1, 0, 0]))).narrow(1, 0, 4), alone.clone(), "right");
        // Rotary positions are relative: a shift of all of them is no change.
        let left = Tensor::cat(vec![junk, x], 1);
        let shifted = decoder.hidden(left, Some(ids(&[0, 0, 1, 1, 1, 1]))).narrow(1, 2, 4);
        check_close(shifted, alone, "left");
    }

    #[test]
    fn the_loss_is_the_mean_over_the_labels_that_count() {
        let device = Device::flex();
        let logits = Tensor::<3>::from_floats([[[0.0, 0.0], [0.0, 1.0], [3.0, 0.0]]], &device);
        let loss = |labels: &[i64]| floats(cross_entropy(logits.clone(), ids(labels)))[0];
        let (even, wrong) = (2f32.ln(), (1.0 + 1f32.exp()).ln());
        for (labels, wanted) in [([0, -100, -100], even), ([1, 0, -100], (even + wrong) / 2.0), ([-100; 3], 0.0)] {
            assert!((loss(&labels) - wanted).abs() < 1e-6, "{labels:?}: {}", loss(&labels));
        }
        let shifted = floats(next_id_loss(logits.clone(), ids(&[1, 0, 0])))[0];
        assert!((shifted - (even + wrong) / 2.0).abs() < 1e-6);
    }
}
