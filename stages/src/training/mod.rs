//! What the training stages share: optimizer parameters, reading clips, the loop over steps, the loss picture.

mod clips;
mod plot;
mod reconstruct;

pub(crate) use clips::{ClipReader, held_out};
pub(crate) use plot::{Curve, plot_svg};
pub(crate) use reconstruct::{Reconstruct, Reconstruction, Reconstructor};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vw2_data::Checkpoints;
use vw2_engine::stage::{Context, StageError, Unit};
use vw2_models::train::{AdamW, AdamWConfig, Grads, Schedule};
use vw2_models::weights::Named;

/// The weights that port `init` brings.
pub(crate) fn connected_weights(unit: &Unit, ctx: &Context) -> Result<Option<PathBuf>, StageError> {
    let Some(table) = unit.table("init") else { return Ok(None) };
    Ok(Some(ctx.blobs.path(&Checkpoints::view(&table.row(0)?)?.checkpoint(0).blob.parse()?)))
}

/// The weights that the stage publishes now, where it is to go on from them (`on_change = "warm"`). Those of another
/// `model`, left by a stage of the same name, are none.
pub(crate) fn parent_weights(unit: &Unit, ctx: &Context, model: &str) -> Result<Option<PathBuf>, StageError> {
    let Some(row) = unit.parent() else { return Ok(None) };
    let parents = Checkpoints::view(row)?;
    let parent = parents.checkpoint(0);
    if parent.model != model {
        return Ok(None);
    }
    Ok(Some(ctx.blobs.path(&parent.blob.parse()?)))
}

/// AdamW and its schedule: linear warm-up from 0, then linear decay to 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerParams {
    /// Learning rate at the end of the warm-up.
    pub learning_rate: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Largest global gradient norm.
    pub clip: f64,
}

impl Default for OptimizerParams {
    /// The paper's AR settings (spec section 6.1), with a warm-up that fits short runs.
    fn default() -> OptimizerParams {
        OptimizerParams { learning_rate: 1e-3, warmup: 30, weight_decay: 0.05, betas: [0.9, 0.98], clip: 1.0 }
    }
}

impl OptimizerParams {
    /// Params that parse but make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, value) in [("learning_rate", self.learning_rate), ("clip", self.clip)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("`optimizer.{name}` is {value}; it wants a positive number"));
            }
        }
        match self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            true => Ok(()),
            false => Err(format!("`optimizer.betas` are {:?}; each wants to be in [0, 1)", self.betas)),
        }
    }
}

/// The optimizer of one run with its schedule.
pub(crate) struct Optimizer {
    params: OptimizerParams,
    schedule: Schedule,
    adamw: AdamW,
}

impl Optimizer {
    pub(crate) fn new(params: &OptimizerParams, steps: u32) -> Optimizer {
        let [beta1, beta2] = params.betas;
        let config = AdamWConfig { beta1, beta2, eps: 1e-8, weight_decay: params.weight_decay };
        let warmup = params.warmup.min(u64::from(steps) / 2);
        // The last step still has a rate above 0.
        let schedule = Schedule::warmup_decay(warmup + 1, u64::from(steps) + 1);
        Optimizer { params: params.clone(), schedule, adamw: AdamW::new(config) }
    }

    /// One update from a loss of one value.
    pub(crate) fn step(&mut self, model: &mut impl Named, loss: &burn::tensor::Tensor<1>) {
        let mut grads = Grads::of(loss, model);
        grads.zero_non_finite();
        grads.clip(self.params.clip, |_| true);
        let rate = self.params.learning_rate * self.schedule.factor(self.adamw.steps() + 1);
        self.adamw.step(model, &grads, rate);
    }
}

/// The mean of the last values, for a figure that does not hang on one minibatch.
pub(crate) fn recent_mean(points: &[(u32, f64)], count: usize) -> f64 {
    let recent = &points[points.len().saturating_sub(count)..];
    recent.iter().map(|point| point.1).sum::<f64>() / recent.len().max(1) as f64
}

/// Sums of differences in levels of 0..=255.
#[derive(Default)]
pub(crate) struct PixelErrors {
    absolute: f64,
    squared: f64,
    count: f64,
}

impl PixelErrors {
    pub(crate) fn add(&mut self, truth: &[u8], guess: &[u8]) {
        for (a, b) in truth.iter().zip(guess) {
            let difference = f64::from(*a) - f64::from(*b);
            self.absolute += difference.abs();
            self.squared += difference * difference;
        }
        self.count += truth.len() as f64;
    }

    /// In the range [-1, 1], as the training loss.
    pub(crate) fn l1(&self) -> f64 {
        self.absolute / self.count / 127.5
    }

    /// dB against a peak of 255; 138 where nothing differs.
    pub(crate) fn psnr(&self) -> f64 {
        10.0 * (255.0 * 255.0 / (self.squared / self.count).max(1e-9)).log10()
    }
}
