//! `train-ar`: all codes to an autoregressive model over them.
//!
//! One example per video: the picture of its first frame (the dLDM's feature, kept by `extract`), its task, and the codes
//! of all its clips. One video in five is held out; its cross-entropy stands beside that of guessing by frequency, and the
//! model that is kept is the one with the lowest.
//! Source: spec sections 6.1 and 6.4.

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_data::Codes;
use vw2_engine::stage::{
    Context, How, Location, Needs, Operator, Output, Placement, Port, Rows, Stage, StageError, Table, Unit,
};
use vw2_kernels::device;
use vw2_models::ar::{ArConfig, CodeConfig, CodeModel, Example, Minibatch, Vocabulary};
use vw2_models::train::Log;
use vw2_models::train::order::Order;
use vw2_models::weights::{self, SaveType, Weights};

use crate::export::split_id;
use crate::tables;
use crate::training::{
    Check, Course, Curve, Draw, Lesson, Losses, OptimizerParams, Phase, Publication, Trained, Upkeep, held_out,
    parent_weights, plot_svg, publish, train,
};

/// Trains a decoder over codes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainAr {
    /// Size of the decoder: `tiny`, `small`, `vw1-300m`, `cosmos-4b`.
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

fn one() -> usize {
    1
}

fn checks() -> u32 {
    20
}

impl Stage for TrainAr {
    const KIND: &'static str = "train-ar";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "all codes to an autoregressive model";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::whole("codes", &tables::CODES)];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 || self.pool == 0 {
            return Err("`steps`, `minibatch` and `pool` are at least 1".into());
        }
        ArConfig::preset(&self.preset, 1).map_err(|error| error.to_string())?;
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

/// How many tasks a model's vocabulary has room for (spec 6.4).
const TASKS: usize = 16;

struct Trainer {
    params: TrainAr,
    ctx: Context,
}

impl Operator for Trainer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let table = unit.table("codes").expect("the plan connects required ports");
            match Scenes::read(table)? {
                Ok(scenes) => self.train(unit, &scenes, out)?,
                Err(reason) => out.reject(unit, reason),
            }
        }
        Ok(())
    }
}

/// A video as a training example.
struct Scene {
    video: String,
    feature: Vec<f32>,
    task: u32,
    codes: Vec<u32>,
}

/// The table of codes, video by video.
struct Scenes {
    train: Vec<Scene>,
    held: Vec<Scene>,
    tasks: Vec<String>,
    levels: Vec<u32>,
    feature: [usize; 3],
    clip_codes: usize,
    /// Videos left out, because their first clip is missing.
    skipped: usize,
}

impl Scenes {
    /// The inner error says why the table is no training set.
    fn read(table: &dyn Rows) -> Result<Result<Scenes, String>, StageError> {
        let (train, held) = held_out(table, 5);
        let mut scenes = Scenes {
            train: Vec::new(),
            held: Vec::new(),
            tasks: Vec::new(),
            levels: Vec::new(),
            feature: [0; 3],
            clip_codes: 0,
            skipped: 0,
        };
        for (rows, held) in [(train, false), (held, true)] {
            let mut by_video: BTreeMap<&str, Vec<(u32, usize)>> = BTreeMap::new();
            for index in rows {
                let (video, clip) = split_id(table.id(index));
                by_video.entry(video).or_default().push((clip, index));
            }
            for (video, mut clips) in by_video {
                clips.sort_unstable();
                // A quarantined clip leaves a gap: what follows it cannot be learned as following what precedes it.
                let whole = clips.iter().zip(0..).take_while(|((clip, _), place)| clip == place).count();
                clips.truncate(whole);
                if clips.is_empty() {
                    scenes.skipped += 1; // without its first clip, a video has no start picture
                    continue;
                }
                match scenes.scene(table, video, &clips)? {
                    Ok(scene) if held => scenes.held.push(scene),
                    Ok(scene) => scenes.train.push(scene),
                    Err(reason) => return Ok(Err(format!("{video}: {reason}"))),
                }
            }
        }
        match scenes.train.is_empty() || scenes.held.is_empty() {
            true => Ok(Err("no video has its first clip; see the quarantine for what became of them".into())),
            false => Ok(Ok(scenes)),
        }
    }

    fn scene(
        &mut self,
        table: &dyn Rows,
        video: &str,
        clips: &[(u32, usize)],
    ) -> Result<Result<Scene, String>, StageError> {
        let mut scene = Scene { video: video.to_owned(), feature: Vec::new(), task: 0, codes: Vec::new() };
        for &(_, index) in clips {
            let row = table.row(index)?;
            let code = Codes::view(&row)?.code(0);
            let levels: Vec<u32> = code.levels.iter().map(|&level| u32::from(level)).collect();
            if self.levels.is_empty() {
                (self.levels, self.clip_codes) = (levels.clone(), code.codes.len());
            }
            if levels != self.levels || code.codes.len() != self.clip_codes {
                return Ok(Err(format!(
                    "{} codes of levels {levels:?}, but other clips have {} of {:?}",
                    code.codes.len(),
                    self.clip_codes,
                    self.levels
                )));
            }
            if let (true, Some(feature)) = (scene.feature.is_empty(), code.feature) {
                if self.feature == [0; 3] {
                    self.feature = feature.shape;
                }
                if feature.shape != self.feature {
                    return Ok(Err(format!("a picture of {:?}, but others have {:?}", feature.shape, self.feature)));
                }
                scene.feature = feature.values.iter().map(|value| value.to_f32()).collect();
                match self.task(code.origin.task.as_deref()) {
                    Some(task) => scene.task = task,
                    None => return Ok(Err(format!("more than {TASKS} tasks, the most that a model has room for"))),
                }
            }
            scene.codes.extend(code.codes.iter().map(|&code| u32::from(code)));
        }
        match scene.feature.is_empty() {
            true => Ok(Err("its first clip has no picture; extract the codes again".into())),
            false => Ok(Ok(scene)),
        }
    }

    /// The number of a task; videos without one share number 0 of an unnamed task.
    fn task(&mut self, name: Option<&str>) -> Option<u32> {
        let name = name.unwrap_or("");
        let known = self.tasks.iter().position(|task| task == name);
        let index = known.unwrap_or_else(|| {
            self.tasks.push(name.to_owned());
            self.tasks.len() - 1
        });
        (index < TASKS).then_some(index as u32)
    }
}

impl Scene {
    fn example(&self) -> Example<'_> {
        Example { feature: &self.feature, task: self.task, codes: &self.codes }
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
        };
        let device = device::parse(&ctx.device)?;
        let autodiff = device.clone().autodiff();
        let model = self.first_model(unit, &config, &autodiff)?;
        let order = Order::new(scenes.train.len(), params.minibatch.min(scenes.train.len()), params.seed);
        let mut lesson = NextCode { scenes, config, device, autodiff, order };
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
            "held_out_loss_by_frequency": frequency_loss(scenes),
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
    config: CodeConfig,
    device: Device,
    autodiff: Device,
    order: Order,
}

impl Lesson for NextCode<'_> {
    type Model = CodeModel;
    const COUNTED: &'static str = "tokens";
    const KEPT_BY: Option<&'static str> = Some(HELD_OUT);

    fn losses(&mut self, model: &CodeModel, draw: Draw) -> Result<Losses, StageError> {
        let items = self.order.minibatch(draw.index);
        let examples: Vec<Example> = items.into_iter().map(|item| self.scenes.train[item].example()).collect();
        let minibatch = Minibatch::new(&self.config, &examples, &self.autodiff)?;
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
        let guess = frequency_loss(self.scenes);
        let last = log.points("loss").last().map_or(0, |(step, _)| *step);
        let curve = |name: &str, column: &str| Curve { name: name.into(), points: log.points(column).to_vec() };
        let curves = [
            curve("training", "loss"),
            curve("held out", HELD_OUT),
            Curve { name: "guess by frequency".into(), points: vec![(0, guess), (last, guess)] },
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

/// The same for the trivial predictor: each code with its frequency in training, one added to every count.
fn frequency_loss(scenes: &Scenes) -> f64 {
    let kinds = scenes.levels.iter().product::<u32>() as usize;
    let mut counts = vec![1.0; kinds];
    for code in scenes.train.iter().flat_map(|scene| &scene.codes) {
        counts[*code as usize] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let codes = scenes.held.iter().flat_map(|scene| &scene.codes);
    let (sum, count) = codes.fold((0.0, 0.0), |(sum, n), code| (sum - (counts[*code as usize] / total).ln(), n + 1.0));
    sum / count
}
