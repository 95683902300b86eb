//! The operator: clip after clip, each kept for the next try until the whole rollout is done.

use burn::tensor::{Device, Int, Tensor, TensorData};
use vw2_data::media;
use vw2_data::{Rollout as RolloutRow, Rollouts};
use vw2_engine::stage::{Context, Interrupted, Operator, Output, StageError, Unit};
use vw2_kernels::{denormalise, normalise, rgb_resize};
use vw2_models::dit::VideoDit;
use vw2_models::dit::hint::resize;
use vw2_models::dldm::Dldm;
use vw2_models::vae::Vae;

use super::codes::{ClipCodes, CodeSource};
use super::film::{Clip, Film};
use super::{Render, Rollout};
use crate::diffusion::Renderer;
use crate::model_file::{ModelFile, values};

pub(super) struct Imaginer {
    params: Rollout,
    ctx: Context,
    codes: CodeSource,
    dldm: ModelFile<Dldm>,
    drawing: Option<Drawing>,
}

/// What only `render = "diffusion"` needs.
struct Drawing {
    vae: ModelFile<Vae>,
    dit: ModelFile<VideoDit>,
}

/// Where both recursions stand: the last frame of each, `[1, 3, 1, H, W]`, raw.
struct Frames {
    coarse: Tensor<5>,
    sharp: Tensor<5>,
}

impl Imaginer {
    pub(super) fn open(params: &Rollout, ctx: &Context) -> Result<Imaginer, StageError> {
        let weights = &params.weights;
        let drawing = || -> Result<Drawing, StageError> {
            Ok(Drawing {
                vae: ModelFile::new(ctx, weights.vae.as_ref(), "vae", |file, device| Ok(Vae::load(file, device)?))?,
                dit: ModelFile::new(ctx, weights.dit.as_ref(), "dit", |file, device| {
                    Ok(VideoDit::load(file, device)?)
                })?,
            })
        };
        Ok(Imaginer {
            codes: CodeSource::open(params, ctx)?,
            dldm: ModelFile::new(ctx, weights.dldm.as_ref(), "dldm", |file, device| Ok(Dldm::load(file, device)?))?,
            drawing: (params.render == Render::Diffusion).then(drawing).transpose()?,
            params: params.clone(),
            ctx: ctx.clone(),
        })
    }
}

impl Operator for Imaginer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let Some(path) = unit.file.clone() else {
                return Err(format!("{}: the scene goes back to no file", unit.id).into());
            };
            match media::image::decode(&path) {
                Ok(scene) => {
                    for rollout in 0..self.params.rollouts {
                        self.imagine(unit, &scene, rollout, out)?;
                    }
                }
                Err(error) if error.is_transient() => out.retry(unit, error.reason()),
                Err(error) => out.reject(unit, error.reason()),
            }
        }
        Ok(())
    }
}

impl Imaginer {
    fn imagine(
        &mut self,
        unit: &Unit,
        scene: &media::image::RgbImage,
        rollout: u64,
        out: &mut Output,
    ) -> Result<(), StageError> {
        let Imaginer { params, ctx, codes, dldm, drawing } = self;
        let dldm_size = params.dldm_size().map(|side| side as usize);
        let size = match params.render {
            Render::Coarse => dldm_size,
            Render::Diffusion => params.size.map(|side| side as usize),
        };
        let (dldm, device) = dldm.get(unit)?;
        let pixels = rgb_resize(&scene.pixels, [scene.height as usize, scene.width as usize], size)?;
        let sharp = normalise(&pixels, [1, size[0], size[1]], device)?;
        let coarse = if size == dldm_size { sharp.clone() } else { resize(sharp.clone(), dldm_size[0], dldm_size[1]) };
        let mut frames = Frames { coarse, sharp };
        let codes = match codes.codes(unit, dldm.first_frame_feature(frames.coarse.clone())?, rollout)? {
            Ok(codes) => codes,
            Err(reason) => {
                out.reject(unit, reason);
                return Ok(());
            }
        };

        let models = match drawing {
            Some(Drawing { vae, dit }) => Some((vae.get(unit)?.0, dit.get(unit)?.0)),
            None => None,
        };
        let negative = match models {
            Some((_, dit)) => params.diffusion.negative_context(dit.config().crossattn_emb_channels, device)?,
            None => None,
        };
        let renderer = models.map(|(vae, dit)| Renderer {
            vae,
            dldm,
            dit,
            params: &params.diffusion,
            negative: negative.as_ref(),
            memory_bytes: ctx.memory_bytes,
        });
        let mut film = Film::new(params, &ctx.blobs, size)?;
        for (index, clip_codes) in codes.iter().enumerate() {
            let name = kept_name(rollout, index);
            let clip = match Clip::kept(ctx, unit, &name, &mut frames, device) {
                Some(clip) => clip,
                None => {
                    let clip = Pass { ctx, unit, index, clips: codes.len() }.clip(
                        dldm,
                        renderer.as_ref(),
                        clip_codes,
                        &mut frames,
                    )?;
                    clip.keep(ctx, unit, &name, &frames)?;
                    clip
                }
            };
            film.push(&clip)?;
        }
        publish(unit, out, rollout, &codes, film, params.fps, size)
    }
}

/// One clip of a scene's rollout.
struct Pass<'a> {
    ctx: &'a Context,
    unit: &'a Unit,
    index: usize,
    clips: usize,
}

impl Pass<'_> {
    /// Draws the clip, and leaves both recursions at its last frame.
    fn clip(
        &self,
        dldm: &Dldm,
        renderer: Option<&Renderer<'_>>,
        codes: &[u32],
        frames: &mut Frames,
    ) -> Result<Clip, StageError> {
        if self.ctx.cancel.is_cancelled() {
            return Err(Interrupted.into());
        }
        let device = frames.coarse.device();
        let indices: Vec<i64> = codes.iter().map(|&code| i64::from(code)).collect();
        let indices = Tensor::<2, Int>::from_data(TensorData::new(indices, [1, codes.len()]), &device);
        let codes = dldm.codes_of(indices);
        let coarse = dldm.decode(codes.clone(), dldm.first_frame_feature(frames.coarse.clone())?)?; // [1, 3, T, h, w]
        let last = coarse.dims()[2] - 1;
        frames.coarse = coarse.clone().narrow(2, last, 1);
        let Some(renderer) = renderer else {
            return Ok(Clip { last: denormalise(coarse), coarse: None });
        };
        let mut step = |done: usize, all: usize| -> Result<(), StageError> {
            if self.ctx.cancel.is_cancelled() {
                return Err(Interrupted.into());
            }
            let text = format!("{}, clip {} of {}", self.unit.id, self.index + 1, self.clips);
            self.ctx.progress.steps((self.index * all + done) as u64, (self.clips * all) as u64, &text);
            Ok(())
        };
        let video = renderer.render(frames.sharp.clone(), codes, coarse.clone(), &mut step)?;
        frames.sharp = video.clone().narrow(2, last, 1);
        Ok(Clip { last: denormalise(video), coarse: Some(denormalise(coarse)) })
    }
}

impl Clip {
    /// Leaves the clip, and where the recursions stand after it, for a next try.
    fn keep(&self, ctx: &Context, unit: &Unit, name: &str, frames: &Frames) -> Result<(), StageError> {
        let scratch = &ctx.scratch;
        scratch.write(unit, &format!("{name}.last"), &self.last)?;
        if let Some(coarse) = &self.coarse {
            scratch.write(unit, &format!("{name}.coarse"), coarse)?;
        }
        let state: Vec<f32> = [&frames.coarse, &frames.sharp].into_iter().flat_map(|x| values(x.clone())).collect();
        // Written last: where it is, the others are.
        scratch.write(unit, &format!("{name}.state"), bytemuck::cast_slice(&state))?;
        Ok(())
    }

    /// What [`Clip::keep`] left, if the last try came this far.
    fn kept(ctx: &Context, unit: &Unit, name: &str, frames: &mut Frames, device: &Device) -> Option<Clip> {
        let read = |part: &str| ctx.scratch.read(unit, &format!("{name}.{part}"));
        let state = read("state")?;
        let (last, coarse) = (read("last")?, read("coarse"));
        let state: Vec<f32> = bytemuck::pod_collect_to_vec(&state);
        let (coarse_shape, sharp_shape) = (frames.coarse.dims(), frames.sharp.dims());
        let split = coarse_shape.iter().product();
        if state.len() != split + sharp_shape.iter().product::<usize>() {
            return None;
        }
        let (a, b) = state.split_at(split);
        frames.coarse = Tensor::from_data(TensorData::new(a.to_vec(), coarse_shape), device);
        frames.sharp = Tensor::from_data(TensorData::new(b.to_vec(), sharp_shape), device);
        Some(Clip { last, coarse })
    }
}

/// What the files of a clip are called in scratch.
fn kept_name(rollout: u64, index: usize) -> String {
    if rollout == 0 { format!("clip_{index}") } else { format!("rollout_{rollout}_clip_{index}") }
}

/// The film's files and the row that names the video.
fn publish(
    unit: &Unit,
    out: &mut Output,
    rollout: u64,
    codes: &ClipCodes,
    film: Film<'_>,
    fps: f64,
    [h, w]: [usize; 2],
) -> Result<(), StageError> {
    let film = film.finish()?;
    let row = Rollouts::row(&RolloutRow {
        clips: codes.len() as u32,
        frames: film.frames as u32,
        width: w as u32,
        height: h as u32,
        fps: fps as f32,
        codes: codes.iter().flatten().map(|&code| code as u16).collect(),
        blob: film.video.to_string(),
    })?;
    let name = if rollout == 0 { String::new() } else { (rollout + 1).to_string() };
    out.push_with_files(unit, name, row, film.files);
    Ok(())
}
