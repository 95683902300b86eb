//! Training an autoencoder of video by reconstruction: what `train-vae` and `train-dldm` share.
//!
//! Loss: mean |x - x_hat| over all pixels in [-1, 1], or its square; what the model itself adds comes on top. One video in
//! ten is held out; on its clips the result is compared with "repeat the first frame".
//! Source: spec sections 3.7 and 7.2.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vw2_engine::stage::{Context, How, InputFile, Location, Operator, Output, StageError, Unit};
use vw2_kernels::{denormalise, device, normalise};
use vw2_models::train::Log;
use vw2_models::train::order::{Order, mix};
use vw2_models::train::perceptual::Vgg;
use vw2_models::weights::{self, Named, SaveType, Weights};

use super::trainer::{Check, Course, Draw, Lesson, Losses, Phase, Trained, Upkeep, train};
use super::ways::Ways;
use super::{
    ClipReader, Curve, HeldOut, OptimizerParams, PixelErrors, Publication, connected_weights, held_out, parent_weights,
    plot_svg, publish,
};
use crate::mixing::{self, Mix};

/// The parameters of a training by reconstruction.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Which model configuration: `tiny`, `released`.
    #[serde(default = "tiny")]
    pub preset: String,
    /// Weights to start from, in their own configuration; or connect port `init` to another training stage.
    #[serde(default)]
    pub init: Option<InputFile>,
    /// Optimizer updates; or list `phases`.
    #[serde(default)]
    pub steps: u32,
    /// Clips per step.
    #[serde(default = "minibatch")]
    pub minibatch: usize,
    /// Frames of each training clip, 1 + 4k, cut from the table's clips at a random place; default: all.
    #[serde(default)]
    pub frames: Option<usize>,
    /// Extra weight of pixels that differ from the clip's first frame. Where little moves, an unweighted mean teaches a
    /// model to repeat the first frame long before it learns what moves.
    #[serde(default)]
    pub motion_weight: f64,
    /// Distance of pixels: `l1` (released), `l2` (paper).
    #[serde(default)]
    pub loss: PixelLoss,
    /// How often clips of each sub-dataset are seen; left out, every clip counts alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// What is learned, and how much each part weighs.
    #[serde(default)]
    pub learn: Learn,
    /// Half of the training clips run backwards: twice the motion from as many videos.
    #[serde(default)]
    pub backwards: bool,
    /// Training clips are mirrored by chance, from left to right and from top to bottom: for scenes that have no up and no
    /// left, such as a table seen from above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirrored: bool,
    /// Training clips are turned by a quarter by chance, which wants square ones; with `mirrored`, every way to lay the
    /// picture down is as likely as another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub turned: bool,
    /// Training clips are shifted by up to so many pixels along each axis, by chance; what was at the border fills up. Where
    /// videos are few, things then stand in many more places.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub shifted: usize,
    /// Also compare what an ImageNet VGG-16 sees (released, with weight 0.1; spec 3.7). Without its weights the term is left
    /// out.
    #[serde(default)]
    pub perceptual: Option<Perceptual>,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// Parts of one run, one after the other; each starts a new optimizer, and takes what it does not say from above.
    #[serde(default)]
    pub phases: Vec<PhaseParams>,
    /// How often the held-out clips are looked at.
    #[serde(default = "checks")]
    pub checks: u32,
    /// How the run is kept and shown: in no fingerprint.
    #[serde(default)]
    pub upkeep: How<Upkeep>,
    /// The folder that receives the weights, the metrics and the pictures.
    pub path: Location,
}

/// One part of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseParams {
    pub steps: u32,
    #[serde(default)]
    pub minibatch: Option<usize>,
    #[serde(default)]
    pub frames: Option<usize>,
    #[serde(default)]
    pub motion_weight: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shifted: Option<usize>,
    #[serde(default)]
    pub loss: Option<PixelLoss>,
    #[serde(default)]
    pub learn: Option<Learn>,
    #[serde(default)]
    pub optimizer: Option<OptimizerParams>,
}

/// Weights of what is learned. All but `video` are for a dLDM from nothing (see `train_dldm/changes.rs`): with the default,
/// which is the released training, such a one lets its codes fall together and draws the still scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Learn {
    /// The clip again, from its first frame and its codes.
    pub video: f64,
    /// Each latent frame's picture, from its own map, without codes.
    pub stills: f64,
    /// Each latent frame's pixels from its map by a linear map of each cell: what the maps hold then lies open.
    pub cells: f64,
    /// What changes between latent frames, said by the codes before they are rounded, after what `motion` has them say.
    pub changes: f64,
    /// How far things move between latent frames, said likewise, so that a linear map reads it.
    #[serde(skip_serializing_if = "super::is_zero")]
    pub motion: f64,
}

impl Default for Learn {
    fn default() -> Learn {
        Learn { video: 1.0, stills: 0.0, cells: 0.0, changes: 0.0, motion: 0.0 }
    }
}

impl Learn {
    fn check(&self) -> Result<(), String> {
        let weights = [self.video, self.stills, self.cells, self.changes, self.motion];
        match weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0) && weights.iter().sum::<f64>() > 0.0 {
            true => Ok(()),
            false => Err("`learn`: weights are 0 or more, and one at least is above 0".into()),
        }
    }
}

/// The perceptual term of the loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perceptual {
    /// VGG-16's weights by torchvision's names: `vgg16-397923af.pth`, or a copy as safetensors.
    pub weights: InputFile,
    #[serde(default = "perceptual_weight")]
    pub weight: f64,
}

fn perceptual_weight() -> f64 {
    0.1
}

/// How far apart pixels are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PixelLoss {
    #[default]
    L1,
    L2,
}

fn tiny() -> String {
    "tiny".into()
}

fn minibatch() -> usize {
    4
}

fn checks() -> u32 {
    10
}

/// A phase with all that it takes from the stage written in.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) steps: u32,
    pub(crate) minibatch: usize,
    /// `None`: all that the table's clips have.
    pub(crate) frames: Option<usize>,
    pub(crate) motion_weight: f64,
    pub(crate) shifted: usize,
    pub(crate) loss: PixelLoss,
    pub(crate) learn: Learn,
    pub(crate) optimizer: OptimizerParams,
}

impl Reconstruction {
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.steps, self.phases.is_empty()) {
            (0, true) => return Err("`steps` is 0; say how many, or list `phases`".into()),
            (1.., false) => return Err("`steps` and `phases` are both given; leave one out".into()),
            _ => {}
        }
        if self.phases.iter().any(|phase| phase.steps == 0) {
            return Err("`phases`: each has at least 1 step".into());
        }
        for part in self.parts() {
            part.check()?;
        }
        self.mix.as_ref().map_or(Ok(()), Mix::check)?;
        if let Some(Perceptual { weight, .. }) =
            self.perceptual.as_ref().filter(|term| !term.weight.is_finite() || term.weight < 0.0)
        {
            return Err(format!("`perceptual.weight` is {weight}; it wants 0 or more"));
        }
        self.upkeep.0.check()
    }

    /// The run's phases; one of the stage's own keys where none are listed.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let whole = Part {
            steps: self.steps,
            minibatch: self.minibatch,
            frames: self.frames,
            motion_weight: self.motion_weight,
            shifted: self.shifted,
            loss: self.loss,
            learn: self.learn.clone(),
            optimizer: self.optimizer.clone(),
        };
        if self.phases.is_empty() {
            return vec![whole];
        }
        let part = |phase: &PhaseParams| Part {
            steps: phase.steps,
            minibatch: phase.minibatch.unwrap_or(whole.minibatch),
            frames: phase.frames.or(whole.frames),
            motion_weight: phase.motion_weight.unwrap_or(whole.motion_weight),
            shifted: phase.shifted.unwrap_or(whole.shifted),
            loss: phase.loss.unwrap_or(whole.loss),
            learn: phase.learn.clone().unwrap_or_else(|| whole.learn.clone()),
            optimizer: phase.optimizer.clone().unwrap_or_else(|| whole.optimizer.clone()),
        };
        self.phases.iter().map(part).collect()
    }

    fn ways(&self, part: &Part) -> Ways {
        let Reconstruction { backwards, mirrored, turned, .. } = *self;
        Ways { backwards, mirrored, turned, shifted: part.shifted }
    }
}

impl Part {
    fn check(&self) -> Result<(), String> {
        if self.minibatch == 0 {
            return Err("`minibatch` is at least 1".into());
        }
        if let Some(frames) = self.frames.filter(|frames| frames % 4 != 1) {
            return Err(format!("`frames` is {frames}, but clips have 1 + 4k frames"));
        }
        if !(self.motion_weight.is_finite() && self.motion_weight >= 0.0) {
            return Err(format!("`motion_weight` is {}; it wants 0 or more", self.motion_weight));
        }
        self.learn.check()?;
        self.optimizer.check()
    }
}

/// A model that reconstructs video.
pub(crate) trait Reconstruct: Module + Named {
    /// `vae` or `dldm`, as table `checkpoints` names it.
    const NAME: &'static str;
    /// What [`Reconstruct::learn`] goes by beside the clip.
    type Guide;

    fn init(preset: &str, seed: u64, device: &Device) -> Result<Self, StageError>;

    fn load(weights: &Weights, device: &Device) -> Result<Self, StageError>;

    /// Whether the model has the sizes that [`Reconstruct::init`] gives it.
    fn is_preset(&self, preset: &str) -> Result<bool, StageError>;

    /// Made once, from training clips f32 [1, 3, T, H, W]; the same in every try of a run.
    fn guide(
        &self,
        learn: &[Learn],
        clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>,
        device: &Device,
    ) -> Result<Self::Guide, StageError>;

    /// What the model draws of training clips x f32 [B, 3, T, H, W] in [-1, 1].
    fn learn(&self, x: Tensor<5>, learn: &Learn, guide: &Self::Guide) -> Result<Drawn, StageError>;

    /// x f32 [B, 3, T, H, W] in [-1, 1] to the same, and whatever is added to the loss.
    fn reconstruct(&self, x: Tensor<5>) -> Result<Reconstructed, StageError>;

    /// More figures of how the model does on held-out clips.
    fn figures(&self, _held: &HeldOut) -> Result<Vec<(&'static str, f64)>, StageError> {
        Ok(Vec::new())
    }

    /// What the user should know of the trained model before it is used.
    fn warning(&self, _held: &HeldOut) -> Result<Option<String>, StageError> {
        Ok(None)
    }

    /// The last touch after training, from clips f32 [1, 3, T, H, W] of the training set.
    fn finish(self, _clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>) -> Result<Self, StageError> {
        Ok(self)
    }

    /// What the checkpoint holds of it.
    fn published(&self) -> Vec<(String, TensorData)> {
        weights::collect(self)
    }

    fn config(&self) -> Value;
}

/// A clip as a model draws it again.
pub(crate) struct Reconstructed {
    /// f32 [B, 3, T, H, W], about [-1, 1].
    pub(crate) video: Tensor<5>,
    /// Terms of the loss beside the distance of pixels, weighted, by name.
    pub(crate) penalties: Vec<(&'static str, Tensor<1>)>,
}

/// What a model is taught by a minibatch.
#[derive(Default)]
pub(crate) struct Drawn {
    pub(crate) pictures: Vec<Picture>,
    /// Terms of the loss beside the distance of pixels, weighted, by name.
    pub(crate) penalties: Vec<(&'static str, Tensor<1>)>,
}

/// Something drawn, and what it should have been: f32 [B, 3, T, H, W].
pub(crate) struct Picture {
    pub(crate) name: &'static str,
    pub(crate) weight: f64,
    pub(crate) video: Tensor<5>,
    pub(crate) truth: Tensor<5>,
}

impl Picture {
    pub(crate) fn video(video: Tensor<5>, truth: Tensor<5>, weight: f64) -> Picture {
        Picture { name: PIXELS, weight, video, truth }
    }
}

/// How many training clips [`Reconstruct::guide`] sees at most.
const GUIDE_CLIPS: usize = 512;
/// How many training clips [`Reconstruct::finish`] sees at most.
const FINISH_CLIPS: usize = 64;
/// How many held-out clips are looked at in a run, and at its end.
const LOOKED_AT: usize = 8;
const LOOKED_AT_LAST: usize = 32;
/// How many clips the picture shows.
const SHOWN: usize = 8;

/// The operator: one unit is the whole table of frames.
pub(crate) struct Reconstructor<M> {
    params: Reconstruction,
    ctx: Context,
    model: std::marker::PhantomData<M>,
}

impl<M: Reconstruct + 'static> Reconstructor<M> {
    pub(crate) fn open(params: &Reconstruction, ctx: &Context) -> Box<dyn Operator> {
        Box::new(Reconstructor::<M> { params: params.clone(), ctx: ctx.clone(), model: std::marker::PhantomData })
    }
}

impl<M: Reconstruct> Operator for Reconstructor<M> {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            self.train(unit, out)?;
        }
        Ok(())
    }
}

impl<M: Reconstruct> Reconstructor<M> {
    fn train(&self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let (params, ctx) = (&self.params, &self.ctx);
        let table = unit.table("frames").expect("the plan connects required ports");
        let mut clips = ClipReader::new(table, ctx.memory_bytes / 2)?;
        let parts = params.parts();
        let [_, h, w] = clips.size;
        let ways: Vec<Ways> = parts.iter().map(|part| params.ways(part)).collect();
        ways.iter().try_for_each(|ways| ways.check([h, w]))?;
        if let Some(frames) = parts.iter().filter_map(|part| part.frames).find(|frames| *frames > clips.size[0]) {
            return Err(format!("`frames` is {frames}, but clips have {}", clips.size[0]).into());
        }
        let (train_rows, held) = held_out(table, 10);
        let device = device::parse(&ctx.device)?;
        let model = self.first_model(unit, &device.clone().autodiff())?;
        if params.perceptual.is_none() && params.preset == "released" && M::NAME == "dldm" {
            let remedy = "give VGG-16's weights as `perceptual = { weights = … }`";
            tracing::warn!("{}: the loss has no perceptual term, which the released one has; {remedy}", unit.id);
        }
        let perceptual = match &params.perceptual {
            Some(Perceptual { weights, weight }) => Some((Vgg::load(&Weights::open(&weights.0)?, &device)?, *weight)),
            None => None,
        };
        let orders = parts.iter().enumerate().map(|(phase, part)| {
            let seed = if phase == 0 { params.seed } else { mix(params.seed, phase as u64) };
            mixing::order(params.mix.as_ref(), table, &train_rows, part.minibatch, seed)
        });
        let orders = orders.collect::<Result<_, _>>()?;
        let learn: Vec<Learn> = parts.iter().map(|part| part.learn.clone()).collect();
        let size = clips.size;
        let step = train_rows.len().div_ceil(GUIDE_CLIPS);
        let mut seen = train_rows.iter().step_by(step).map(|&row| Ok(normalise(&clips.clip(row)?, size, &device)?));
        let guide = model.guide(&learn, &mut seen, &device)?;
        let mut lesson = Reconstructing::<M> {
            parts,
            orders,
            seed: params.seed,
            ways,
            clips,
            rows: train_rows,
            held,
            device,
            guide,
            perceptual,
        };
        let phases = lesson.parts.iter();
        let phases = phases.map(|part| Phase { steps: part.steps, optimizer: part.optimizer.clone() }).collect();
        let course = Course { ctx, unit, phases, checks: params.checks, upkeep: &params.upkeep };
        let trained = train(&course, model, &mut lesson)?;
        self.finish(unit, out, trained, lesson)
    }

    /// Where training starts: from the connected checkpoint, from the one that is published, from a file, or from the seed.
    fn first_model(&self, unit: &Unit, device: &Device) -> Result<M, StageError> {
        let Reconstruction { preset, init, seed, .. } = &self.params;
        if let Some(path) = connected_weights(unit, &self.ctx)? {
            return M::load(&Weights::open(&path)?, device);
        }
        if let Some(path) = parent_weights(unit, &self.ctx, M::NAME)? {
            let parent = M::load(&Weights::open(&path)?, device)?;
            // Of a file's configuration nothing is known here; a preset that was changed since starts afresh.
            if init.is_some() || parent.is_preset(preset)? {
                return Ok(parent);
            }
        }
        match init {
            Some(file) => M::load(&Weights::open(&file.0)?, device),
            None => M::init(preset, *seed, device),
        }
    }

    /// Weights, metrics, loss picture and sample reconstructions.
    fn finish(
        &self,
        unit: &Unit,
        out: &mut Output,
        trained: Trained<M>,
        mut lesson: Reconstructing<'_, M>,
    ) -> Result<(), StageError> {
        let Reconstructing { clips, rows, device, .. } = &mut lesson;
        let size = clips.size;
        let mut seen = rows.iter().take(FINISH_CLIPS).map(|&index| Ok(normalise(&clips.clip(index)?, size, device)?));
        let model = trained.model.finish(&mut seen)?;
        let held = lesson.look(LOOKED_AT_LAST)?;
        if let Some(warning) = model.warning(&held)? {
            tracing::warn!("{}: {warning}", unit.id);
        }
        let mut drawn: Vec<Vec<u8>> = Vec::new();
        for index in 0..held.clips.len().min(SHOWN) {
            drawn.push(denormalise(model.reconstruct(held.tensor(index)?)?.video));
        }
        let rows: Vec<&[u8]> =
            drawn.iter().zip(&held.clips).flat_map(|(drawn, clip)| [&clip[..], &drawn[..]]).collect();
        let sheet = held.sheet(&rows)?;
        let log = &trained.log;
        let mut metrics = Map::from_iter([("train_l1".to_owned(), json!(log.recent(PIXELS, 50)))]);
        metrics.extend(trained.figures.iter().map(|&(name, value)| (name.to_owned(), json!(value))));
        let publication = Publication {
            model: M::NAME,
            tensors: model.published(),
            save_type: SaveType::F16,
            config: model.config().to_string(),
            notes: Vec::new(),
            steps: trained.steps,
            log,
            metrics: metrics.into(),
            picture: lesson.picture(log),
            files: vec![("reconstruction.png", sheet)],
        };
        publish(unit, out, &self.ctx, publication)
    }
}

/// The column of the distance of pixels: mean over all, without extra weights.
const PIXELS: &str = "pixels";

/// The lesson: clips and their reconstructions.
struct Reconstructing<'a, M: Reconstruct> {
    parts: Vec<Part>,
    /// The order of the data, by phase.
    orders: Vec<Order>,
    seed: u64,
    /// In which ways clips may stand, by phase.
    ways: Vec<Ways>,
    clips: ClipReader<'a>,
    /// Rows of the table to train on, and those that are held out.
    rows: Vec<usize>,
    held: Vec<usize>,
    device: Device,
    guide: M::Guide,
    /// The network of the perceptual term, and the term's weight.
    perceptual: Option<(Vgg, f64)>,
}

impl<M: Reconstruct> Reconstructing<'_, M> {
    /// Table rows of a minibatch, each with the frame at which the piece starts.
    fn picks(&mut self, draw: Draw) -> Vec<(usize, usize)> {
        let clip_frames = self.clips.size[0];
        let frames = self.parts[draw.phase].frames.unwrap_or(clip_frames);
        let items = self.orders[draw.phase].minibatch(draw.index).into_iter().enumerate();
        items
            .map(|(place, item)| {
                let start = mix(self.seed, draw.number << 16 | place as u64) % (clip_frames - frames + 1) as u64;
                (self.rows[item], start as usize)
            })
            .collect()
    }

    /// The first held-out clips.
    fn look(&mut self, count: usize) -> Result<HeldOut, StageError> {
        let rows = &self.held[..self.held.len().min(count)];
        Ok(HeldOut {
            clips: rows.iter().map(|&row| self.clips.clip(row)).collect::<Result<_, _>>()?,
            videos: rows.iter().map(|&row| crate::export::split_id(self.clips.id(row)).0.to_owned()).collect(),
            size: self.clips.size,
            device: self.device.clone(),
        })
    }
}

impl<M: Reconstruct> Lesson for Reconstructing<'_, M> {
    type Model = M;
    const COUNTED: &'static str = "clips";
    const KEPT_BY: Option<&'static str> = None;

    fn losses(&mut self, model: &M, draw: Draw) -> Result<Losses, StageError> {
        let picks = self.picks(draw);
        let part = &self.parts[draw.phase];
        let [clip_frames, h, w] = self.clips.size;
        let frames = part.frames.unwrap_or(clip_frames);
        let mut pixels = self.clips.minibatch(&picks, frames)?;
        for (place, clip) in pixels.chunks_mut(frames * h * w * 3).enumerate() {
            self.ways[draw.phase].vary(clip, [h, w], mix(!self.seed, draw.number << 16 | place as u64));
        }
        let x = Tensor::from_inner(minibatch_tensor(&pixels, [picks.len(), frames, h, w], &self.device)?);
        let Drawn { pictures, mut penalties } = model.learn(x, &part.learn, &self.guide)?;
        let value = |loss: &Tensor<1>| f64::from(loss.clone().into_scalar::<f32>());
        let mut parts: Vec<_> = penalties.iter().map(|(name, penalty)| (*name, value(penalty))).collect();
        for Picture { name, weight, video: drawn, truth } in pictures {
            let difference = drawn.clone() - truth.clone();
            // A distance whatever the loss, so that it stands beside those of held-out clips.
            parts.push((name, value(&difference.clone().inner().abs().mean())));
            let error = match part.loss {
                PixelLoss::L1 => difference.abs(),
                PixelLoss::L2 => difference.square(),
            };
            if let (PIXELS, Some((vgg, weight))) = (name, &self.perceptual) {
                let term = vgg.distance(truth.clone(), drawn)?;
                parts.push(("perceptual", value(&term)));
                penalties.push(("perceptual", term.mul_scalar(*weight)));
            }
            penalties.push((name, weighted_mean(error, truth, part.motion_weight).mul_scalar(weight)));
        }
        let total = penalties.into_iter().reduce(|(_, sum), (_, penalty)| ("", sum + penalty));
        let (_, total) = total.expect("`Learn::check` wants one weight above 0");
        Ok(Losses { total, parts, amount: picks.len() as f64 })
    }

    fn rows(&mut self, draw: Draw) -> Vec<String> {
        self.picks(draw).into_iter().map(|(row, _)| self.clips.id(row).to_owned()).collect()
    }

    fn check(&mut self, model: &M, at: Check) -> Result<Vec<(&'static str, f64)>, StageError> {
        let held = self.look(if at.last { LOOKED_AT_LAST } else { LOOKED_AT })?;
        let (mut ours, mut repeated) = (PixelErrors::default(), PixelErrors::default());
        for (index, clip) in held.clips.iter().enumerate() {
            ours.add(clip, &denormalise(model.reconstruct(held.tensor(index)?)?.video));
            repeated.add(clip, &clip[..held.frame_bytes()].repeat(held.size[0]));
        }
        let mut figures = vec![
            ("held_out_l1", ours.l1()),
            ("held_out_psnr_db", ours.psnr()),
            ("first_frame_repeated_l1", repeated.l1()),
            ("first_frame_repeated_psnr_db", repeated.psnr()),
        ];
        figures.extend(model.figures(&held)?);
        Ok(figures)
    }

    fn headline(&self, log: &Log) -> String {
        let pixels = log.recent(PIXELS, 20);
        let mut line = match pixels.is_nan() {
            true => format!("loss {:.4}", log.recent("loss", 20)), // a phase that draws no clips
            false => format!("pixels {pixels:.4}"),
        };
        if let Some((_, gap)) = log.points("shuffled_codes_gap_db").last() {
            line += &format!(", codes {:.0}, gap {gap:.2} dB", log.recent("codes_used", 1));
        }
        line
    }

    fn picture(&self, log: &Log) -> String {
        let curve = |name: &str, column: &str| Curve { name: name.into(), points: log.points(column).to_vec() };
        let curves = [
            curve("training", PIXELS),
            curve("held out", "held_out_l1"),
            curve("first frame repeated", "first_frame_repeated_l1"),
        ];
        plot_svg(&format!("{}: reconstruction", M::NAME), "mean distance of pixels in [-1, 1]", &curves)
    }
}

/// What counts as motion: 13 of 255 levels, above the noise of video coding.
const MOTION: f64 = 0.1;

/// The mean of errors [B, 3, T, H, W], with more weight where the clip x has left its first frame.
fn weighted_mean(error: Tensor<5>, x: Tensor<5>, motion_weight: f64) -> Tensor<1> {
    if motion_weight == 0.0 {
        return error.mean();
    }
    let change = (x.clone() - x.narrow(2, 0, 1)).abs();
    let weight = change.greater_elem(MOTION).float().mul_scalar(motion_weight).add_scalar(1.0);
    (error * weight.clone()).sum() / weight.sum()
}

/// u8 [B, T, H, W, 3] to f32 [B, 3, T, H, W] in [-1, 1].
fn minibatch_tensor(pixels: &[u8], [b, t, h, w]: [usize; 4], device: &Device) -> Result<Tensor<5>, StageError> {
    let clips = pixels.chunks(t * h * w * 3).map(|clip| normalise(clip, [t, h, w], device));
    let clips = clips.collect::<Result<Vec<_>, _>>()?;
    debug_assert_eq!(clips.len(), b, "the pixels are those of `b` clips");
    Ok(Tensor::cat(clips, 0))
}
