//! A clip as the DiT is trained on it: clean latents, the latents of its gray coarse double, and its codes as tokens.

use std::collections::HashMap;
use std::rc::Rc;

use burn::tensor::{Device, Tensor, TensorData};
use vw2_engine::stage::StageError;
use vw2_kernels::normalise;
use vw2_models::dit::hint::{control_hint, resize};
use vw2_models::dldm::Dldm;
use vw2_models::vae::Vae;

use crate::model_file::values;
use crate::training::ClipReader;

/// Makes examples of clips; keeps them as long as they fit, and makes them again where not.
pub(super) struct Examples<'a> {
    vae: &'a Vae,
    dldm: &'a Dldm,
    device: &'a Device,
    clips: ClipReader<'a>,
    dldm_size: [usize; 2],
    kept: HashMap<usize, Rc<Example>>,
    kept_bytes: u64,
    limit_bytes: u64,
    shape: [usize; 4],
    tokens: [usize; 2],
}

struct Example {
    clean: Vec<f32>,
    hint: Vec<f32>,
    context: Vec<f32>,
}

/// Several examples, one after the other.
pub(super) struct Minibatch {
    pub(super) len: usize,
    /// Channels, frames, height and width of latents.
    pub(super) shape: [usize; 4],
    tokens: [usize; 2],
    clean: Vec<f32>,
    hint: Vec<f32>,
    context: Vec<f32>,
}

impl<'a> Examples<'a> {
    /// `dldm_size`: what the dLDM sees, if not the clips' own size; `limit_bytes`: of what is kept.
    pub(super) fn new(
        vae: &'a Vae,
        dldm: &'a Dldm,
        device: &'a Device,
        clips: ClipReader<'a>,
        dldm_size: Option<[usize; 2]>,
        limit_bytes: u64,
    ) -> Examples<'a> {
        let [_, h, w] = clips.size;
        Examples {
            vae,
            dldm,
            device,
            clips,
            dldm_size: dldm_size.unwrap_or([h, w]),
            kept: HashMap::new(),
            kept_bytes: 0,
            limit_bytes,
            shape: [0; 4],
            tokens: [0; 2],
        }
    }

    pub(super) fn minibatch(&mut self, picks: &[usize]) -> Result<Minibatch, StageError> {
        let examples = picks.iter().map(|&index| self.example(index)).collect::<Result<Vec<_>, _>>()?;
        let all = |part: fn(&Example) -> &[f32]| examples.iter().flat_map(|example| part(example)).copied().collect();
        Ok(Minibatch {
            len: picks.len(),
            shape: self.shape,
            tokens: self.tokens,
            clean: all(|example| &example.clean),
            hint: all(|example| &example.hint),
            context: all(|example| &example.context),
        })
    }

    fn example(&mut self, index: usize) -> Result<Rc<Example>, StageError> {
        if let Some(example) = self.kept.get(&index) {
            return Ok(example.clone());
        }
        let [t, h, w] = self.clips.size;
        let video = normalise(&self.clips.clip(index)?, [t, h, w], self.device)?; // [1, 3, T, H, W]
        let clean = self.vae.encode(video.clone())?;
        let (coarse, encoded) = self.dldm.reconstruct(resize(video, self.dldm_size[0], self.dldm_size[1]))?;
        let hint = self.vae.encode(control_hint(coarse, h, w))?;
        let context = self.dldm.condition(encoded.codes)?;
        let ([_, c, t, h, w], [_, tokens, width]) = (clean.dims(), context.dims());
        (self.shape, self.tokens) = ([c, t, h, w], [tokens, width]);
        let example = Rc::new(Example { clean: values(clean), hint: values(hint), context: values(context) });
        let bytes = 4 * (2 * c * t * h * w + tokens * width) as u64;
        if self.kept_bytes + bytes <= self.limit_bytes {
            self.kept_bytes += bytes;
            self.kept.insert(index, example.clone());
        }
        Ok(example)
    }
}

impl Minibatch {
    /// Clean latents and hints `[B, C, T, H, W]`, and tokens `[B, N, D]`.
    pub(super) fn tensors(&self, device: &Device) -> (Tensor<5>, Tensor<5>, Tensor<3>) {
        let ([c, t, h, w], [tokens, width]) = (self.shape, self.tokens);
        let latents = |x: &[f32]| Tensor::from_data(TensorData::new(x.to_vec(), [self.len, c, t, h, w]), device);
        let context = TensorData::new(self.context.clone(), [self.len, tokens, width]);
        (latents(&self.clean), latents(&self.hint), Tensor::from_data(context, device))
    }

    /// The `count` examples from `start` on.
    pub(super) fn part(&self, start: usize, count: usize) -> Minibatch {
        let cut = |x: &[f32]| {
            let each = x.len() / self.len;
            x[start * each..(start + count) * each].to_vec()
        };
        Minibatch {
            len: count,
            shape: self.shape,
            tokens: self.tokens,
            clean: cut(&self.clean),
            hint: cut(&self.hint),
            context: cut(&self.context),
        }
    }
}
