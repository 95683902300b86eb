//! The decoder over dLDM codes: from the first frame of a scene and a task to the codes of its clips.
//!
//! Sequence: `[BOS] [TASK] [image, P positions] [START] [codes of clip 0] [codes of clip 1] … [EOS]`.
//! Ids: K codes, then BOS, EOS, PAD, START, then one per task.
//! Image: the frozen dLDM's feature of one frame, f32 [C, h, w], averaged over `pool` x `pool` positions, each through a
//! learned linear map to the decoder's width, plus a learned row and column. P = ceil(h / pool) ceil(w / pool).
//! Source: our own design after the paper's figure 2 (spec 6.4): upstream's AR code is not published.
//! Names: the decoder's published ones, and `image_prefix.*`.

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::config::ArConfig;
use super::decoder::{Ar, cross_entropy};
use super::digits::Digits;
use super::generate::Stop;
use super::layers::Embedding;
use super::sampling::Sampling;
use crate::nn::{Init, Linear};
use crate::train::floats;
use crate::weights::{self, Named, Names, Visitor, Weights};
use crate::{Error, Result};

/// A label that is left out of the loss.
const IGNORED: i64 = -100;

/// What each id means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    pub codes: u32,
    pub tasks: u32,
}

impl Vocabulary {
    pub fn bos(self) -> u32 {
        self.codes
    }

    pub fn eos(self) -> u32 {
        self.codes + 1
    }

    pub fn pad(self) -> u32 {
        self.codes + 2
    }

    pub fn start(self) -> u32 {
        self.codes + 3
    }

    pub fn task(self, task: u32) -> u32 {
        self.codes + 4 + task
    }

    pub fn size(self) -> usize {
        (self.codes + 4 + self.tasks) as usize
    }
}

/// A code model: stored with its weights, so that a file says all about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeConfig {
    pub decoder: ArConfig,
    /// Levels of the dLDM's quantizer; their product is the number of codes.
    pub levels: Vec<u32>,
    pub tasks: u32,
    /// C, h, w of the dLDM's feature of one frame.
    pub feature: [usize; 3],
    /// Side of the squares of positions that are averaged into one; 1 for none.
    pub pool: usize,
    /// Codes of one clip: queries times pairs of latent frames.
    pub clip_codes: usize,
    /// Whether codes share rows for their digits (see `digits.rs`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digits: bool,
}

impl CodeConfig {
    /// # Errors
    /// Names the number that makes no sense.
    pub fn check(&self) -> Result<()> {
        self.decoder.check()?;
        let codes = self.levels.iter().try_fold(1u32, |product, &level| product.checked_mul(level));
        let fault = if !codes.is_some_and(|codes| codes > 0 && codes < 1 << 30) {
            format!("levels {:?} must be at least 1 each and give less than 2^30 codes", self.levels)
        } else if self.vocabulary().size() != self.decoder.vocab_size {
            format!(
                "vocab_size {} must be {} for these levels and tasks",
                self.decoder.vocab_size,
                self.vocabulary().size()
            )
        } else if self.feature.contains(&0) || self.pool == 0 || self.clip_codes == 0 || self.tasks == 0 {
            "feature, pool, clip_codes and tasks must be at least 1".to_owned()
        } else if self.max_clips() == 0 {
            format!(
                "max_position_embeddings {} has no room for one clip: {} positions before it and {} codes",
                self.decoder.max_position_embeddings,
                self.prompt_length(),
                self.clip_codes
            )
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("decoder over codes: {fault}")))
    }

    /// The ids of these levels and tasks.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary { codes: self.levels.iter().product(), tasks: self.tasks }
    }

    /// Rows and columns of the image prefix.
    pub fn grid(&self) -> [usize; 2] {
        [self.feature[1].div_ceil(self.pool), self.feature[2].div_ceil(self.pool)]
    }

    /// Positions before the first code: BOS, task, image, START.
    pub fn prompt_length(&self) -> usize {
        3 + self.grid().iter().product::<usize>()
    }

    /// How many clips fit into the decoder's positions.
    pub fn max_clips(&self) -> usize {
        self.decoder.max_position_embeddings.saturating_sub(self.prompt_length()) / self.clip_codes
    }
}

/// One scene to learn from.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// The dLDM's feature of the first frame, [C, h, w].
    pub feature: &'a [f32],
    pub task: u32,
    /// The codes of all its clips, one after the other.
    pub codes: &'a [u32],
}

/// Examples as tensors, padded on the right.
#[derive(Clone, Debug)]
pub struct Minibatch {
    head: Tensor<2, Int>,   // [B, 2]: BOS, task
    image: Tensor<3>,       // [B, P, C]
    tail: Tensor<2, Int>,   // [B, L]: START, codes, padding
    labels: Tensor<2, Int>, // [B, L]: what each position of `tail` has to predict
    tokens: usize,
}

impl Minibatch {
    /// An example with more clips than fit is cut behind the last that fits, and its end is not learned.
    ///
    /// # Errors
    /// No examples, or one whose feature, task or codes do not fit the configuration.
    pub fn new(config: &CodeConfig, examples: &[Example<'_>], device: &Device) -> Result<Minibatch> {
        let vocabulary = config.vocabulary();
        let kept = |example: &Example<'_>| example.codes.len().min(config.max_clips() * config.clip_codes);
        let Some(longest) = examples.iter().map(kept).max() else {
            return Err(Error::Input("decoder over codes: a minibatch wants at least 1 example".to_owned()));
        };
        let (rows, length) = (examples.len(), longest + 1);
        let mut head = Vec::with_capacity(2 * rows);
        let mut image = Vec::new();
        let mut tail = vec![i64::from(vocabulary.pad()); rows * length];
        let mut labels = vec![IGNORED; rows * length];
        for (row, example) in examples.iter().enumerate() {
            check(config, example)?;
            let kept = kept(example);
            head.extend([vocabulary.bos(), vocabulary.task(example.task)].map(i64::from));
            image.extend(pool(config, example.feature));
            let at = row * length;
            tail[at] = i64::from(vocabulary.start());
            for (i, &code) in example.codes[..kept].iter().enumerate() {
                tail[at + i + 1] = i64::from(code);
                labels[at + i] = i64::from(code);
            }
            if kept == example.codes.len() {
                labels[at + kept] = i64::from(vocabulary.eos());
            }
        }
        let positions = config.grid().iter().product::<usize>();
        let tokens = rows * (2 + positions + length);
        let ids = |ids: Vec<i64>, length| Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, length]), device);
        Ok(Minibatch {
            head: ids(head, 2),
            image: Tensor::from_data(TensorData::new(image, [rows, positions, config.feature[0]]), device),
            tail: ids(tail, length),
            labels: ids(labels, length),
            tokens,
        })
    }

    /// Hides codes from the decoder, which still has to predict them: each one where `hidden` says so, asked row by row.
    #[must_use]
    pub fn hiding(self, config: &CodeConfig, mut hidden: impl FnMut() -> bool) -> Minibatch {
        let Vocabulary { codes, .. } = config.vocabulary();
        let (shape, device) = (self.tail.dims(), self.tail.device());
        let tail: Vec<i64> =
            self.tail.into_data().convert::<i64>().try_into_vec().expect("the data were just made i64");
        let pad = i64::from(config.vocabulary().pad());
        let hide = |id: i64| if id < i64::from(codes) && hidden() { pad } else { id };
        let tail = TensorData::new(tail.into_iter().map(hide).collect::<Vec<i64>>(), shape);
        Minibatch { tail: Tensor::from_data(tail, &device), ..self }
    }

    /// Positions that the decoder computes, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

fn check(config: &CodeConfig, example: &Example<'_>) -> Result<()> {
    let Vocabulary { codes, .. } = config.vocabulary();
    let [c, h, w] = config.feature;
    let fault = if example.feature.len() != c * h * w {
        format!("feature has {} values; [{c}, {h}, {w}] wants {}", example.feature.len(), c * h * w)
    } else if example.task >= config.tasks {
        format!("task {} is not below {}", example.task, config.tasks)
    } else if !example.codes.len().is_multiple_of(config.clip_codes) {
        format!("{} codes are no clips of {}", example.codes.len(), config.clip_codes)
    } else if let Some(code) = example.codes.iter().find(|&&code| code >= codes) {
        format!("code {code} is not below {codes}; it is of another quantizer")
    } else {
        return Ok(());
    };
    Err(Error::Input(format!("decoder over codes: {fault}")))
}

/// [C, h, w] to [P, C]: means of squares of positions; those at the border may be cut off.
fn pool(config: &CodeConfig, feature: &[f32]) -> Vec<f32> {
    let ([c, h, w], [rows, columns]) = (config.feature, config.grid());
    let mut pooled = Vec::with_capacity(rows * columns * c);
    for row in 0..rows {
        for column in 0..columns {
            let ys = row * config.pool..((row + 1) * config.pool).min(h);
            let xs = column * config.pool..((column + 1) * config.pool).min(w);
            let count = (ys.len() * xs.len()) as f32;
            pooled.extend((0..c).map(|channel| {
                let line = |y: usize| feature[(channel * h + y) * w..][xs.clone()].iter().sum::<f32>();
                ys.clone().map(line).sum::<f32>() / count
            }));
        }
    }
    pooled
}

/// What one frame's feature becomes before the codes.
#[derive(Module, Debug)]
pub struct ImagePrefix {
    pub proj: Linear,
    pub rows: Embedding,
    pub columns: Embedding,
}

impl ImagePrefix {
    /// [B, P, C] to [B, P, D].
    fn forward(&self, image: Tensor<3>) -> Tensor<3> {
        let [b, positions, _] = image.dims();
        let (rows, columns) = (self.rows.weight.val(), self.columns.weight.val());
        let ([h, d], [w, _]) = (rows.dims(), columns.dims());
        let place = rows.reshape([h, 1, d]) + columns.reshape([1, w, d]); // [h, w, D]
        self.proj.forward(image) + place.reshape([1, positions, d]).repeat_dim(0, b)
    }
}

impl Named for ImagePrefix {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("proj", &mut self.proj);
        names.child("rows", &mut self.rows);
        names.child("columns", &mut self.columns);
    }
}

/// How many clips to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clips {
    Exactly(usize),
    /// At least one; fewer than this where the model ends the scene, or where its positions end.
    AtMost(usize),
}

/// What a model makes of one code that it has to predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Minus the logarithm of its probability.
    pub nats: f64,
    /// No other was more probable.
    pub first: bool,
    /// It is no code but the end of a scene.
    pub end: bool,
}

/// The decoder with its image prefix.
#[derive(Module, Debug)]
pub struct CodeModel {
    pub decoder: Ar,
    pub image_prefix: ImagePrefix,
    #[module(skip)]
    pub config: CodeConfig,
}

impl CodeModel {
    /// Random start values from `seed`, drawn at first use. On an autodiff device, the model can be trained.
    ///
    /// # Errors
    /// See [`CodeConfig::check`].
    pub fn init(config: &CodeConfig, seed: u64, device: &Device) -> Result<CodeModel> {
        config.check()?;
        let init = &mut Init::new(device, seed);
        let mut decoder = Ar::new(&config.decoder, init);
        let (width, [rows, columns]) = (config.decoder.hidden_size, config.grid());
        let image_prefix = ImagePrefix {
            proj: Linear::new(init, config.feature[0], width, true),
            rows: Embedding::init(rows, width, init),
            columns: Embedding::init(columns, width, init),
        };
        if config.digits {
            decoder.digits = Some(Digits::init(&config.levels, config.decoder.vocab_size, width, init));
        }
        Ok(CodeModel { decoder, image_prefix, config: config.clone() })
    }

    /// The model of a file, by the configuration that is stored in it.
    ///
    /// # Errors
    /// The file has no such configuration, or does not fit it.
    pub fn load(weights: &Weights, device: &Device) -> Result<CodeModel> {
        let damaged = |reason: String| Error::Format { path: weights.path().to_owned(), reason };
        let config = weights.metadata().get("config").ok_or_else(|| {
            damaged("no `config` in its metadata; a decoder over codes is written by training one".to_owned())
        })?;
        let config: CodeConfig = serde_json::from_str(config)
            .map_err(|error| damaged(format!("metadata `config` is not that of a decoder over codes: {error}")))?;
        let mut model = CodeModel::init(&config, 0, device)?;
        weights::load(&mut model, weights, "")?;
        Ok(model)
    }

    /// Mean cross-entropy of codes and ends of scenes.
    pub fn loss(&self, minibatch: &Minibatch) -> Tensor<1> {
        let Minibatch { head, image, tail, labels, .. } = minibatch.clone();
        let length = tail.dims()[1];
        let x = self.prompt(head, image, tail);
        let before = x.dims()[1] - length;
        // Only what follows the image is judged. Padding stands on the right, where no real position looks.
        let hidden = self.decoder.hidden(x, None).narrow(1, before, length);
        cross_entropy(self.decoder.logits(hidden), labels)
    }

    /// What the model makes of each code of a minibatch, and of each end of a scene, in order.
    pub fn judge(&self, minibatch: &Minibatch) -> Vec<Judgement> {
        let Minibatch { head, image, tail, labels, .. } = minibatch.clone();
        let length = tail.dims()[1];
        let x = self.prompt(head, image, tail);
        let before = x.dims()[1] - length;
        let logits = floats(self.decoder.logits(self.decoder.hidden(x, None).narrow(1, before, length)));
        let labels: Vec<i64> = labels.into_data().convert::<i64>().try_into_vec().expect("the data were just made i64");
        let eos = i64::from(self.config.vocabulary().eos());
        let rows = logits.chunks_exact(self.config.decoder.vocab_size).zip(labels);
        let judged = rows.filter(|(_, label)| *label != IGNORED).map(|(row, label)| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            let own = row[label as usize];
            Judgement { nats: sum.ln() - f64::from(own - largest), first: own >= largest, end: label == eos }
        });
        judged.collect()
    }

    /// Codes of clip after clip for a scene, given by its first frame's feature [C, h, w] and its task.
    ///
    /// # Errors
    /// A feature, task or number of clips that does not fit the configuration; a bad [`Sampling`].
    pub fn generate(&self, feature: &[f32], task: u32, clips: Clips, sampling: &Sampling) -> Result<Vec<Vec<u32>>> {
        let (config, vocabulary) = (&self.config, self.config.vocabulary());
        let scene = Example { feature, task, codes: &[] };
        let (limit, may_end) = match clips {
            Clips::Exactly(count) => (count, false),
            Clips::AtMost(count) => (count.min(config.max_clips()), true),
        };
        if limit == 0 || limit > config.max_clips() {
            return Err(Error::Input(format!(
                "decoder over codes: {limit} clips are wanted; it can do 1 to {}",
                config.max_clips()
            )));
        }
        let device = self.decoder.model.norm.weight.val().device();
        let Minibatch { head, image, tail, .. } = Minibatch::new(config, &[scene], &device)?;
        let prompt = self.prompt(head, image, tail);

        let (codes, eos) = (vocabulary.codes as usize, vocabulary.eos());
        let ends = |ids: &[u32]| may_end && !ids.is_empty() && ids.len().is_multiple_of(config.clip_codes);
        // What is never an id here, between clips and where a rollout may end.
        let barred = |end: bool| {
            let barred: Vec<bool> =
                (0..config.decoder.vocab_size).map(|id| id >= codes && !(end && id == eos as usize)).collect();
            Tensor::<1, Bool>::from_data(TensorData::from(barred.as_slice()), &device).unsqueeze::<2>()
        };
        let barred = [barred(false), barred(true)];
        let look = |ids: &[u32], logits: Tensor<2>| {
            logits.mask_fill(barred[usize::from(ends(ids))].clone(), f32::NEG_INFINITY)
        };
        let stop = |ids: &[u32]| if ids.last() == Some(&eos) { Stop::Here } else { Stop::No };
        let mut ids = self.decoder.generate(prompt, limit * config.clip_codes, sampling, look, stop)?;
        ids.truncate(ids.len() - usize::from(ids.last() == Some(&eos)));
        Ok(ids.chunks_exact(config.clip_codes).map(<[u32]>::to_vec).collect())
    }

    fn prompt(&self, head: Tensor<2, Int>, image: Tensor<3>, tail: Tensor<2, Int>) -> Tensor<3> {
        let (head, tail) = (self.decoder.embed(head), self.decoder.embed(tail));
        Tensor::cat(vec![head, self.image_prefix.forward(image), tail], 1)
    }
}

impl Named for CodeModel {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.decoder.walk(names);
        names.child("image_prefix", &mut self.image_prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{AdamW, AdamWConfig, Grads};
    use crate::weights::{SaveType, save_model, shapes};

    /// 6 codes, 2 tasks, clips of 3 codes, features [2, 2, 3].
    fn config() -> CodeConfig {
        CodeConfig {
            decoder: ArConfig {
                vocab_size: 12,
                hidden_size: 32,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                num_key_value_heads: Some(1),
                intermediate_size: 64,
                rms_norm_eps: 1e-6,
                rope_theta: 10_000.0,
                max_position_embeddings: 24,
                bias: false,
                tie_word_embeddings: false,
            },
            levels: vec![2, 3],
            tasks: 2,
            feature: [2, 2, 3],
            pool: 1,
            clip_codes: 3,
            digits: false,
        }
    }

    const FEATURES: [[f32; 12]; 2] = [
        [1.0, 0.5, -1.0, 0.2, 0.1, 0.9, -0.4, 1.0, 0.3, 0.0, 0.7, -0.8],
        [-0.9, 0.5, 0.6, 0.2, -1.0, 0.4, 0.8, 1.0, -0.3, 0.5, 0.1, 0.6],
    ];
    /// Scenes that differ in image or task only, and in length.
    const CODES: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 0], &[5, 5, 0], &[0, 3, 1, 0, 3, 2, 2, 2, 4]];

    fn examples() -> [Example<'static>; 3] {
        [(0, 0), (1, 0), (0, 1)].map(|(image, task): (usize, u32)| {
            let scene = if task == 1 { 2 } else { image };
            Example { feature: &FEATURES[image], task, codes: CODES[scene] }
        })
    }

    #[test]
    fn hidden_codes_are_not_seen_but_still_predicted() {
        let (config, device) = (config(), Device::flex());
        let ids = |tensor: &Tensor<2, Int>| tensor.to_data().convert::<i64>().try_into_vec::<i64>().unwrap();
        let seen = Minibatch::new(&config, &examples(), &device).unwrap();
        let mut asked = 0;
        let hidden = seen.clone().hiding(&config, || {
            asked += 1;
            asked % 2 == 1
        });
        assert_eq!(asked, CODES.iter().map(|codes| codes.len()).sum::<usize>(), "each code, and nothing else");
        assert_eq!(ids(&hidden.labels), ids(&seen.labels));
        let [start, pad] = [config.vocabulary().start(), config.vocabulary().pad()].map(i64::from);
        // The second scene's codes 5, 5, 0 are the seventh to the ninth.
        assert_eq!(ids(&seen.tail)[10..15], [start, 5, 5, 0, pad]);
        assert_eq!(ids(&hidden.tail)[10..15], [start, pad, 5, pad, pad]);
    }

    #[test]
    fn scenes_that_were_learned_come_back_with_their_ends() {
        let device = Device::flex().autodiff();
        let config = config();
        let mut model = CodeModel::init(&config, 1, &device).unwrap();
        let minibatch = Minibatch::new(&config, &examples(), &device).unwrap();
        let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() });
        let mut last = f32::INFINITY;
        for _ in 0..80 {
            let loss = model.loss(&minibatch);
            last = floats(loss.clone())[0];
            let mut grads = Grads::of(&loss, &mut model);
            grads.clip(1.0, |_| true);
            optimizer.step(&mut model, &grads, 1e-2);
        }
        assert!(last < 0.05, "the loss after 80 steps is {last}");
        let model = model.valid();
        for Example { feature, task, codes } in examples() {
            let clips = model.generate(feature, task, Clips::AtMost(4), &Sampling::GREEDY).unwrap();
            assert_eq!(clips.concat(), codes, "task {task}");
            let short = model.generate(feature, task, Clips::Exactly(1), &Sampling::GREEDY).unwrap();
            assert_eq!(short, [&codes[..3]]);
            let long = model.generate(feature, task, Clips::Exactly(5), &Sampling::GREEDY).unwrap();
            assert!(long.len() == 5 && long.concat().iter().all(|&code| code < 6), "{long:?}");
        }
    }

    #[test]
    fn a_minibatch_says_what_each_position_predicts() {
        let config = config();
        let device = Device::flex();
        let rows = |tensor: Tensor<2, Int>| -> Vec<i64> { tensor.into_data().convert::<i64>().try_into_vec().unwrap() };
        let [long, short, _] = examples();
        let minibatch = Minibatch::new(&config, &[long, short], &device).unwrap();
        assert_eq!(rows(minibatch.head), [6, 10, 6, 10]);
        assert_eq!(rows(minibatch.tail), [9, 1, 2, 3, 4, 5, 0, 9, 5, 5, 0, 8, 8, 8]);
        assert_eq!(rows(minibatch.labels), [1, 2, 3, 4, 5, 0, 7, 5, 5, 0, 7, -100, -100, -100]);
        assert_eq!(floats(minibatch.image)[..4], [1.0, -0.4, 0.5, 1.0]);
        assert_eq!(minibatch.tokens, 2 * (2 + 6 + 7));

        // 24 positions hold 9 before the codes and 5 clips.
        let codes = [3; 18];
        let cut = Minibatch::new(&config, &[Example { codes: &codes, ..long }], &device).unwrap();
        let labels = rows(cut.labels);
        assert_eq!((labels.len(), labels[14], labels[15]), (16, 3, IGNORED));
    }

    #[test]
    fn judgements_are_what_the_loss_is_the_mean_of() {
        let (config, device) = (config(), Device::flex());
        let model = CodeModel::init(&config, 1, &device).unwrap();
        let minibatch = Minibatch::new(&config, &examples(), &device).unwrap();
        let judged = model.judge(&minibatch);
        assert_eq!((judged.len(), judged.iter().filter(|judged| judged.end).count()), (6 + 3 + 9 + 3, 3));
        let mean = judged.iter().map(|judged| judged.nats).sum::<f64>() / judged.len() as f64;
        let loss = f64::from(floats(model.loss(&minibatch))[0]);
        assert!((mean - loss).abs() < 1e-5, "{mean}, not {loss}");
    }

    #[test]
    fn pooling_takes_means_and_keeps_the_rest_of_the_border() {
        let config = CodeConfig { feature: [1, 3, 3], pool: 2, ..config() };
        assert_eq!(config.grid(), [2, 2]);
        let feature: Vec<f32> = (1..=9).map(|v| v as f32).collect();
        assert_eq!(pool(&config, &feature), [3.0, 4.5, 7.5, 9.0]);
    }

    #[test]
    fn a_saved_model_is_the_same_model() {
        let (config, device) = (config(), Device::flex());
        let mut model = CodeModel::init(&config, 3, &device).unwrap();
        let names: Vec<String> = shapes(&mut model).into_iter().map(|(name, _)| name).collect();
        for name in [
            "model.embed_tokens.weight",
            "model.layers.1.mlp.up_proj.weight",
            "lm_head.weight",
            "image_prefix.proj.bias",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ar.safetensors");
        save_model(&path, &model, &config, SaveType::F32).unwrap();
        let loaded = CodeModel::load(&Weights::open(&path).unwrap(), &device).unwrap();
        let sampling = Sampling { seed: 4, ..Sampling::default() };
        let codes = |model: &CodeModel| model.generate(&FEATURES[0], 0, Clips::Exactly(5), &sampling).unwrap();
        assert_eq!(codes(&loaded), codes(&model));
        assert_eq!(loaded.config, config);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let config = config();
        let good = examples()[0];
        for (wrong, words) in [
            (Example { feature: &[0.0; 5], ..good }, "feature has 5 values"),
            (Example { task: 2, ..good }, "task 2"),
            (Example { codes: &[1, 2], ..good }, "2 codes are no clips of 3"),
            (Example { codes: &[1, 6, 2], ..good }, "code 6 is not below 6"),
        ] {
            let error = Minibatch::new(&config, &[wrong], &Device::flex()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(Minibatch::new(&config, &[], &Device::flex()).is_err());
        for (wrong, words) in [
            (CodeConfig { levels: vec![2, 4], ..config.clone() }, "vocab_size 12 must be 14"),
            (CodeConfig { levels: vec![0], ..config.clone() }, "levels [0]"),
            (CodeConfig { levels: vec![u32::MAX, 3], ..config.clone() }, "less than 2^30"),
            (CodeConfig { clip_codes: 16, ..config.clone() }, "no room for one clip"),
            (CodeConfig { pool: 0, ..config.clone() }, "pool"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let model = CodeModel::init(&config, 0, &Device::flex()).unwrap();
        for clips in [Clips::Exactly(6), Clips::Exactly(0), Clips::AtMost(0)] {
            let error = model.generate(&FEATURES[0], 0, clips, &Sampling::GREEDY).unwrap_err().to_string();
            assert!(error.contains("1 to 5"), "{error}");
        }
    }
}
