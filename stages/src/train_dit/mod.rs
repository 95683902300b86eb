//! `train-dit`: trains the diffusion transformer with its control branch to render clips from codes and coarse hints.
//!
//! VAE and dLDM are ready-made and stay as they are: each clip, in each way that it is laid down, is encoded once, decoded
//! coarsely from its own codes for the hint, and base and branch learn by the rectified-flow loss. One video in ten is held out, and the model that is kept
//! is the one with the lowest loss on it.
//! Source: spec sections 5.1, 5.2 and 7.3. Differs: the dLDM does not learn along (`train-joint` does that), colours are not
//! jittered.

mod examples;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_engine::stage::{
    Context, How, InputFile, Location, Needs, Operator, Output, Placement, Port, Rows, Stage, StageError, Table, Unit,
};
use vw2_models::dit::{DitConfig, VideoDit};
use vw2_models::dldm::Dldm;
use vw2_models::train::Log;
use vw2_models::train::order::{Order, mix};
use vw2_models::vae::Vae;
use vw2_models::weights::{self, SaveType, Weights};

use crate::flow;
use crate::mixing::{self, Mix};
use crate::model_file::ModelFile;
use crate::tables;
use crate::training::{
    Check, ClipReader, Course, Curve, Draw, Lesson, Losses, OptimizerParams, Phase, Publication, Upkeep, Ways,
    connected_weights, held_out, parent_weights, plot_svg, publish, train,
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
    /// How often clips of each sub-dataset are seen; left out, every clip counts alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// Half of the training clips run backwards, as in `train-dldm`; the model then learns from what the dLDM makes of such ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backwards: bool,
    /// Training clips are mirrored by chance, from left to right and from top to bottom.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirrored: bool,
    /// Training clips are turned by a quarter by chance, which wants square ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub turned: bool,
    /// Training clips are shifted by up to so many pixels along each axis, by chance; no example is kept then, so each step
    /// encodes its clips anew.
    #[serde(default, skip_serializing_if = "crate::training::is_zero")]
    pub shifted: usize,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// How often the held-out clips are looked at; the model that is kept is the one with the lowest loss on them.
    #[serde(default = "checks")]
    pub checks: u32,
    /// How the run is kept and shown: in no fingerprint.
    #[serde(default)]
    pub upkeep: How<Upkeep>,
    /// The folder that receives the weights, the metrics and the loss picture.
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

fn checks() -> u32 {
    20
}

impl Stage for TrainDit {
    const KIND: &'static str = "train-dit";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "all frames to a diffusion transformer with control branch";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::whole("frames", &tables::FRAMES),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("init", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn expand(params: toml::Table) -> Result<toml::Table, String> {
        crate::training::expand(Self::KIND, params)
    }

    fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 {
            return Err("`steps` and `minibatch` are at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.high_sigma_share) {
            return Err(format!("`high_sigma_share` is {}; it wants to be in 0..=1", self.high_sigma_share));
        }
        DitConfig::preset(&self.preset).map_err(|error| error.to_string())?;
        self.mix.as_ref().map_or(Ok(()), Mix::check)?;
        self.upkeep.0.check()?;
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

impl Trainer {
    fn train(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let (params, ctx) = (self.params.clone(), self.ctx.clone());
        let table = unit.table("frames").expect("the plan connects required ports");
        let clips = ClipReader::new(table, 0)?;
        let TrainDit { backwards, mirrored, turned, shifted, .. } = params;
        let ways = Ways { backwards, mirrored, turned, shifted };
        ways.check([clips.size[1], clips.size[2]])?;
        let (train_rows, held) = held_out(table, 10);
        let (dldm, _) = self.dldm.get(unit)?;
        let (vae, device) = self.vae.get(unit)?;
        let mut examples = Examples::new(vae, dldm, device, clips, params.dldm_size, ways, ctx.memory_bytes / 2);
        let held: Vec<_> = held.iter().take(32).map(|&row| (row, None)).collect();
        let held = examples.minibatch(&held)?;

        let autodiff = device.clone().autodiff();
        let model = first_model(&params, &ctx, unit, dldm.config().dit_dim, &autodiff)?;
        let order = mixing::order(params.mix.as_ref(), table, &train_rows, params.minibatch, params.seed)?;
        let mut lesson =
            Denoising { params: &params, table, examples, rows: train_rows, held, order, device, autodiff };
        let phases = vec![Phase { steps: params.steps, optimizer: params.optimizer.clone() }];
        let course = Course { ctx: &ctx, unit, phases, checks: params.checks, upkeep: &params.upkeep };
        let trained = train(&course, model, &mut lesson)?;

        let log = &trained.log;
        let publication = Publication {
            model: "dit",
            tensors: weights::collect(&trained.model),
            save_type: SaveType::F16,
            config: serde_json::to_string(trained.model.config())?,
            notes: Vec::new(),
            steps: trained.steps,
            log,
            metrics: json!({
                "kept_step": trained.kept_step,
                "held_out_loss": log.lowest(HELD_OUT).map(|(_, loss)| loss),
                "last_train_loss": log.recent("loss", 50),
            }),
            picture: lesson.picture(log),
            files: Vec::new(),
        };
        publish(unit, out, &ctx, publication)
    }
}

/// The column of the loss on held-out clips.
const HELD_OUT: &str = "held_out_loss";

/// The lesson: noisy latents and the clean ones.
struct Denoising<'a> {
    params: &'a TrainDit,
    table: &'a dyn Rows,
    examples: Examples<'a>,
    /// Rows of the table to train on.
    rows: Vec<usize>,
    held: Minibatch,
    order: Order,
    device: &'a Device,
    autodiff: Device,
}

impl Denoising<'_> {
    fn picks(&mut self, draw: Draw) -> Vec<usize> {
        self.order.minibatch(draw.index).into_iter().map(|item| self.rows[item]).collect()
    }
}

impl Lesson for Denoising<'_> {
    type Model = VideoDit;
    const COUNTED: &'static str = "clips";
    const KEPT_BY: Option<&'static str> = Some(HELD_OUT);

    fn losses(&mut self, model: &VideoDit, draw: Draw) -> Result<Losses, StageError> {
        let seed = mix(self.params.seed, draw.number);
        let chance = |place: usize| mix(!self.params.seed, draw.number << 16 | place as u64);
        let picks = self.picks(draw).into_iter().enumerate().map(|(place, row)| (row, Some(chance(place))));
        let picks: Vec<_> = picks.collect();
        let minibatch = self.examples.minibatch(&picks)?;
        let sigmas = flow::sigmas(minibatch.len, minibatch.shape[1], self.params.high_sigma_share, seed);
        let total = flow::loss(model, minibatch.tensors(&self.autodiff), &sigmas, seed)?;
        Ok(Losses { total, parts: Vec::new(), amount: picks.len() as f64 })
    }

    fn rows(&mut self, draw: Draw) -> Vec<String> {
        self.picks(draw).into_iter().map(|row| self.table.id(row).to_owned()).collect()
    }

    fn check(&mut self, model: &VideoDit, _: Check) -> Result<Vec<(&'static str, f64)>, StageError> {
        Ok(vec![(HELD_OUT, held_out_loss(model, &self.held, self.params.minibatch, self.device)?)])
    }

    fn headline(&self, log: &Log) -> String {
        let lowest = log.lowest(HELD_OUT).map_or(f64::NAN, |(_, loss)| loss);
        format!("loss {:.3}, held out {lowest:.3}", log.recent("loss", 50))
    }

    fn picture(&self, log: &Log) -> String {
        let curves = [
            Curve { name: "training".into(), points: log.smoothed("loss", 25) },
            Curve { name: "held out".into(), points: log.points(HELD_OUT).to_vec() },
        ];
        plot_svg("DiT: rectified flow", "weighted squared error of x0", &curves)
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

/// Mean loss of the held-out clips at noise levels spread evenly over the training distribution; the same in each check.
fn held_out_loss(model: &VideoDit, held: &Minibatch, size: usize, device: &Device) -> Result<f64, StageError> {
    let mut sum = 0.0;
    for start in (0..held.len).step_by(size) {
        let part = held.part(start, size.min(held.len - start));
        let level = |clip: usize| flow::spread(start + clip, held.len, held.shape[1]);
        let sigmas: Vec<f64> = (0..part.len).map(level).collect();
        let loss = flow::loss(model, part.tensors(device), &sigmas, start as u64)?;
        sum += f64::from(loss.into_scalar::<f32>()) * part.len as f64;
    }
    Ok(sum / held.len as f64)
}
