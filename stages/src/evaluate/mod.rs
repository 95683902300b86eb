//! `evaluate`: clips to figures that say how well the models draw them again from their first frame and their own codes.
//!
//! Three ways: the first frame repeated, the dLDM's coarse decoder, and the DiT after it. Per clip a row for each, and a
//! picture: the true frames above those of each way.
//! Differs from a rollout: the codes are the clip's own, so that the pictures can be compared frame by frame.

use serde::{Deserialize, Serialize};
use vw2_data::media::{Sheet, contact_sheet};
use vw2_data::{Evaluation, Evaluations, Frames};
use vw2_engine::stage::{
    Context, InputFile, Interrupted, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};
use vw2_kernels::{denormalise, normalise};
use vw2_models::dit::VideoDit;
use vw2_models::dit::hint::resize;
use vw2_models::dldm::Dldm;
use vw2_models::train::metrics::ssim;
use vw2_models::vae::Vae;

use crate::diffusion::{Diffusion, Renderer};
use crate::model_file::{self, ModelFile};
use crate::tables;
use crate::training::PixelErrors;

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
    /// The folder that receives a picture per clip.
    pub path: Location,
}

/// Left out where their ports are connected.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateWeights {
    pub vae: Option<InputFile>,
    pub dldm: Option<InputFile>,
    pub dit: Option<InputFile>,
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "frames to figures: how well the models draw them again";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::row("frames", &tables::FRAMES),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("dit", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::EVALUATIONS;

    fn check(&self) -> Result<(), String> {
        self.diffusion.check()
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn row_id(&self, unit: &str, row: &str) -> String {
        format!("{unit}/{row}")
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
            params: self.clone(),
            ctx: ctx.clone(),
        }))
    }
}

struct Evaluator {
    vae: ModelFile<Vae>,
    dldm: ModelFile<Dldm>,
    dit: ModelFile<VideoDit>,
    params: Evaluate,
    ctx: Context,
}

impl Operator for Evaluator {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            self.evaluate(unit, out)?;
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        model_file::activation_bytes(unit, 64)
    }
}

impl Evaluator {
    fn evaluate(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let Evaluator { vae, dldm, dit, params, ctx } = self;
        let frames = Frames::view(unit.row("frames"))?;
        let truth = frames.pixels(0);
        let [t, h, w, _] = frames.shape(0);
        let (dldm, device) = dldm.get(unit)?;
        let (vae, dit) = (vae.get(unit)?.0, dit.get(unit)?.0);

        let video = model_file::clip_tensor(&frames, device)?; // [1, 3, T, H, W]
        let [dldm_h, dldm_w] = params.dldm_size.unwrap_or([h, w]);
        let reconstructed = dldm.reconstruct(resize(video.clone(), dldm_h, dldm_w));
        let (coarse, encoded) = match reconstructed {
            Ok(reconstructed) => reconstructed,
            Err(error) => {
                out.reject(unit, error.to_string());
                return Ok(());
            }
        };
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
        let drawn = renderer.render(video.narrow(2, 0, 1), encoded.codes, coarse.clone(), &mut step)?;

        let frame = h * w * 3;
        let ways = [
            ("repeat", truth[..frame].repeat(t)),
            ("coarse", denormalise(resize(coarse, h, w))),
            ("diffusion", denormalise(drawn)),
        ];
        let shown = |pixels: &[u8]| pixels.chunks(frame).step_by(2).flatten().copied().collect::<Vec<u8>>();
        let rows: Vec<Vec<u8>> =
            [truth].into_iter().chain(ways.iter().map(|(_, pixels)| &pixels[..])).map(shown).collect();
        let columns = t.div_ceil(2);
        let sheet = Sheet { columns: columns as u32, ..Sheet::default() };
        let sheet = ctx.blobs.put(&contact_sheet(&rows.concat(), [rows.len() * columns, h, w, 3], sheet)?)?;
        let size = [t - 1, h, w];
        let after = |pixels: &[u8]| normalise(&pixels[frame..], size, device);
        let wanted = after(truth)?;
        for (method, pixels) in &ways {
            let mut errors = PixelErrors::default();
            errors.add(&truth[frame..], &pixels[frame..]);
            let row = Evaluations::row(&Evaluation {
                method: (*method).to_owned(),
                psnr_db: errors.psnr() as f32,
                ssim: ssim(after(pixels)?, wanted.clone())? as f32,
                sharpness: (gradient_energy(&pixels[frame..], size) / gradient_energy(&truth[frame..], size)) as f32,
            });
            let files = match *method {
                "diffusion" => vec![(format!("{}.png", unit.id.replace(['/', '#'], "_")), sheet)],
                _ => Vec::new(),
            };
            out.push_with_files(unit, *method, row, files);
        }
        Ok(())
    }
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
