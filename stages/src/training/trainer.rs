//! The one loop over training steps, for all models: schedule, clipping, accumulation, averages, checkpoints, metrics.
//!
//! What differs between models is a [`Lesson`]: which rows a minibatch has, what its losses are, and how a model does on
//! rows that are held out. A run is a function of its parameters and its data: every draw follows from the seed and the
//! number of the minibatch, so a run that was cut off and goes on from its checkpoint ends in the same bytes.
//!
//! Phases follow each other within one run; each has its own optimizer, which starts anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vw2_engine::stage::{Context, How, Interrupted, StageError, Unit};
use vw2_models::nn::{cost, recompute};
use vw2_models::train::checkpoint::{self, State};
use vw2_models::train::{AdamW, AdamWConfig, Grads, Log, ema};
use vw2_models::weights::{Named, Weights};

use super::live::Live;
use super::optimizer::{self, OptimizerParams};

/// What one kind of training does that others do not.
pub(crate) trait Lesson {
    type Model: Module + Named;

    /// What [`Losses::amount`] counts: `clips`, `tokens`.
    const COUNTED: &'static str;

    /// The figure of [`Lesson::check`] whose lowest value says which model is kept; the last one where there is none.
    const KEPT_BY: Option<&'static str>;

    /// The losses of one minibatch.
    fn losses(&mut self, model: &Self::Model, draw: Draw) -> Result<Losses, StageError>;

    /// The ids of the rows of a minibatch, for messages.
    fn rows(&mut self, draw: Draw) -> Vec<String>;

    /// Figures of a model (without graph) on what is held out, by name.
    fn check(&mut self, model: &Self::Model, at: Check) -> Result<Vec<(&'static str, f64)>, StageError>;

    /// What the user reads beside the number of steps.
    fn headline(&self, log: &Log) -> String;

    /// The picture of what was logged so far, as SVG.
    fn picture(&self, log: &Log) -> String;
}

/// Which minibatch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Draw {
    pub(crate) phase: usize,
    /// Counted within the phase, for the order of the data.
    pub(crate) index: u64,
    /// Counted over the run, for draws.
    pub(crate) number: u64,
}

/// Which look at the held-out rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) step: u32,
    /// After the last step.
    pub(crate) last: bool,
}

/// What a minibatch costs the model.
pub(crate) struct Losses {
    /// What is minimised, one value.
    pub(crate) total: Tensor<1>,
    /// What the total is made of, for the metrics. `loss` is the total itself.
    pub(crate) parts: Vec<(&'static str, f64)>,
    /// How many clips or tokens were computed.
    pub(crate) amount: f64,
}

/// Steps with one optimizer.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) steps: u32,
    pub(crate) optimizer: OptimizerParams,
}

/// How a run is kept and shown: in no fingerprint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upkeep {
    /// A checkpoint after so many minutes.
    pub minutes: f64,
    /// And after so many steps, if above 0.
    pub steps: u32,
    /// A folder that receives metrics, with times, and the loss picture while training goes on. It is no result: later runs
    /// leave it alone.
    pub live: Option<std::path::PathBuf>,
}

impl Default for Upkeep {
    fn default() -> Upkeep {
        Upkeep { minutes: 10.0, steps: 0, live: None }
    }
}

impl Upkeep {
    /// Params that parse but make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.minutes > 0.0 {
            true => Ok(()),
            false => Err(format!("`upkeep.minutes` is {}; it wants a positive number", self.minutes)),
        }
    }
}

/// Everything about a run but its lesson.
pub(crate) struct Course<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) unit: &'a Unit,
    pub(crate) phases: Vec<Phase>,
    /// How often the held-out rows are looked at, beside the first and the last time.
    pub(crate) checks: u32,
    pub(crate) upkeep: &'a How<Upkeep>,
}

/// What training made.
pub(crate) struct Trained<M> {
    /// Without graph.
    pub(crate) model: M,
    pub(crate) log: Log,
    /// Of the last look at what is held out.
    pub(crate) figures: Vec<(&'static str, f64)>,
    /// After how many steps the model was as it is kept.
    pub(crate) kept_step: u32,
    pub(crate) steps: u32,
}

/// The scratch file of a run's last checkpoint.
const CHECKPOINT: &str = "training";
/// Names of copies in a checkpoint.
const BEST: &str = "best";
const AVERAGE: &str = "average";

/// Trains from `model`, or goes on where an earlier try of the same unit was cut off.
pub(crate) fn train<L: Lesson>(
    course: &Course<'_>,
    model: L::Model,
    lesson: &mut L,
) -> Result<Trained<L::Model>, StageError> {
    let Course { ctx, unit, phases, checks, upkeep } = course;
    let total: u32 = phases.iter().map(|phase| phase.steps).sum();
    let every = total.div_ceil((*checks).max(1)).max(1);
    let mut state = resumed(ctx, unit, &model).unwrap_or_else(|| State {
        optimizer: AdamW::new(AdamWConfig::default()), // each phase starts with its own
        model,
        step: 0,
        log: Log::default(),
        copies: BTreeMap::new(),
    });
    let mut live = Live::new(upkeep.0.live.as_deref(), L::COUNTED);
    let mut saved = Instant::now();
    let mut last = Vec::new();
    loop {
        let step = state.step;
        if ctx.cancel.is_cancelled() {
            ctx.scratch.write(unit, CHECKPOINT, &checkpoint::to_bytes(&state)?)?;
            return Err(Interrupted.into());
        }
        if step.is_multiple_of(every) || step == total {
            let judged = judged(&state);
            let at = Check { step, last: step == total };
            let figures = lesson.check(&judged, at)?;
            figures.iter().for_each(|&(name, value)| state.log.push(name, step, value));
            last = figures;
            if L::KEPT_BY.and_then(|name| state.log.lowest(name)).is_some_and(|(lowest, _)| lowest == step) {
                state.copies.insert(BEST, judged);
            }
            live.show(at, &state.log, || lesson.picture(&state.log))?;
        }
        if step == total {
            break;
        }
        advance(course, &mut state, lesson, &mut live)?;
        ctx.progress.steps(u64::from(state.step), u64::from(total), lesson.headline(&state.log) + &live.speed());
        let by_steps = upkeep.0.steps > 0 && state.step.is_multiple_of(upkeep.0.steps);
        if by_steps || saved.elapsed() >= Duration::from_secs_f64(60.0 * upkeep.0.minutes) {
            ctx.scratch.write(unit, CHECKPOINT, &checkpoint::to_bytes(&state)?)?;
            saved = Instant::now();
        }
    }
    let model = state.copies.remove(BEST).unwrap_or_else(|| judged(&state));
    let kept_step = L::KEPT_BY.and_then(|name| state.log.lowest(name)).map_or(total, |(step, _)| step);
    Ok(Trained { model, log: state.log, figures: last, kept_step, steps: total })
}

/// The state that an earlier try left, if it left one. What cannot be read costs time only: the run starts from its
/// beginning.
fn resumed<M: Module + Named>(ctx: &Context, unit: &Unit, model: &M) -> Option<State<M>> {
    let bytes = ctx.scratch.read(unit, CHECKPOINT)?;
    let file = Weights::from_bytes("checkpoint of an earlier try", bytes).ok()?;
    let copies = [BEST, AVERAGE].map(|word| (word, model.valid()));
    checkpoint::restore(&file, model.clone(), copies.into()).ok()
}

/// The weights that are looked at and published, without graph.
fn judged<M: Module + Named>(state: &State<M>) -> M {
    state.copies.get(AVERAGE).cloned().unwrap_or_else(|| state.model.valid())
}

/// One update.
fn advance<L: Lesson>(
    course: &Course<'_>,
    state: &mut State<L::Model>,
    lesson: &mut L,
    live: &mut Live,
) -> Result<(), StageError> {
    let (phase, within, before) = place(&course.phases, state.step);
    let Phase { steps, optimizer: params } = &course.phases[phase];
    if within == 0 {
        state.optimizer = optimizer::start(params, &mut state.model);
        state.copies.remove(AVERAGE);
        if params.ema.is_some() {
            state.copies.insert(AVERAGE, state.model.valid());
        }
    }
    let began = Instant::now();
    let accumulate = u64::from(params.accumulate);
    let mut grads = Grads::default();
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    let mut amount = 0.0;
    let mut flops = 0.0;
    for part in 0..accumulate {
        let index = u64::from(within) * accumulate + part;
        let draw = Draw { phase, index, number: before + index };
        let forward = || cost::counted(|| lesson.losses(&state.model, draw));
        let ((losses, counted), tape) = recompute::taped(params.recompute, forward);
        let losses = losses?;
        let loss = f64::from(losses.total.clone().into_scalar::<f32>());
        if !loss.is_finite() {
            let rows = lesson.rows(draw).join(", ");
            return Err(format!(
                "step {}: the loss is {loss}, of rows {rows}; look at these, or lower `optimizer.learning_rate`",
                state.step + 1
            )
            .into());
        }
        grads.add(tape.gradients(&losses.total.div_scalar(accumulate as f64), &mut state.model));
        for (name, value) in [("loss", loss)].into_iter().chain(losses.parts) {
            *sums.entry(name).or_default() += value / accumulate as f64;
        }
        amount += losses.amount;
        flops += counted;
    }
    let done = optimizer::step(&mut state.optimizer, params, *steps, &mut state.model, grads);
    if let (Some(rate), Some(average)) = (params.ema, state.copies.get_mut(AVERAGE)) {
        ema::follow(average, &mut state.model, ema::beta(ema::exponent(rate), u64::from(within) + 1));
    }
    state.step += 1;
    let mut log = |name: &str, value: f64| state.log.push(name, state.step, value);
    sums.into_iter().for_each(|(name, value)| log(name, value));
    done.norms.iter().for_each(|(name, norm)| log(name, *norm));
    log("learning_rate", done.rate);
    if done.non_finite > 0 {
        log("non_finite_gradients", done.non_finite as f64);
    }
    // Going back through a product costs two products of its size.
    live.stepped(state.step, began.elapsed(), amount, 3.0 * flops);
    Ok(())
}

/// The phase of a step, the step's place in it, and how many minibatches earlier phases took.
fn place(phases: &[Phase], step: u32) -> (usize, u32, u64) {
    let (mut left, mut before) = (step, 0);
    for (index, phase) in phases.iter().enumerate() {
        if left < phase.steps {
            return (index, left, before);
        }
        left -= phase.steps;
        before += u64::from(phase.steps) * u64::from(phase.optimizer.accumulate);
    }
    unreachable!("the loop ends behind the last phase's last step")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_knows_its_phase() {
        let phase = |steps, accumulate| Phase {
            steps,
            optimizer: OptimizerParams { accumulate, ..OptimizerParams::default() },
        };
        let phases = [phase(3, 2), phase(0, 1), phase(2, 1)];
        for (step, wanted) in [(0, (0, 0, 0)), (2, (0, 2, 0)), (3, (2, 0, 6)), (4, (2, 1, 6))] {
            assert_eq!(place(&phases, step), wanted, "step {step}");
        }
    }
}
