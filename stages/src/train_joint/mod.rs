//! `train-joint`: dLDM, diffusion transformer and its control branch learn together, the second step of VideoWorld 2.
//!
//! The clip's codes reach the DiT as tokens, and the DiT's loss teaches encoder, Q-Former and connector through the rounding
//! (straight through). The coarse decoder learns by reconstruction from detached codes, and its gray picture is the hint,
//! detached too. The DiT's target has its colours jittered; what the dLDM sees has not. The VAE stays as it is.
//! One file holds both models: connect this stage to the ports `dldm` and `dit` of others.
//! Source: spec section 7.3. Differs: the reconstruction's distance is L1 without a perceptual term; noise levels differ
//! between the clips of a minibatch (spec 10.1, Q10); base, branch and dLDM are clipped, each by its own norm (Q11).

mod both;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use vw2_data::Checkpoints;
use vw2_engine::stage::{
    Context, How, InputFile, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};
use vw2_kernels::normalise;
use vw2_models::dit::DitConfig;
use vw2_models::dit::hint::{control_hint, resize};
use vw2_models::train::jitter::{self, Jitter};
use vw2_models::train::order::{Order, mix};
use vw2_models::train::{Group, Log};
use vw2_models::vae::Vae;
use vw2_models::weights::{self, SaveType, Weights};

use crate::flow;
use crate::mixing::{self, Mix};
use crate::model_file::ModelFile;
use crate::tables;
use crate::training::{
    Check, ClipReader, Course, Curve, Draw, HeldOut, Lesson, Listening, Losses, OptimizerParams, Phase, Publication,
    Upkeep, held_out, parent_weights, plot_svg, publish, train,
};
use both::Both;

/// Trains on all clips of a frame table.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainJoint {
    #[serde(default)]
    pub weights: JointWeights,
    /// The DiT's configuration where it has no weights to start from: `tiny`, `released`.
    #[serde(default = "tiny")]
    pub preset: String,
    /// Optimizer updates.
    pub steps: u32,
    /// Clips per step.
    #[serde(default = "minibatch")]
    pub minibatch: usize,
    /// Height and width that the dLDM sees; default: the clips' own.
    #[serde(default)]
    pub dldm_size: Option<[usize; 2]>,
    /// Weight of the diffusion loss beside that of reconstruction, which is 1.
    #[serde(default = "diffusion_weight")]
    pub diffusion_weight: f64,
    /// Weight of the reconstruction's loss; 0 leaves the coarse decoder as it is (the paper's text; spec 10.2, D4).
    #[serde(default = "reconstruction_weight")]
    pub reconstruction_weight: f64,
    /// Codes are detached before the coarse decoder (released); otherwise its loss teaches the Q-Former, too.
    #[serde(default = "detach")]
    pub detach_codes: bool,
    /// How often a noise level is drawn from the high range instead of the log-normal one.
    #[serde(default = "high_sigma_share")]
    pub high_sigma_share: f64,
    /// Ranges of colour jitter (released, the default); `false` for none (paper).
    #[serde(default)]
    pub jitter: JitterParam,
    /// How often clips of each sub-dataset are seen; left out, every clip counts alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    #[serde(default)]
    pub seed: u64,
    /// Without groups of its own: `net.*`, `net_ctrl.*` and `ldm_net.*`, each clipped by its own norm.
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// How often the held-out clips are looked at.
    #[serde(default = "checks")]
    pub checks: u32,
    /// How the run is kept and shown: in no fingerprint.
    #[serde(default)]
    pub upkeep: How<Upkeep>,
    /// The folder that receives the weights, the metrics and the loss picture.
    pub path: Location,
}

/// Left out where their ports are connected; without `dit`, it starts fresh.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JointWeights {
    pub vae: Option<InputFile>,
    pub dldm: Option<InputFile>,
    pub dit: Option<InputFile>,
}

/// Colour jitter, or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum JitterParam {
    Switch(bool),
    Ranges(Jitter),
}

impl Default for JitterParam {
    fn default() -> JitterParam {
        JitterParam::Switch(true)
    }
}

impl JitterParam {
    fn ranges(&self) -> Option<Jitter> {
        match self {
            JitterParam::Switch(false) => None,
            JitterParam::Switch(true) => Some(Jitter::default()),
            JitterParam::Ranges(jitter) => Some(jitter.clone()),
        }
    }
}

fn tiny() -> String {
    "tiny".into()
}

fn minibatch() -> usize {
    4
}

fn diffusion_weight() -> f64 {
    10.0
}

fn reconstruction_weight() -> f64 {
    1.0
}

fn detach() -> bool {
    true
}

fn high_sigma_share() -> f64 {
    0.05
}

fn checks() -> u32 {
    10
}

impl Stage for TrainJoint {
    const KIND: &'static str = "train-joint";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "all frames to a dLDM and a diffusion transformer, trained together";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::whole("frames", &tables::FRAMES),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("dit", &tables::CHECKPOINTS).optional(),
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
        let weights =
            [("diffusion_weight", self.diffusion_weight), ("reconstruction_weight", self.reconstruction_weight)];
        if let Some((name, value)) = weights.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err(format!("`{name}` is {value}; it wants 0 or more"));
        }
        if let Some(jitter) = self.jitter.ranges() {
            jitter.check().map_err(|error| format!("`jitter`: {error}"))?;
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
        let vae = ModelFile::new(ctx, self.weights.vae.as_ref(), "vae", |file, device| Ok(Vae::load(file, device)?))?;
        Ok(Box::new(Trainer { vae, params: self.clone(), ctx: ctx.clone() }))
    }
}

struct Trainer {
    vae: ModelFile<Vae>,
    params: TrainJoint,
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

/// How many held-out clips are looked at.
const LOOKED_AT: usize = 8;

impl Trainer {
    fn train(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let (params, ctx) = (&self.params, &self.ctx);
        let table = unit.table("frames").expect("the plan connects required ports");
        let clips = ClipReader::new(table, ctx.memory_bytes / 2)?;
        let (rows, held) = held_out(table, 10);
        let (vae, device) = self.vae.get(unit)?;
        let model = first_model(params, ctx, unit, &device.clone().autodiff())?;
        let order = mixing::order(params.mix.as_ref(), table, &rows, params.minibatch, params.seed)?;
        let mut lesson = Joint { params, jitter: params.jitter.ranges(), clips, rows, held, order, vae, device };
        let mut optimizer = params.optimizer.clone();
        if optimizer.groups.is_empty() {
            let group = |names: &str| Group { names: names.into(), rate: 1.0, weight_decay: None, clip: None };
            optimizer.groups = both::PARTS.map(group).to_vec();
        }
        let phases = vec![Phase { steps: params.steps, optimizer }];
        let course = Course { ctx, unit, phases, checks: params.checks, upkeep: &params.upkeep };
        let trained = train(&course, model, &mut lesson)?;

        let held = lesson.look()?;
        if let Some(warning) = Listening::to(&trained.model.dldm, &held)?.warning() {
            tracing::warn!("{}: {warning}", unit.id);
        }
        let log = &trained.log;
        let mut metrics = Map::from_iter([("last_train_loss".to_owned(), json!(log.recent("loss", 50)))]);
        metrics.extend(trained.figures.iter().map(|&(name, value)| (name.to_owned(), json!(value))));
        let configs = [
            ("config.dit", serde_json::to_string(trained.model.dit.config())?),
            ("config.dldm", serde_json::to_string(trained.model.dldm.config())?),
        ];
        let publication = Publication {
            model: "joint",
            tensors: weights::collect(&trained.model),
            save_type: SaveType::F16,
            config: json!({ "dit": trained.model.dit.config(), "dldm": trained.model.dldm.config() }).to_string(),
            notes: configs.into(),
            steps: trained.steps,
            log,
            metrics: metrics.into(),
            picture: lesson.picture(log),
            files: Vec::new(),
        };
        publish(unit, out, ctx, publication)
    }
}

/// Where training starts: from what is published, if it is to go on from that; else from the connected checkpoints, from
/// files, and, for the DiT, from the seed.
fn first_model(params: &TrainJoint, ctx: &Context, unit: &Unit, device: &Device) -> Result<Both, StageError> {
    if let Some(path) = parent_weights(unit, ctx, "joint")? {
        return Both::load(&Weights::open(&path)?, &Weights::open(&path)?, device);
    }
    let find = |port: &str, file: &Option<InputFile>| -> Result<Option<Weights>, StageError> {
        let connected = unit.table(port).map(|table| -> Result<_, StageError> {
            Ok(ctx.blobs.path(&Checkpoints::view(&table.row(0)?)?.checkpoint(0).blob.parse()?))
        });
        let path = connected.transpose()?.or_else(|| file.as_ref().map(|file| file.0.clone()));
        Ok(path.map(Weights::open).transpose()?)
    };
    let Some(dldm) = find("dldm", &params.weights.dldm)? else {
        return Err("no dLDM: set `weights.dldm`, or connect a training stage to port `dldm`".into());
    };
    match find("dit", &params.weights.dit)? {
        Some(dit) => Both::load(&dldm, &dit, device),
        None => Both::with_fresh_dit(&dldm, &DitConfig::preset(&params.preset)?, device, params.seed),
    }
    .and_then(|both| both.with_branch(&DitConfig::preset(&params.preset)?, device, params.seed))
}

/// The lesson: clips, what the dLDM makes of them, and what the DiT makes of that.
struct Joint<'a> {
    params: &'a TrainJoint,
    jitter: Option<Jitter>,
    clips: ClipReader<'a>,
    /// Rows of the table to train on, and those that are held out.
    rows: Vec<usize>,
    held: Vec<usize>,
    order: Order,
    vae: &'a Vae,
    device: &'a Device,
}

impl Joint<'_> {
    fn picks(&mut self, draw: Draw) -> Vec<usize> {
        self.order.minibatch(draw.index).into_iter().map(|item| self.rows[item]).collect()
    }

    fn look(&mut self) -> Result<HeldOut, StageError> {
        let rows = &self.held[..self.held.len().min(LOOKED_AT)];
        Ok(HeldOut {
            clips: rows.iter().map(|&row| self.clips.clip(row)).collect::<Result<_, _>>()?,
            videos: rows.iter().map(|&row| crate::export::split_id(self.clips.id(row)).0.to_owned()).collect(),
            size: self.clips.size,
            device: self.device.clone(),
        })
    }

    /// u8 clips, one after the other, to f32 `[B, 3, T, H, W]` in [-1, 1], without graph.
    fn tensor(&self, pixels: &[u8]) -> Result<Tensor<5>, StageError> {
        let [t, h, w] = self.clips.size;
        let clips = pixels.chunks(t * h * w * 3).map(|clip| normalise(clip, [t, h, w], self.device));
        Ok(Tensor::cat(clips.collect::<Result<Vec<_>, _>>()?, 0))
    }

    /// Both losses of some clips: diffusion's, and reconstruction's. `target`: what the DiT is to draw.
    fn pass(
        &self,
        model: &Both,
        video: Tensor<5>,
        target: Tensor<5>,
        sigmas: &[f64],
        seed: u64,
    ) -> Result<[Tensor<1>; 2], StageError> {
        let [.., h, w] = video.dims();
        let [dldm_h, dldm_w] = self.params.dldm_size.unwrap_or([h, w]);
        let wrap = |x: Tensor<5>| if model.is_trained() { Tensor::from_inner(x) } else { x };
        let seen = wrap(resize(video, dldm_h, dldm_w));
        let encoded = model.dldm.encode(seen.clone())?;
        let codes = if self.params.detach_codes { encoded.codes.clone().detach() } else { encoded.codes.clone() };
        let coarse = model.dldm.decode(codes, encoded.first())?;
        let hint = wrap(self.vae.encode(control_hint(coarse.clone().inner(), h, w))?);
        let clean = wrap(self.vae.encode(target)?);
        let context = model.dldm.condition(encoded.codes)?;
        let diffusion = flow::loss(&model.dit, (clean, hint, context), sigmas, seed)?;
        Ok([diffusion, (coarse - seen).abs().mean()])
    }
}

impl Lesson for Joint<'_> {
    type Model = Both;
    const COUNTED: &'static str = "clips";
    const KEPT_BY: Option<&'static str> = None;

    fn losses(&mut self, model: &Both, draw: Draw) -> Result<Losses, StageError> {
        let picks = self.picks(draw);
        let [t, h, w] = self.clips.size;
        let all: Vec<(usize, usize)> = picks.iter().map(|&row| (row, 0)).collect();
        let pixels = self.clips.minibatch(&all, t)?;
        let seed = mix(self.params.seed, draw.number);
        let target = match &self.jitter {
            None => pixels.clone(),
            Some(jitter) => {
                let clips = pixels.chunks(t * h * w * 3).zip(0u64..);
                clips.flat_map(|(clip, i)| jitter::apply(&jitter.draw(mix(seed, i)), clip, h * w * 3)).collect()
            }
        };
        let latent_frames = 1 + (t - 1) / self.vae.config().time_step();
        let sigmas = flow::sigmas(picks.len(), latent_frames, self.params.high_sigma_share, seed);
        let [diffusion, pixels] = self.pass(model, self.tensor(&pixels)?, self.tensor(&target)?, &sigmas, seed)?;
        let value = |loss: &Tensor<1>| f64::from(loss.clone().into_scalar::<f32>());
        let parts = vec![("diffusion", value(&diffusion)), ("pixels", value(&pixels))];
        let TrainJoint { diffusion_weight, reconstruction_weight, .. } = *self.params;
        let total = diffusion.mul_scalar(diffusion_weight) + pixels.mul_scalar(reconstruction_weight);
        Ok(Losses { total, parts, amount: picks.len() as f64 })
    }

    fn rows(&mut self, draw: Draw) -> Vec<String> {
        self.picks(draw).into_iter().map(|row| self.clips.id(row).to_owned()).collect()
    }

    fn check(&mut self, model: &Both, _: Check) -> Result<Vec<(&'static str, f64)>, StageError> {
        let held = self.look()?;
        let (mut diffusion, mut pixels) = (0.0, 0.0);
        for index in 0..held.clips.len() {
            let video = held.tensor(index)?;
            let latent_frames = 1 + (held.size[0] - 1) / self.vae.config().time_step();
            let sigma = flow::spread(index, held.clips.len(), latent_frames);
            let losses = self.pass(model, video.clone(), video, &[sigma], index as u64)?;
            let [of_diffusion, of_pixels] = losses.map(|loss| f64::from(loss.into_scalar::<f32>()));
            diffusion += of_diffusion / held.clips.len() as f64;
            pixels += of_pixels / held.clips.len() as f64;
        }
        let mut figures = vec![("held_out_diffusion", diffusion), ("held_out_pixels", pixels)];
        figures.extend(Listening::to(&model.dldm, &held)?.figures());
        Ok(figures)
    }

    fn headline(&self, log: &Log) -> String {
        let [diffusion, pixels] = ["diffusion", "pixels"].map(|name| log.recent(name, 50));
        let (used, gap) = (log.recent("codes_used", 1), log.recent("shuffled_codes_gap_db", 1));
        format!("diffusion {diffusion:.3}, pixels {pixels:.4}, codes {used:.0}, gap {gap:.2} dB")
    }

    fn picture(&self, log: &Log) -> String {
        let held = |column: &str| log.points(column).to_vec();
        let curves = [
            Curve { name: "diffusion".into(), points: log.smoothed("diffusion", 25) },
            Curve { name: "diffusion, held out".into(), points: held("held_out_diffusion") },
            Curve { name: "pixels".into(), points: log.smoothed("pixels", 25) },
            Curve { name: "pixels, held out".into(), points: held("held_out_pixels") },
        ];
        plot_svg("dLDM and DiT together", "weighted squared error of x0; mean |x - x̂|", &curves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_without_sense_are_named() {
        let check = |text: &str| {
            let toml = format!("steps = 2\npath = \"out\"\n{text}");
            toml::from_str::<TrainJoint>(&toml).unwrap().check()
        };
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("jitter = false"), Ok(()));
        for (text, words) in [
            ("jitter = { hue = [0.2, 0.1] }", "`jitter`: `hue`"),
            ("diffusion_weight = -1.0", "`diffusion_weight` is -1"),
            ("high_sigma_share = 2.0", "`high_sigma_share` is 2"),
            ("preset = \"huge\"", "no preset `huge`"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
