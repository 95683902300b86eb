//! `train-ar`: all codes to an autoregressive model over them.
//!
//! One example per video: the picture of its first frame (the dLDM's feature, kept by `extract`), its task, and the codes
//! of all its clips. One video in five is held out; its cross-entropy stands beside that of guessing by frequency, alone and
//! after the code before, and the model that is kept is the one with the lowest.
//! Source: spec sections 6.1 and 6.4.

use burn::tensor::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_engine::stage::{
    Context, How, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};
use vw2_kernels::device;
use vw2_models::ar::{ArConfig, CodeConfig, CodeModel, Example, Minibatch, Vocabulary};
use vw2_models::train::Log;
use vw2_models::train::order::{Order, mix};
use vw2_models::weights::{self, SaveType, Weights};

use crate::baselines::Baselines;
use crate::mixing::{self, Mix};
use crate::scenes::{Scenes, TASKS};
use crate::tables;
use crate::training::{
    Check, Course, Curve, Draw, Lesson, Losses, OptimizerParams, Phase, Publication, Trained, Upkeep, parent_weights,
    plot_svg, publish, train,
};

/// Trains a decoder over codes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainAr {
    /// Size of the decoder: `tiny`, `small`, `300m` (VideoWorld 1), `4b` (paper).
    #[serde(default = "tiny")]
    pub preset: String,
    /// Optimizer updates.
    pub steps: u32,
    /// Videos per step.
    #[serde(default = "minibatch")]
    pub minibatch: usize,
    /// Side of the squares of feature positions that are averaged into one position of the image prefix.
    #[serde(default = "one")]
    pub pool: usize,
    /// Codes share what they have in common: each also has rows for its digits, the levels that it is made of.
    #[serde(default = "digits")]
    pub digits: bool,
    /// Share of the codes that each step hides from the decoder, which still has to predict them: where videos are few, it
    /// learns them by heart otherwise.
    #[serde(default, skip_serializing_if = "crate::training::is_zero")]
    pub hide: f64,
    /// How often videos of each sub-dataset are seen; left out, every video counts alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub optimizer: OptimizerParams,
    /// How often the held-out videos are looked at; the model that is kept is the one with the lowest loss on them.
    #[serde(default = "checks")]
    pub checks: u32,
    /// How the run is kept and shown: in no fingerprint.
    #[serde(default)]
    pub upkeep: How<Upkeep>,
    /// The folder that receives the weights, the metrics and the loss picture.
    pub path: Location,
}

fn tiny() -> String {
    "tiny".into()
}

fn minibatch() -> usize {
    16
}

fn digits() -> bool {
    true
}

fn one() -> usize {
    1
}

fn checks() -> u32 {
    20
}

impl Stage for TrainAr {
    const KIND: &'static str = "train-ar";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "all codes to an autoregressive model";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::whole("codes", &tables::CODES)];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn expand(params: toml::Table) -> Result<toml::Table, String> {
        crate::training::expand(Self::KIND, params)
    }

    fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 || self.pool == 0 {
            return Err("`steps`, `minibatch` and `pool` are at least 1".into());
        }
        ArConfig::preset(&self.preset, 1).map_err(|error| error.to_string())?;
        if !(0.0..1.0).contains(&self.hide) {
            return Err(format!("`hide` is {}; it wants 0 or more, and less than 1", self.hide));
        }
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
        Ok(Box::new(Trainer { params: self.clone(), ctx: ctx.clone() }))
    }
}

/// One video in so many is held out.
pub(crate) const HELD_OUT_ONE_IN: u64 = 5;

struct Trainer {
    params: TrainAr,
    ctx: Context,
}

impl Operator for Trainer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let table = unit.table("codes").expect("the plan connects required ports");
            match Scenes::read(table, HELD_OUT_ONE_IN)? {
                Ok(scenes) => self.train(unit, &scenes, out)?,
                Err(reason) => out.reject(unit, reason),
            }
        }
        Ok(())
    }
}

impl Trainer {
    fn train(&self, unit: &Unit, scenes: &Scenes, out: &mut Output) -> Result<(), StageError> {
        let (params, ctx) = (&self.params, &self.ctx);
        let vocabulary = Vocabulary { codes: scenes.levels.iter().product(), tasks: TASKS as u32 };
        let config = CodeConfig {
            decoder: ArConfig::preset(&params.preset, vocabulary.size())?,
            levels: scenes.levels.clone(),
            tasks: TASKS as u32,
            feature: scenes.feature,
            pool: params.pool,
            clip_codes: scenes.clip_codes,
            digits: params.digits,
        };
        let device = device::parse(&ctx.device)?;
        let autodiff = device.clone().autodiff();
        let model = self.first_model(unit, &config, &autodiff)?;
        let videos: Vec<&str> = scenes.train.iter().map(|scene| scene.video.as_str()).collect();
        let all: Vec<usize> = (0..videos.len()).collect();
        let minibatch = params.minibatch.min(videos.len());
        let order = mixing::order_of(params.mix.as_ref(), &videos, &all, minibatch, params.seed)?;
        let baselines = Baselines::of(&scenes.train, &scenes.held, vocabulary.codes as usize);
        let TrainAr { hide, seed, .. } = *params;
        let mut lesson = NextCode { scenes, baselines, config, device, autodiff, order, hide, seed };
        let phases = vec![Phase { steps: params.steps, optimizer: params.optimizer.clone() }];
        let course = Course { ctx, unit, phases, checks: params.checks, upkeep: &params.upkeep };
        let trained = train(&course, model, &mut lesson)?;
        self.finish(unit, out, trained, &lesson)
    }

    /// Where training starts: from the checkpoint that is published, or from the seed.
    fn first_model(&self, unit: &Unit, config: &CodeConfig, device: &Device) -> Result<CodeModel, StageError> {
        if let Some(path) = parent_weights(unit, &self.ctx, "ar")? {
            let parent = CodeModel::load(&Weights::open(&path)?, device)?;
            if parent.config == *config {
                return Ok(parent);
            }
        }
        Ok(CodeModel::init(config, self.params.seed, device)?)
    }

    /// Weights, loss picture and metrics.
    fn finish(
        &self,
        unit: &Unit,
        out: &mut Output,
        trained: Trained<CodeModel>,
        lesson: &NextCode<'_>,
    ) -> Result<(), StageError> {
        let (scenes, log) = (lesson.scenes, &trained.log);
        let metrics = json!({
            "kept_step": trained.kept_step,
            "held_out_loss": log.lowest(HELD_OUT).map(|(_, loss)| loss),
            "held_out_loss_by_frequency": lesson.baselines.unigram,
            "held_out_loss_by_bigram": lesson.baselines.bigram,
            "last_train_loss": log.recent("loss", 20),
            "videos": scenes.train.len(),
            "held_out_videos": scenes.held.len(),
            "skipped_videos": scenes.skipped,
        });
        let publication = Publication {
            model: "ar",
            tensors: weights::collect(&trained.model),
            save_type: SaveType::F32,
            config: serde_json::to_string(&trained.model.config)?,
            notes: vec![("tasks", serde_json::to_string(&scenes.tasks)?)],
            steps: trained.steps,
            log,
            metrics,
            picture: lesson.picture(log),
            files: Vec::new(),
        };
        publish(unit, out, &self.ctx, publication)
    }
}

/// The column of the cross-entropy of held-out videos.
const HELD_OUT: &str = "held_out_loss";

/// The lesson: videos and their codes.
struct NextCode<'a> {
    scenes: &'a Scenes,
    baselines: Baselines,
    config: CodeConfig,
    device: Device,
    autodiff: Device,
    order: Order,
    hide: f64,
    seed: u64,
}

impl Lesson for NextCode<'_> {
    type Model = CodeModel;
    const COUNTED: &'static str = "tokens";
    const KEPT_BY: Option<&'static str> = Some(HELD_OUT);

    fn losses(&mut self, model: &CodeModel, draw: Draw) -> Result<Losses, StageError> {
        let items = self.order.minibatch(draw.index);
        let examples: Vec<Example> = items.into_iter().map(|item| self.scenes.train[item].example()).collect();
        let mut minibatch = Minibatch::new(&self.config, &examples, &self.autodiff)?;
        if self.hide > 0.0 {
            let mut rng = StdRng::seed_from_u64(mix(self.seed, draw.number));
            minibatch = minibatch.hiding(&self.config, || rng.random_bool(self.hide));
        }
        Ok(Losses { total: model.loss(&minibatch), parts: Vec::new(), amount: minibatch.tokens() as f64 })
    }

    fn rows(&mut self, draw: Draw) -> Vec<String> {
        let items = self.order.minibatch(draw.index);
        items.into_iter().map(|item| self.scenes.train[item].video.clone()).collect()
    }

    fn check(&mut self, model: &CodeModel, _: Check) -> Result<Vec<(&'static str, f64)>, StageError> {
        Ok(vec![(HELD_OUT, held_out_loss(model, self.scenes, &self.device)?)])
    }

    fn headline(&self, log: &Log) -> String {
        format!("loss {:.3}, held out {:.3}", log.recent("loss", 20), log.recent(HELD_OUT, 1))
    }

    fn picture(&self, log: &Log) -> String {
        let last = log.points("loss").last().map_or(0, |(step, _)| *step);
        let curve = |name: &str, column: &str| Curve { name: name.into(), points: log.points(column).to_vec() };
        let level = |name: &str, loss| Curve { name: name.into(), points: vec![(0, loss), (last, loss)] };
        let curves = [
            curve("training", "loss"),
            curve("held out", HELD_OUT),
            level("by frequency", self.baselines.unigram),
            level("by bigram", self.baselines.bigram),
        ];
        plot_svg("AR model: next code", "cross-entropy, nats per code", &curves)
    }
}

/// Mean cross-entropy of the held-out videos, nats per code.
fn held_out_loss(model: &CodeModel, scenes: &Scenes, device: &Device) -> Result<f64, StageError> {
    let mut sum = 0.0;
    let mut count = 0.0;
    for scene in &scenes.held {
        let minibatch = Minibatch::new(&model.config, &[scene.example()], device)?;
        sum += f64::from(model.loss(&minibatch).into_scalar::<f32>()) * scene.codes.len() as f64;
        count += scene.codes.len() as f64;
    }
    Ok(sum / count)
}
