//! `train-dit`: trains the diffusion transformer with its control branch to render clips from codes and coarse hints.
//!
//! VAE and dLDM are ready-made and stay as they are: each clip is encoded once, decoded coarsely from its own codes for
//! the hint, and base and branch learn by the rectified-flow loss. One video in ten is held out, and the model that is kept
//! is the one with the lowest loss on it.
//! Source: spec sections 5.1, 5.2 and 7.3. Differs: the dLDM does not learn along, colours are not jittered.

mod examples;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_data::{Checkpoint, Checkpoints};
use vw2_engine::stage::{
    Context, InputFile, Interrupted, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};
use vw2_models::dit::{Conditions, Denoiser, DitConfig, VideoDit, flow_loss};
use vw2_models::dldm::Dldm;
use vw2_models::sampler::{NumpyNormal, TrainingSigmas};
use vw2_models::train::order::{Order, mix};
use vw2_models::vae::Vae;
use vw2_models::weights::{self, SaveType, Weights};

use crate::model_file::ModelFile;
use crate::tables;
use crate::training::{
    ClipReader, Curve, Optimizer, OptimizerParams, connected_weights, held_out, parent_weights, plot_svg, recent_mean,
};
use examples::{Examples, Minibatch};

/// Trains on all clips of a frame table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainDit {
    #[serde(default)]
    pub weights: DitWeights,
    /// Which model configuration: `tiny`, `released`.
    #[serde(default = "tiny")]
    pub preset: String,
    /// Weights to start from, in their own configuration; a base without a control branch is given a fresh one. Or connect
    /// port `init` to another training stage.
    #[serde(default)]
    pub init: Option<InputFile>,
    /// Optimizer updates.
    pub steps: u32,
    /// Clips per step.
    #[serde(default = "minibatch")]
    pub minibatch: usize,
    /// Height and width that the dLDM sees; default: the clips' own.
    #[serde(default)]
    pub dldm_size: Option<[usize; 2]>,
    /// How often a noise level is drawn from the high range instead of the log-normal one.
    #[serde(default = "high_sigma_share")]
    pub high_sigma_share: f64,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// The folder that receives the weights and the loss picture.
    pub path: Location,
}

/// The models that the DiT is conditioned by. Left out where their ports are connected.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DitWeights {
    pub vae: Option<InputFile>,
    pub dldm: Option<InputFile>,
}

fn tiny() -> String {
    "tiny".into()
}

fn minibatch() -> usize {
    16
}

fn high_sigma_share() -> f64 {
    0.05
}

impl Stage for TrainDit {
    const KIND: &'static str = "train-dit";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "all frames to a diffusion transformer with control branch";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::whole("frames", &tables::FRAMES),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("init", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 {
            return Err("`steps` and `minibatch` are at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.high_sigma_share) {
            return Err(format!("`high_sigma_share` is {}; it wants to be in 0..=1", self.high_sigma_share));
        }
        DitConfig::preset(&self.preset).map_err(|error| error.to_string())?;
        self.optimizer.check()
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn trains(&self) -> bool {
        true
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(Trainer {
            vae: ModelFile::new(ctx, self.weights.vae.as_ref(), "vae", |file, device| Ok(Vae::load(file, device)?))?,
            dldm: ModelFile::new(ctx, self.weights.dldm.as_ref(), "dldm", |file, device| {
                Ok(Dldm::load(file, device)?)
            })?,
            params: self.clone(),
            ctx: ctx.clone(),
        }))
    }
}

/// How often the held-out clips are looked at in a run.
const CHECKS: u32 = 20;

struct Trainer {
    vae: ModelFile<Vae>,
    dldm: ModelFile<Dldm>,
    params: TrainDit,
    ctx: Context,
}

impl Operator for Trainer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            self.train(unit, out)?;
        }
        Ok(())
    }
}

/// Losses by step: of the training minibatches, and of the held-out clips.
#[derive(Default)]
struct Losses {
    train: Vec<(u32, f64)>,
    held: Vec<(u32, f64)>,
}

impl Trainer {
    fn train(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let (params, ctx) = (self.params.clone(), self.ctx.clone());
        let table = unit.table("frames").expect("the plan connects required ports");
        let clips = ClipReader::new(table, 0)?;
        let (train, held) = held_out(table, 10);
        let (dldm, _) = self.dldm.get(unit)?;
        let (vae, device) = self.vae.get(unit)?;
        let mut examples = Examples::new(vae, dldm, device, clips, params.dldm_size, ctx.memory_bytes / 2);
        let held = examples.minibatch(&held[..held.len().min(32)])?;

        let autodiff = device.clone().autodiff();
        let mut model = first_model(&params, &ctx, unit, dldm.config().dit_dim, &autodiff)?;
        let mut optimizer = Optimizer::new(&params.optimizer, params.steps);
        let mut order = Order::new(train.len(), params.minibatch, params.seed);
        let mut losses = Losses::default();
        let mut best = Module::valid(&model);
        let mut lowest = f64::INFINITY;
        let every = params.steps.div_ceil(CHECKS);
        for step in 0..=params.steps {
            if ctx.cancel.is_cancelled() {
                return Err(Interrupted.into());
            }
            if step % every == 0 || step == params.steps {
                let model = Module::valid(&model);
                let loss = held_out_loss(&model, &held, params.minibatch, device)?;
                losses.held.push((step, loss));
                if loss < lowest {
                    (lowest, best) = (loss, model);
                }
            }
            if step == params.steps {
                break;
            }
            let picks: Vec<usize> = order.minibatch(u64::from(step)).into_iter().map(|item| train[item]).collect();
            let minibatch = examples.minibatch(&picks)?;
            let seed = mix(params.seed, u64::from(step));
            let sigmas = sigmas(&minibatch, params.high_sigma_share, seed);
            let loss = minibatch_loss(&model, &minibatch, &sigmas, seed, &autodiff)?;
            optimizer.step(&mut model, &loss);
            losses.train.push((step + 1, f64::from(loss.into_scalar::<f32>())));
            let text = format!("loss {:.3}, held out {lowest:.3}", recent_mean(&losses.train, 50));
            ctx.progress.steps(u64::from(step) + 1, u64::from(params.steps), &text);
        }
        self.finish(unit, out, &best, losses)
    }

    /// Weights, loss picture and metrics, as files and as one row.
    fn finish(&self, unit: &Unit, out: &mut Output, model: &VideoDit, losses: Losses) -> Result<(), StageError> {
        let blobs = &self.ctx.blobs;
        let config = serde_json::to_string(model.config())?;
        let metadata = BTreeMap::from([("config".to_owned(), config.clone())]);
        let weights = blobs.put(&weights::to_safetensors(&weights::collect(model), &metadata, SaveType::F16)?)?;
        let lowest = losses.held.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let (kept_step, kept_loss) = lowest.unwrap_or((0, f64::NAN));
        let metrics = json!({
            "kept_step": kept_step,
            "held_out_loss": kept_loss,
            "last_train_loss": recent_mean(&losses.train, 50),
        });
        let curves = [
            Curve { name: "training".into(), points: smoothed(&losses.train, 25) },
            Curve { name: "held out".into(), points: losses.held },
        ];
        let picture = plot_svg("DiT: rectified flow", "weighted squared error of x0", &curves);
        let files = vec![
            ("dit.safetensors".to_owned(), weights),
            ("loss.svg".to_owned(), blobs.put(picture.as_bytes())?),
            ("metrics.json".to_owned(), blobs.put(format!("{metrics:#}\n").as_bytes())?),
        ];
        let row = Checkpoint {
            model: "dit".into(),
            blob: weights.to_string(),
            config,
            steps: self.params.steps,
            metrics: metrics.to_string(),
        };
        out.push_with_files(unit, "", Checkpoints::row(&row)?, files);
        Ok(())
    }
}

/// Where training starts: from the connected checkpoint, from the one that is published, from a file, or from the seed.
fn first_model(
    params: &TrainDit,
    ctx: &Context,
    unit: &Unit,
    context: usize,
    device: &Device,
) -> Result<VideoDit, StageError> {
    let config = DitConfig { crossattn_emb_channels: context, ..DitConfig::preset(&params.preset)? };
    let connected = connected_weights(unit, ctx)?;
    if connected.is_none()
        && let Some(path) = parent_weights(unit, ctx, "dit")?
    {
        let parent = VideoDit::load(&Weights::open(&path)?, device)?;
        // Of a file's configuration nothing is known here; a preset or a dLDM that was changed since starts afresh.
        if params.init.is_some() || parent.config() == &config {
            return Ok(parent);
        }
    }
    let Some(path) = connected.or_else(|| params.init.as_ref().map(|file| file.0.clone())) else {
        return Ok(VideoDit::new(&config, device, params.seed)?);
    };
    let dit = VideoDit::load(&Weights::open(&path)?, device)?;
    match dit.config().control_blocks {
        0 => Ok(dit.with_fresh_branch(config.control_blocks, device, params.seed)?),
        _ => Ok(dit),
    }
}

/// A noise level for each clip of a step.
fn sigmas(minibatch: &Minibatch, high_share: f64, seed: u64) -> Vec<f64> {
    let levels = TrainingSigmas { high_share, ..TrainingSigmas::video(minibatch.shape[1]) };
    let mut rng = StdRng::seed_from_u64(seed);
    (0..minibatch.len).map(|_| levels.at(rng.random(), rng.random())).collect()
}

/// The loss of one minibatch at these noise levels; the noise follows from the seed.
fn minibatch_loss(
    model: &VideoDit,
    minibatch: &Minibatch,
    sigmas: &[f64],
    seed: u64,
    device: &Device,
) -> Result<Tensor<1>, StageError> {
    let (clean, hint, context) = minibatch.tensors(device);
    let shape = clean.dims();
    let noise = NumpyNormal::new(seed as u32).take(shape.iter().product());
    let per_clip = noise.len() / sigmas.len();
    let noise = noise.iter().enumerate().map(|(i, value)| value * sigmas[i / per_clip] as f32).collect::<Vec<f32>>();
    let x = clean.clone() + Tensor::from_data(burn::tensor::TensorData::new(noise, shape), device);
    let conditions = Conditions { clean: clean.clone(), given: 1, hint: Some(hint), padding: None, fps: None };
    let predicted = Denoiser::new(model, conditions)?.clean(x, sigmas, context)?;
    Ok(flow_loss(clean, predicted, sigmas).mean())
}

/// Mean loss of the held-out clips at noise levels spread evenly over the training distribution; the same in each check.
fn held_out_loss(model: &VideoDit, held: &Minibatch, size: usize, device: &Device) -> Result<f64, StageError> {
    let levels = TrainingSigmas { high_share: 0.0, ..TrainingSigmas::video(held.shape[1]) };
    let mut sum = 0.0;
    for start in (0..held.len).step_by(size) {
        let part = held.part(start, size.min(held.len - start));
        let level = |clip: usize| levels.at(1.0, ((start + clip) as f64 + 0.5) / held.len as f64);
        let sigmas: Vec<f64> = (0..part.len).map(level).collect();
        let loss = minibatch_loss(model, &part, &sigmas, start as u64, device)?;
        sum += f64::from(loss.into_scalar::<f32>()) * part.len as f64;
    }
    Ok(sum / held.len as f64)
}

/// Means over `count` points each: the loss of one step hangs on its noise levels.
fn smoothed(points: &[(u32, f64)], count: usize) -> Vec<(u32, f64)> {
    points.chunks(count).map(|part| (part[part.len() - 1].0, recent_mean(part, count))).collect()
}
