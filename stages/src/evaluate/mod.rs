//! `evaluate`: clips to figures that say how well the models draw them again from their first frame.
//!
//! The ways: the first frame repeated; the dLDM's coarse decoder with the clip's own codes, and with those of another clip
//! (which a decoder that listens to its codes draws worse); the clip that the AR model imagines; and the DiT after the
//! coarse decoder. Per clip a row for each, and a picture: the true frames above those of each way.
//! Differs from a rollout: but for what is imagined, the codes are the clip's own, so that the pictures can be compared
//! frame by frame.

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vw2_data::media::{Sheet, contact_sheet};
use vw2_data::{Codes, Evaluation, Evaluations, Frames};
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::{
    Context, InputFile, Interrupted, Location, Needs, Operator, Output, Placement, Port, Rows, Stage, StageError,
    Table, Unit,
};
use vw2_kernels::{denormalise, normalise};
use vw2_models::ar::{Clips, Sampling};
use vw2_models::dit::VideoDit;
use vw2_models::dit::hint::resize;
use vw2_models::dldm::{Dldm, Encoded};
use vw2_models::train::metrics::ssim;
use vw2_models::vae::Vae;

use crate::autoregressor::Autoregressor;
use crate::diffusion::{Diffusion, Renderer};
use crate::model_file::{self, ModelFile};
use crate::tables;
use crate::training::{PixelErrors, fold};

/// Judges each clip of a frame table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    #[serde(default)]
    pub weights: EvaluateWeights,
    /// Height and width that the dLDM sees; default: the clips' own.
    #[serde(default)]
    pub dldm_size: Option<[usize; 2]>,
    /// How the DiT is sampled.
    #[serde(default)]
    pub diffusion: Diffusion,
    /// How codes are drawn from the AR model.
    #[serde(default)]
    pub sampling: Sampling,
    /// How many clips the AR model imagines for each; its figures are their means.
    #[serde(default = "one")]
    pub rollouts: u64,
    /// Judge one video in so many only: 10 for those that `train-vae`, `train-dldm` and `train-dit` hold out of the same
    /// table, 5 for `train-ar`. Default: all.
    #[serde(default)]
    pub one_in: Option<u64>,
    /// The folder that receives a picture per clip.
    pub path: Location,
}

fn one() -> u64 {
    1
}

/// Left out where their ports are connected. Without `vae` and `dit`, nothing is drawn by diffusion; without `ar`, nothing is
/// imagined.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateWeights {
    pub vae: Option<InputFile>,
    pub dldm: Option<InputFile>,
    pub dit: Option<InputFile>,
    pub ar: Option<InputFile>,
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "frames to figures: how well the models draw them again";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::row("frames", &tables::FRAMES),
        Port::whole("codes", &tables::CODES).optional(),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("dit", &tables::CHECKPOINTS).optional(),
        Port::whole("ar", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::EVALUATIONS;

    fn check(&self) -> Result<(), String> {
        if self.rollouts == 0 || self.one_in == Some(0) {
            return Err("`rollouts` and `one_in` are at least 1".into());
        }
        self.sampling.check().map_err(|error| format!("`sampling`: {error}"))?;
        self.diffusion.check()
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn row_id(&self, unit: &str, row: &str) -> String {
        format!("{unit}/{row}")
    }

    /// Which videos are judged follows from their names.
    fn named(&self) -> bool {
        self.one_in.is_some()
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let weights = &self.weights;
        Ok(Box::new(Evaluator {
            vae: ModelFile::new(ctx, weights.vae.as_ref(), "vae", |file, device| Ok(Vae::load(file, device)?))?,
            dldm: ModelFile::new(ctx, weights.dldm.as_ref(), "dldm", |file, device| Ok(Dldm::load(file, device)?))?,
            dit: ModelFile::new(ctx, weights.dit.as_ref(), "dit", self.diffusion.load())?,
            ar: ModelFile::new(ctx, weights.ar.as_ref(), "ar", Autoregressor::load)?,
            params: self.clone(),
            ctx: ctx.clone(),
        }))
    }
}

struct Evaluator {
    vae: ModelFile<Vae>,
    dldm: ModelFile<Dldm>,
    dit: ModelFile<VideoDit>,
    ar: ModelFile<Autoregressor>,
    params: Evaluate,
    ctx: Context,
}

impl Operator for Evaluator {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let video = crate::export::split_id(&unit.id).0;
            if self.params.one_in.is_none_or(|one_in| crate::training::is_held_out(video, one_in)) {
                self.evaluate(unit, out)?;
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        model_file::activation_bytes(unit, 64)
    }
}

/// One way of drawing a clip: its name, and u8 RGB `[T, H, W, 3]`, once or for each of several draws.
type Way = (&'static str, Vec<Vec<u8>>);

impl Evaluator {
    fn evaluate(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let frames = Frames::view(unit.row("frames"))?;
        let [t, h, w, _] = frames.shape(0);
        let (dldm, device) = self.dldm.get(unit)?;
        let video = model_file::clip_tensor(&frames, device)?; // [1, 3, T, H, W]
        let [dldm_h, dldm_w] = self.params.dldm_size.unwrap_or([h, w]);
        let encoded = match dldm.encode(resize(video.clone(), dldm_h, dldm_w)) {
            Ok(encoded) => encoded,
            Err(error) => {
                out.reject(unit, error.to_string());
                return Ok(());
            }
        };
        let draw = |codes: Tensor<3>| -> Result<Tensor<5>, StageError> { Ok(dldm.decode(codes, encoded.first())?) };
        let shown = |coarse: Tensor<5>| denormalise(resize(coarse, h, w));
        let truth = frames.pixels(0);
        let coarse = draw(encoded.codes.clone())?;
        let mut ways: Vec<Way> =
            vec![("repeat", vec![truth[..h * w * 3].repeat(t)]), ("coarse", vec![shown(coarse.clone())])];
        if let Some(codes) =
            unit.table("codes").map(|table| strange_codes(table, unit, &encoded)).transpose()?.flatten()
        {
            ways.push(("shuffled", vec![shown(draw(dldm.codes_of(codes))?)]));
        }
        if self.ar.is_given(unit) {
            let (ar, _) = self.ar.get(unit)?;
            let task = ar.task_number(frames.origin(0).task.as_deref().filter(|_| !ar.tasks.is_empty()))?;
            let feature = model_file::values(encoded.first());
            let mut drawn = Vec::new();
            for rollout in 0..self.params.rollouts {
                let sampling = &self.params.sampling;
                let sampling = Sampling { seed: sampling.seed + rollout, ..sampling.clone() };
                let codes = ar.model.generate(&feature, task, Clips::Exactly(1), &sampling)?.concat();
                drawn.push(shown(draw(dldm.codes_of(indices(codes, device)))?));
            }
            ways.push(("rollout", drawn));
        }
        if self.vae.is_given(unit) && self.dit.is_given(unit) {
            ways.push(("diffusion", vec![self.diffuse(unit, video, encoded.codes, coarse)?]));
        }
        self.judge(unit, out, truth, [t, h, w], &ways)
    }

    /// What the DiT draws.
    fn diffuse(
        &mut self,
        unit: &Unit,
        video: Tensor<5>,
        codes: Tensor<3>,
        coarse: Tensor<5>,
    ) -> Result<Vec<u8>, StageError> {
        let Evaluator { vae, dldm, dit, params, ctx, .. } = self;
        let (dldm, device) = dldm.get(unit)?;
        let (vae, dit) = (vae.get(unit)?.0, dit.get(unit)?.0);
        let negative = params.diffusion.negative_context(dit.config().crossattn_emb_channels, device)?;
        let renderer = Renderer {
            vae,
            dldm,
            dit,
            params: &params.diffusion,
            negative: negative.as_ref(),
            memory_bytes: ctx.memory_bytes,
        };
        let mut step = |_: usize, _: usize| match ctx.cancel.is_cancelled() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        };
        Ok(denormalise(renderer.render(video.narrow(2, 0, 1), codes, coarse, &mut step)?))
    }

    /// A row for each way; the last has the picture.
    fn judge(
        &self,
        unit: &Unit,
        out: &mut Output,
        truth: &[u8],
        [t, h, w]: [usize; 3],
        ways: &[Way],
    ) -> Result<(), StageError> {
        let device = Device::flex();
        let frame = h * w * 3;
        let shown = |pixels: &[u8]| pixels.chunks(frame).step_by(2).flatten().copied().collect::<Vec<u8>>();
        let rows: Vec<Vec<u8>> =
            [truth].into_iter().chain(ways.iter().map(|(_, drawn)| &drawn[0][..])).map(shown).collect();
        let columns = t.div_ceil(2);
        let sheet = Sheet { columns: columns as u32, ..Sheet::default() };
        let sheet = contact_sheet(&rows.concat(), [rows.len() * columns, h, w, 3], sheet)?;
        let sheet: Hash = self.ctx.blobs.put(&sheet)?;
        let size = [t - 1, h, w];
        let after = |pixels: &[u8]| normalise(&pixels[frame..], size, &device);
        let wanted = after(truth)?;
        for (index, (method, drawn)) in ways.iter().enumerate() {
            let (mut psnr, mut likeness, mut energy) = (0.0, 0.0, 0.0);
            for pixels in drawn {
                let mut errors = PixelErrors::default();
                errors.add(&truth[frame..], &pixels[frame..]);
                psnr += errors.psnr();
                likeness += ssim(after(pixels)?, wanted.clone())?;
                energy += gradient_energy(&pixels[frame..], size);
            }
            let count = drawn.len() as f64;
            let last = index + 1 == ways.len();
            let row = Evaluations::row(&Evaluation {
                method: (*method).to_owned(),
                psnr_db: (psnr / count) as f32,
                ssim: (likeness / count) as f32,
                sharpness: (energy / count / gradient_energy(&truth[frame..], size)) as f32,
                picture: last.then(|| sheet.to_string()),
            });
            let files = match last {
                true => vec![(format!("{}.png", unit.id.replace(['/', '#'], "_")), sheet)],
                false => Vec::new(),
            };
            out.push_with_files(unit, *method, row, files);
        }
        Ok(())
    }
}

/// Codes of a clip that has others than this one: `[1, N]`, if there is one. Drawn from the table by this one's name, so that
/// all weights are judged by the same clips.
fn strange_codes(table: &dyn Rows, unit: &Unit, own: &Encoded) -> Result<Option<Tensor<2, Int>>, StageError> {
    let device = own.codes.device();
    let own: Vec<i64> = own.indices.clone().into_data().convert::<i64>().try_into_vec()?;
    let start = fold(&unit.id, table.len().max(1) as u64) as usize;
    for distance in 0..table.len() {
        let row = table.row((start + distance) % table.len())?;
        let codes: Vec<u32> = Codes::view(&row)?.codes(0).iter().map(|&code| u32::from(code)).collect();
        if codes.len() == own.len() && codes.iter().zip(&own).any(|(code, own)| i64::from(*code) != *own) {
            return Ok(Some(indices(codes, &device)));
        }
    }
    Ok(None)
}

/// `[1, N]`.
fn indices(codes: Vec<u32>, device: &Device) -> Tensor<2, Int> {
    let codes: Vec<i64> = codes.into_iter().map(i64::from).collect();
    let count = codes.len();
    Tensor::from_data(TensorData::new(codes, [1, count]), device)
}

/// The sum of squared differences of neighbours, along rows and columns of u8 RGB `[T, H, W, 3]`.
fn gradient_energy(pixels: &[u8], [_, h, w]: [usize; 3]) -> f64 {
    let difference = |a: u8, b: u8| (f64::from(a) - f64::from(b)).powi(2);
    let row = w * 3;
    let mut sum = 0.0;
    for frame in pixels.chunks(h * row) {
        sum += frame.iter().zip(&frame[row..]).map(|(a, b)| difference(*a, *b)).sum::<f64>();
        sum +=
            frame.chunks(row).flat_map(|row| row.iter().zip(&row[3..])).map(|(a, b)| difference(*a, *b)).sum::<f64>();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_energy_counts_each_pair_of_neighbours() {
        // 2 x 2 pixels: a step of 2 along the row at the top, and of 1 and 3 along the columns, in all three channels.
        let pixels: Vec<u8> = [5, 7, 4, 4].into_iter().flat_map(|value| [value; 3]).collect();
        assert_eq!(gradient_energy(&pixels, [1, 2, 2]), 3.0 * (4.0 + 1.0 + 9.0));
        assert_eq!(gradient_energy(&pixels.repeat(2), [2, 2, 2]), 6.0 * (4.0 + 1.0 + 9.0));
    }
}
