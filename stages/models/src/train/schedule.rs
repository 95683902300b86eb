//! The learning rate's factor at each optimizer step.

use serde::{Deserialize, Serialize};

/// A factor on the base rate, by step counted from 0. In the warm-up, the first `warmup` steps, it rises in a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// 1 at every step.
    Constant,
    /// Rises from `start` to `max`; falls in a line to `min`, which it has at step `total` and keeps.
    ///
    /// Upstream's recipe starts its fall at 0.6, where its rise ends: spec 7.5's `0.3 + 0.3 (400000 - n) / 398000`.
    Linear { warmup: u64, total: u64, start: f64, max: f64, min: f64 },
    /// As `Linear`, but falls along half a cosine.
    Cosine { warmup: u64, total: u64, start: f64, max: f64, min: f64 },
}

impl Schedule {
    /// The schedule of the released dLDM and DiT training (spec 7.5).
    pub const RELEASED: Schedule = Schedule::Linear { warmup: 2000, total: 400_000, start: 1e-6, max: 0.6, min: 0.3 };

    /// Rise from 0 to 1, then fall in a line to 0: the "WarmupDecayLR" of the paper.
    pub const fn warmup_decay(warmup: u64, total: u64) -> Schedule {
        Schedule::Linear { warmup, total, start: 0.0, max: 1.0, min: 0.0 }
    }

    /// # Errors
    /// Numbers that make no sense: the text says which.
    pub fn check(&self) -> Result<(), String> {
        let (Schedule::Linear { warmup, total, start, max, min } | Schedule::Cosine { warmup, total, start, max, min }) =
            *self
        else {
            return Ok(());
        };
        if warmup > total {
            return Err(format!("warmup {warmup} ends behind total {total}"));
        }
        match [start, max, min].iter().find(|factor| !(factor.is_finite() && **factor >= 0.0)) {
            Some(factor) => Err(format!("a factor is {factor}; it wants 0 or more")),
            None => Ok(()),
        }
    }

    pub fn factor(&self, step: u64) -> f64 {
        let (warmup, total, start, max, min) = match *self {
            Schedule::Constant => return 1.0,
            Schedule::Linear { warmup, total, start, max, min }
            | Schedule::Cosine { warmup, total, start, max, min } => (warmup, total, start, max, min),
        };
        if step < warmup {
            return start + (max - start) * step as f64 / warmup as f64;
        }
        if step >= total {
            return min;
        }
        let left = (total - step) as f64 / (total - warmup) as f64;
        match self {
            Schedule::Cosine { .. } => min + 0.5 * (max - min) * (1.0 - (std::f64::consts::PI * left).cos()),
            _ => min + (max - min) * left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_worked_out_by_hand() {
        let decay = Schedule::warmup_decay(4, 12);
        let cosine = Schedule::Cosine { warmup: 0, total: 10, start: 0.0, max: 1.0, min: 0.2 };
        for (schedule, step, wanted) in [
            (&decay, 0, 0.0),
            (&decay, 1, 0.25),
            (&decay, 4, 1.0),
            (&decay, 8, 0.5),
            (&decay, 12, 0.0),
            (&decay, 99, 0.0),
            (&cosine, 0, 1.0),
            (&cosine, 5, 0.6),
            (&cosine, 10, 0.2),
            (&Schedule::warmup_decay(0, 0), 0, 0.0),
            (&Schedule::Constant, 7, 1.0),
            // Spec 7.5's own figures.
            (&Schedule::RELEASED, 30_000, 0.578_894_472_361_809),
            (&Schedule::RELEASED, 100_000, 0.526_130_653_266_331_7),
        ] {
            let factor = schedule.factor(step);
            assert!((factor - wanted).abs() < 1e-12, "{schedule:?} at {step}: {factor}, not {wanted}");
        }
    }

    #[test]
    fn it_stands_in_toml_as_a_table() {
        let text = "shape = \"linear\"\nwarmup = 2\ntotal = 9\nstart = 0.0\nmax = 1.0\nmin = 0.0\n";
        assert_eq!(toml::from_str::<Schedule>(text).unwrap(), Schedule::warmup_decay(2, 9));
    }
}
