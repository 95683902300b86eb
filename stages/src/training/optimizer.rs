//! AdamW, its schedule and its groups: as parameters, and as what makes a step.

use serde::{Deserialize, Serialize};
use vw2_models::train::{AdamW, AdamWConfig, Grads, Group, Rule, Schedule, group_of};
use vw2_models::weights::Named;

/// How a model's parameters are updated.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerParams {
    /// Learning rate where the schedule's factor is 1.
    pub learning_rate: f64,
    /// Steps of warm-up of the default schedule: from 0 in a line, and then in a line to 0 behind the last step.
    pub warmup: u64,
    /// Another schedule, as `{ shape = "linear", warmup = 2000, total = 400000, start = 1e-6, max = 0.6, min = 0.3 }`
    /// (released, spec 7.5), `"cosine"` or `"constant"`; its factors are counted from step 0.
    pub schedule: Option<Schedule>,
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    pub eps: f64,
    /// Largest global norm of the gradients that belong to no group with a limit of its own; 0 for no limit.
    pub clip: f64,
    /// Parameters with other rates, decay or clipping, by patterns of their names. Each is clipped by its own norm.
    pub groups: Vec<Group>,
    /// Minibatches whose gradients are averaged for one step.
    pub accumulate: u32,
    /// Blocks of the model are computed again on the way back instead of being kept: a third more time, much less memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// `bf16`: weights are held rounded to bf16 beside f32 masters, which are what is updated; arithmetic stays f32.
    pub precision: Precision,
    /// Rate of the power moving average of the weights (spec 7.6), which then is what is judged and published.
    pub ema: Option<f64>,
}

/// How weights are held while they are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}

impl Default for OptimizerParams {
    /// The paper's AR settings (spec section 6.1), with a warm-up that fits short runs.
    fn default() -> OptimizerParams {
        OptimizerParams {
            learning_rate: 1e-3,
            warmup: 30,
            schedule: None,
            weight_decay: 0.05,
            betas: [0.9, 0.98],
            eps: 1e-8,
            clip: 1.0,
            groups: Vec::new(),
            accumulate: 1,
            recompute: false,
            precision: Precision::F32,
            ema: None,
        }
    }
}

impl OptimizerParams {
    /// Params that parse but make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, value) in [("learning_rate", self.learning_rate), ("eps", self.eps)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("`optimizer.{name}` is {value}; it wants a positive number"));
            }
        }
        for (name, value) in [("clip", self.clip), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("`optimizer.{name}` is {value}; it wants 0 or more"));
            }
        }
        if !self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return Err(format!("`optimizer.betas` are {:?}; each wants to be in [0, 1)", self.betas));
        }
        if self.accumulate == 0 {
            return Err("`optimizer.accumulate` is 0; a step takes at least 1 minibatch".into());
        }
        if let Some(rate) = self.ema.filter(|rate| !(*rate > 0.0 && *rate <= 0.28)) {
            return Err(format!("`optimizer.ema` is {rate}; the average's rate wants to be in (0, 0.28]"));
        }
        if let Some(schedule) = &self.schedule {
            schedule.check().map_err(|error| format!("`optimizer.schedule`: {error}"))?;
        }
        self.groups.iter().try_for_each(|group| group.check().map_err(|error| format!("`optimizer.groups`: {error}")))
    }
}

/// What a step did.
pub(crate) struct Step {
    pub(crate) rate: f64,
    /// Norms of the gradients before clipping, by what they are called in metrics.
    pub(crate) norms: Vec<(String, f64)>,
    /// NaN and infinities that were replaced by 0 (spec 7.4).
    pub(crate) non_finite: usize,
}

/// The factor on the learning rate at a step counted from 0, in a phase of `steps`.
pub(crate) fn factor(params: &OptimizerParams, steps: u32, step: u64) -> f64 {
    match &params.schedule {
        Some(schedule) => schedule.factor(step),
        None => {
            let warmup = params.warmup.min(u64::from(steps) / 2);
            // The first and the last step have a rate above 0.
            Schedule::warmup_decay(warmup + 1, u64::from(steps) + 1).factor(step + 1)
        }
    }
}

/// A fresh optimizer; the model is rounded where its weights are to be held in bf16.
pub(crate) fn start(params: &OptimizerParams, model: &mut impl Named) -> AdamW {
    let [beta1, beta2] = params.betas;
    let mut adamw = AdamW::new(AdamWConfig { beta1, beta2, eps: params.eps, weight_decay: params.weight_decay });
    if params.precision == Precision::Bf16 {
        adamw.hold_bf16(model);
    }
    adamw
}

/// One update of a phase of `steps`.
pub(crate) fn step(
    adamw: &mut AdamW,
    params: &OptimizerParams,
    steps: u32,
    model: &mut impl Named,
    mut grads: Grads,
) -> Step {
    let groups = &params.groups;
    let non_finite = grads.zero_non_finite();
    let mut norms = Vec::with_capacity(1 + groups.len());
    for index in std::iter::once(None).chain((0..groups.len()).map(Some)) {
        let group = index.map(|index| &groups[index]);
        let limit = match group.and_then(|group| group.clip).unwrap_or(params.clip) {
            0.0 => f64::INFINITY,
            limit => limit,
        };
        let norm = grads.clip(limit, |name| group_of(groups, name) == index);
        norms.push((group.map_or("grad_norm".to_owned(), |group| format!("grad_norm {}", group.names)), norm));
    }
    let rate = params.learning_rate * factor(params, steps, adamw.steps());
    adamw.step_each(model, &grads, |name| {
        let group = group_of(groups, name).map(|index| &groups[index]);
        let share = group.map_or(1.0, |group| group.rate);
        let weight_decay = group.and_then(|group| group.weight_decay).unwrap_or(params.weight_decay);
        (share > 0.0).then_some(Rule { rate: rate * share, weight_decay })
    });
    Step { rate, norms, non_finite }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_without_sense_are_named() {
        for (text, words) in [
            ("learning_rate = 0.0", "`optimizer.learning_rate` is 0"),
            ("clip = -1.0", "`optimizer.clip` is -1"),
            ("betas = [0.9, 1.0]", "`optimizer.betas`"),
            ("accumulate = 0", "`optimizer.accumulate` is 0"),
            ("ema = 0.5", "`optimizer.ema` is 0.5"),
            ("groups = [{ names = \"a\", clip = -2.0 }]", "group `a`: `clip` is -2"),
            ("schedule = { shape = \"linear\", warmup = 9, total = 3, start = 0.0, max = 1.0, min = 0.0 }", "warmup"),
        ] {
            let params: OptimizerParams = toml::from_str(text).unwrap();
            let error = params.check().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(OptimizerParams::default().check(), Ok(()));
    }

    #[test]
    fn the_released_schedule_is_a_parameter() {
        let text =
            r#"schedule = { shape = "linear", warmup = 2000, total = 400000, start = 1e-6, max = 0.6, min = 0.3 }"#;
        let params: OptimizerParams = toml::from_str(text).unwrap();
        assert_eq!(params.check(), Ok(()));
        for (step, wanted) in [(0, 1e-6), (2000, 0.6), (100_000, 0.526_130_653_266_331_7)] {
            assert!((factor(&params, 10, step) - wanted).abs() < 1e-12, "step {step}");
        }
        let default = OptimizerParams { warmup: 4, ..OptimizerParams::default() };
        let factors: Vec<f64> = (0..8).map(|step| factor(&default, 8, step)).collect();
        assert!(
            factors[..4].is_sorted() && factors.iter().all(|factor| *factor > 0.0) && factors[4] == 1.0,
            "{factors:?}"
        );
    }
}
