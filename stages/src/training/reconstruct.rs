//! Training an autoencoder of video by reconstruction: what `train-vae` and `train-dldm` share.
//!
//! Loss: mean |x - x_hat| over all pixels in [-1, 1] (spec section 3.7; the perceptual term needs VGG weights that are
//! not shipped). One video in ten is held out; on its clips the result is compared with "repeat the first frame".

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_data::media::{Sheet, contact_sheet};
use vw2_data::{Checkpoint, Checkpoints};
use vw2_engine::stage::{Context, InputFile, Interrupted, Location, Operator, Output, StageError, Unit};
use vw2_kernels::{denormalise, device, normalise};
use vw2_models::train::order::{Order, mix};
use vw2_models::weights::{self, Named, SaveType, Weights};

use super::clips::{ClipReader, held_out};
use super::{Curve, Optimizer, OptimizerParams, PixelErrors, connected_weights, parent_weights, plot_svg, recent_mean};

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
    /// Optimizer updates.
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
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// The folder that receives the weights and the pictures.
    pub path: Location,
}

fn tiny() -> String {
    "tiny".into()
}

fn minibatch() -> usize {
    4
}

impl Reconstruction {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 {
            return Err("`steps` and `minibatch` are at least 1".into());
        }
        if let Some(frames) = self.frames.filter(|frames| frames % 4 != 1) {
            return Err(format!("`frames` is {frames}, but clips have 1 + 4k frames"));
        }
        if !(self.motion_weight.is_finite() && self.motion_weight >= 0.0) {
            return Err(format!("`motion_weight` is {}; it wants 0 or more", self.motion_weight));
        }
        self.optimizer.check()
    }
}

/// A model that reconstructs video.
pub(crate) trait Reconstruct: Named + Clone {
    /// `vae` or `dldm`, as table `checkpoints` names it.
    const NAME: &'static str;

    fn init(preset: &str, seed: u64, device: &Device) -> Result<Self, StageError>;

    fn load(weights: &Weights, device: &Device) -> Result<Self, StageError>;

    /// Whether the model has the sizes that [`Reconstruct::init`] gives it.
    fn is_preset(&self, preset: &str) -> Result<bool, StageError>;

    /// x f32 [B, 3, T, H, W] in [-1, 1] to the same, and whatever is added to the loss.
    fn reconstruct(&self, x: Tensor<5>) -> Result<(Tensor<5>, Option<Tensor<1>>), StageError>;

    /// The same model without a graph.
    fn valid(&self) -> Self;

    /// The last touch after training, from clips f32 [1, 3, T, H, W] of the training set.
    fn finish(self, _clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>) -> Result<Self, StageError> {
        Ok(self)
    }

    fn config(&self) -> serde_json::Value;
}

/// How many training clips [`Reconstruct::finish`] sees at most.
const FINISH_CLIPS: usize = 64;

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
        let [clip_frames, h, w] = clips.size;
        let frames = params.frames.unwrap_or(clip_frames);
        if frames > clip_frames {
            return Err(format!("`frames` is {frames}, but clips have {clip_frames}").into());
        }
        let (train, held) = held_out(table, 10);

        let device = device::parse(&ctx.device)?;
        let mut model = self.first_model(unit, &device.clone().autodiff())?;
        let mut optimizer = Optimizer::new(&params.optimizer, params.steps);
        let mut order = Order::new(train.len(), params.minibatch, params.seed);
        let mut losses = Vec::with_capacity(params.steps as usize);
        for step in 0..params.steps {
            if ctx.cancel.is_cancelled() {
                return Err(Interrupted.into());
            }
            let picks: Vec<(usize, usize)> = order
                .minibatch(u64::from(step))
                .into_iter()
                .enumerate()
                .map(|(place, item)| {
                    let draw = mix(params.seed, u64::from(step) << 16 | place as u64);
                    (train[item], (draw % (clip_frames - frames + 1) as u64) as usize)
                })
                .collect();
            let x = minibatch_tensor(&clips.minibatch(&picks, frames)?, [picks.len(), frames, h, w], &device)?;
            let x = Tensor::from_inner(x);
            let (recon, penalty) = model.reconstruct(x.clone())?;
            let error = (recon - x.clone()).abs();
            let l1 = f64::from(error.clone().mean().into_scalar::<f32>());
            let loss = weighted_mean(error, x, params.motion_weight);
            let loss = match penalty {
                Some(penalty) => loss + penalty,
                None => loss,
            };
            optimizer.step(&mut model, &loss);
            losses.push((step + 1, l1));
            let text = format!("L1 {:.4}", recent_mean(&losses, 20));
            ctx.progress.steps(u64::from(step) + 1, u64::from(params.steps), &text);
        }
        let size = clips.size;
        let mut seen = train.iter().take(FINISH_CLIPS).map(|&index| Ok(normalise(&clips.clip(index)?, size, &device)?));
        let model = model.valid().finish(&mut seen)?;
        let check = evaluate(&model, &mut clips, &held, &device)?;
        self.finish(unit, out, &model, &losses, check)
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

    /// Weights, loss picture and sample reconstructions, as files and as one row.
    fn finish(
        &self,
        unit: &Unit,
        out: &mut Output,
        model: &M,
        losses: &[(u32, f64)],
        check: Check,
    ) -> Result<(), StageError> {
        let blobs = &self.ctx.blobs;
        let metadata = BTreeMap::from([("config".to_owned(), model.config().to_string())]);
        let weights = blobs.put(&weights::to_safetensors(&weights::collect(model), &metadata, SaveType::F16)?)?;
        let curve = Curve { name: "training L1".into(), points: losses.to_vec() };
        let level =
            |name: &str, value| Curve { name: name.into(), points: vec![(0, value), (self.params.steps, value)] };
        let curves = [curve, level("held out", check.l1), level("first frame repeated", check.repeat_l1)];
        let picture = plot_svg(&format!("{}: reconstruction", M::NAME), "mean |x - x̂| in [-1, 1]", &curves);
        let metrics = json!({
            "train_l1": recent_mean(losses, 50),
            "held_out_l1": check.l1,
            "held_out_psnr_db": check.psnr,
            "first_frame_repeated_l1": check.repeat_l1,
            "first_frame_repeated_psnr_db": check.repeat_psnr,
        });
        let files = vec![
            (format!("{}.safetensors", M::NAME), weights),
            ("loss.svg".to_owned(), blobs.put(picture.as_bytes())?),
            ("reconstruction.png".to_owned(), blobs.put(&check.sheet)?),
            ("metrics.json".to_owned(), blobs.put(format!("{metrics:#}\n").as_bytes())?),
        ];
        let row = Checkpoints::row(&Checkpoint {
            model: M::NAME.into(),
            blob: weights.to_string(),
            config: model.config().to_string(),
            steps: self.params.steps,
            metrics: metrics.to_string(),
        })?;
        out.push_with_files(unit, "", row, files);
        Ok(())
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

/// How a model does on clips that it was not trained on, and how repeating the first frame does.
struct Check {
    l1: f64,
    psnr: f64,
    repeat_l1: f64,
    repeat_psnr: f64,
    /// PNG: per clip a row of frames and a row of their reconstructions.
    sheet: Vec<u8>,
}

fn evaluate<M: Reconstruct>(
    model: &M,
    clips: &mut ClipReader<'_>,
    held: &[usize],
    device: &Device,
) -> Result<Check, StageError> {
    let [t, h, w] = clips.size;
    let (mut ours, mut repeated) = (PixelErrors::default(), PixelErrors::default());
    let mut rows: Vec<Vec<u8>> = Vec::new();
    let frame_bytes = h * w * 3;
    for &index in held.iter().take(32) {
        let clip = clips.clip(index)?;
        let (recon, _) = model.reconstruct(normalise(&clip, [t, h, w], device)?)?;
        let recon = denormalise(recon);
        ours.add(&clip, &recon);
        repeated.add(&clip, &clip[..frame_bytes].repeat(t));
        if rows.len() < 8 {
            rows.push(every_fourth(&clip, frame_bytes));
            rows.push(every_fourth(&recon, frame_bytes));
        }
    }
    let columns = t.div_ceil(4);
    let sheet = Sheet { columns: columns as u32, ..Sheet::default() };
    let sheet = contact_sheet(&rows.concat(), [rows.len() * columns, h, w, 3], sheet)?;
    Ok(Check { l1: ours.l1(), psnr: ours.psnr(), repeat_l1: repeated.l1(), repeat_psnr: repeated.psnr(), sheet })
}

fn every_fourth(frames: &[u8], frame_bytes: usize) -> Vec<u8> {
    frames.chunks(frame_bytes).step_by(4).flatten().copied().collect()
}

/// u8 [B, T, H, W, 3] to f32 [B, 3, T, H, W] in [-1, 1].
fn minibatch_tensor(pixels: &[u8], [b, t, h, w]: [usize; 4], device: &Device) -> Result<Tensor<5>, StageError> {
    let clips = pixels.chunks(t * h * w * 3).map(|clip| normalise(clip, [t, h, w], device));
    let clips = clips.collect::<Result<Vec<_>, _>>()?;
    debug_assert_eq!(clips.len(), b, "the pixels are those of `b` clips");
    Ok(Tensor::cat(clips, 0))
}
