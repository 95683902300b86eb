//! `train-ar`: all codes to an autoregressive model over them.
//!
//! One example per video: the picture of its first frame (the dLDM's feature, kept by `extract`), its task, and the codes
//! of all its clips. One video in five is held out; its cross-entropy stands beside that of guessing by frequency, and the
//! model that is kept is the one with the lowest.
//! Source: spec sections 6.1 and 6.4.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vw2_data::{Checkpoint, Checkpoints, Codes};
use vw2_engine::stage::{
    Context, Interrupted, Location, Needs, Operator, Output, Placement, Port, Rows, Stage, StageError, Table, Unit,
};
use vw2_kernels::device;
use vw2_models::ar::{ArConfig, CodeConfig, CodeModel, Example, Minibatch, Vocabulary};
use vw2_models::train::order::Order;
use vw2_models::weights::{self, SaveType, Weights};

use crate::export::split_id;
use crate::tables;
use crate::training::{Curve, Optimizer, OptimizerParams, held_out, parent_weights, plot_svg, recent_mean};

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
    /// The folder that receives the weights and the loss picture.
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

impl Stage for TrainAr {
    const KIND: &'static str = "train-ar";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "all codes to an autoregressive model";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::whole("codes", &tables::CODES)];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn check(&self) -> Result<(), String> {
        if self.steps == 0 || self.minibatch == 0 || self.pool == 0 {
            return Err("`steps`, `minibatch` and `pool` are at least 1".into());
        }
        ArConfig::preset(&self.preset, 1).map_err(|error| error.to_string())?;
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

/// How often the held-out videos are looked at in a run.
const CHECKS: u32 = 20;

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
                match scenes.scene(table, &clips)? {
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

    fn scene(&mut self, table: &dyn Rows, clips: &[(u32, usize)]) -> Result<Result<Scene, String>, StageError> {
        let mut scene = Scene { feature: Vec::new(), task: 0, codes: Vec::new() };
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
        let mut model = self.first_model(unit, &config, &autodiff)?;
        let mut optimizer = Optimizer::new(&params.optimizer, params.steps);
        let mut order = Order::new(scenes.train.len(), params.minibatch.min(scenes.train.len()), params.seed);
        let (mut losses, mut checks) = (Vec::new(), Vec::new());
        let mut best = Module::valid(&model);
        let mut lowest = f64::INFINITY;
        let mut check = |step: u32, model: &CodeModel| -> Result<(), StageError> {
            let model = Module::valid(model);
            let loss = held_out_loss(&model, scenes, &device)?;
            checks.push((step, loss));
            if loss < lowest {
                (lowest, best) = (loss, model);
            }
            Ok(())
        };
        let every = params.steps.div_ceil(CHECKS);
        for step in 0..params.steps {
            if ctx.cancel.is_cancelled() {
                return Err(Interrupted.into());
            }
            if step % every == 0 {
                check(step, &model)?;
            }
            let examples: Vec<Example> =
                order.minibatch(u64::from(step)).into_iter().map(|item| scenes.train[item].example()).collect();
            let loss = model.loss(&Minibatch::new(&config, &examples, &autodiff)?);
            optimizer.step(&mut model, &loss);
            losses.push((step + 1, f64::from(loss.into_scalar::<f32>())));
            let text = format!("loss {:.3}", recent_mean(&losses, 20));
            ctx.progress.steps(u64::from(step) + 1, u64::from(params.steps), &text);
        }
        check(params.steps, &model)?;
        self.finish(unit, out, scenes, &best, losses, checks)
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

    /// Weights, loss picture and metrics, as files and as one row.
    fn finish(
        &self,
        unit: &Unit,
        out: &mut Output,
        scenes: &Scenes,
        model: &CodeModel,
        losses: Vec<(u32, f64)>,
        checks: Vec<(u32, f64)>,
    ) -> Result<(), StageError> {
        let blobs = &self.ctx.blobs;
        let config = serde_json::to_string(&model.config)?;
        let tasks = serde_json::to_string(&scenes.tasks)?;
        let metadata = BTreeMap::from([("config".to_owned(), config.clone()), ("tasks".to_owned(), tasks)]);
        let weights = blobs.put(&weights::to_safetensors(&weights::collect(model), &metadata, SaveType::F32)?)?;
        let guess = frequency_loss(scenes);
        let (kept_step, kept_loss) = checks.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f64::NAN));
        let metrics = json!({
            "kept_step": kept_step,
            "held_out_loss": kept_loss,
            "held_out_loss_by_frequency": guess,
            "last_train_loss": recent_mean(&losses, 20),
            "videos": scenes.train.len(),
            "held_out_videos": scenes.held.len(),
            "skipped_videos": scenes.skipped,
        });
        let steps = self.params.steps;
        let curves = [
            Curve { name: "training".into(), points: losses },
            Curve { name: "held out".into(), points: checks },
            Curve { name: "guess by frequency".into(), points: vec![(0, guess), (steps, guess)] },
        ];
        let picture = plot_svg("AR model: next code", "cross-entropy, nats per code", &curves);
        let files = vec![
            ("ar.safetensors".to_owned(), weights),
            ("loss.svg".to_owned(), blobs.put(picture.as_bytes())?),
            ("metrics.json".to_owned(), blobs.put(format!("{metrics:#}\n").as_bytes())?),
        ];
        let blob = weights.to_string();
        let row = Checkpoint { model: "ar".into(), blob, config, steps, metrics: metrics.to_string() };
        out.push_with_files(unit, "", Checkpoints::row(&row)?, files);
        Ok(())
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
