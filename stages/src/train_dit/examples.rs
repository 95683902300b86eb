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
use crate::training::{ClipReader, Ways};

/// Makes examples of clips; keeps them as long as they fit, and makes them again where not.
pub(super) struct Examples<'a> {
    vae: &'a Vae,
    dldm: &'a Dldm,
    device: &'a Device,
    clips: ClipReader<'a>,
    dldm_size: [usize; 2],
    ways: Ways,
    /// By row and choice of ways.
    kept: HashMap<(usize, Option<u64>), Rc<Example>>,
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
        ways: Ways,
        limit_bytes: u64,
    ) -> Examples<'a> {
        let [_, h, w] = clips.size;
        Examples {
            vae,
            dldm,
            device,
            clips,
            dldm_size: dldm_size.unwrap_or([h, w]),
            ways,
            kept: HashMap::new(),
            kept_bytes: 0,
            limit_bytes,
            shape: [0; 4],
            tokens: [0; 2],
        }
    }

    /// Examples of rows, each with the chance by which its clip is laid down; without one, as it was taken.
    pub(super) fn minibatch(&mut self, picks: &[(usize, Option<u64>)]) -> Result<Minibatch, StageError> {
        let examples = picks.iter().map(|&(row, chance)| self.example(row, chance)).collect::<Result<Vec<_>, _>>()?;
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

    fn example(&mut self, row: usize, chance: Option<u64>) -> Result<Rc<Example>, StageError> {
        let choice = chance.map(|chance| self.ways.choice(chance));
        if let Some(example) = self.kept.get(&(row, choice)) {
            return Ok(example.clone());
        }
        let [t, h, w] = self.clips.size;
        let mut clip = self.clips.clip(row)?.to_vec();
        if let Some(choice) = choice {
            self.ways.vary(&mut clip, [h, w], choice);
        }
        let video = normalise(&clip, [t, h, w], self.device)?; // [1, 3, T, H, W]
        let clean = self.vae.encode(video.clone())?;
        let (coarse, encoded) = self.dldm.reconstruct(resize(video, self.dldm_size[0], self.dldm_size[1]))?;
        let hint = self.vae.encode(control_hint(coarse, h, w))?;
        let context = self.dldm.condition(encoded.codes)?;
        let ([_, c, t, h, w], [_, tokens, width]) = (clean.dims(), context.dims());
        (self.shape, self.tokens) = ([c, t, h, w], [tokens, width]);
        let example = Rc::new(Example { clean: values(clean), hint: values(hint), context: values(context) });
        let bytes = 4 * (2 * c * t * h * w + tokens * width) as u64;
        // A shifted clip hardly comes again.
        if (self.ways.shifted == 0 || choice.is_none()) && self.kept_bytes + bytes <= self.limit_bytes {
            self.kept_bytes += bytes;
            self.kept.insert((row, choice), example.clone());
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

#[cfg(test)]
mod tests {
    use arrow::record_batch::RecordBatch;
    use vw2_data::{Frames, Origin};
    use vw2_engine::fingerprint::Hash;
    use vw2_engine::stage::Rows;
    use vw2_models::dldm::DldmConfig;
    use vw2_models::vae::VaeConfig;

    use super::*;

    /// Clips of 5 frames of 32 x 32 pixels.
    struct Films(Vec<Vec<u8>>);

    impl Rows for Films {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn id(&self, _: usize) -> &str {
            "a film"
        }

        fn content(&self, index: usize) -> Hash {
            Hash::of_bytes(&self.0[index])
        }

        fn row(&self, index: usize) -> Result<RecordBatch, StageError> {
            let origin = Origin { index: 0, fps: 10.0, task: None };
            Ok(Frames::row(self.0[index].clone(), [5, 32, 32, 3], &origin)?)
        }
    }

    #[test]
    fn a_clip_laid_down_otherwise_is_the_example_of_the_clip_that_was_taken_so() {
        let device = Device::flex();
        let vae = Vae::new(&VaeConfig::preset("tiny").unwrap(), &device, 1).unwrap();
        let dldm = Dldm::new(&DldmConfig::preset("tiny").unwrap(), &device, 1).unwrap();
        let film: Vec<u8> = (0..5 * 32 * 32 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let ways = Ways { backwards: true, mirrored: true, turned: false, shifted: 0 };
        let mut other = film.clone();
        ways.vary(&mut other, [32, 32], 0b011);
        let films = Films(vec![film, other]);

        let examples = |ways| {
            let clips = ClipReader::new(&films, 0).unwrap();
            Examples::new(&vae, &dldm, &device, clips, None, ways, u64::MAX)
        };
        let mut laid_down = examples(ways);
        // What the ways do not use of chance makes no difference, and no second example.
        let varied = laid_down.minibatch(&[(0, Some(0b011)), (0, Some(0b1011)), (0, None)]).unwrap();
        let wanted = laid_down.minibatch(&[(1, None), (1, None), (0, Some(0))]).unwrap();
        for (a, b) in [(varied.clean, wanted.clean), (varied.hint, wanted.hint), (varied.context, wanted.context)] {
            assert!(a == b && a[..a.len() / 3] != a[a.len() / 3 * 2..]);
        }
        assert_eq!(laid_down.kept.len(), 4);

        let mut shifted = examples(Ways { shifted: 2, ..ways });
        shifted.minibatch(&[(0, Some(77)), (0, None)]).unwrap();
        assert_eq!(shifted.kept.len(), 1, "only the clip as it was taken comes again");
    }
}
