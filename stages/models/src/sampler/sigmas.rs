//! Noise levels: those that a sampler visits, and those that training draws.

use std::ops::Range;

/// `steps + 1` levels from `max` down to `min`, evenly spaced in their `rho`-th root (spec 5.3).
pub fn schedule(steps: usize, min: f64, max: f64, rho: f64) -> Vec<f64> {
    let (low, high) = (min.powf(rho.recip()), max.powf(rho.recip()));
    (0..=steps).map(|i| (high + i as f64 / steps.max(1) as f64 * (low - high)).powf(rho)).collect()
}

/// The levels of the high branch of [`TrainingSigmas`].
pub const HIGH_SIGMAS: Range<f64> = 200.0..100_000.0;

/// The distribution of noise levels in training (spec 7.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingSigmas {
    /// Factor on the log-normal levels: the root of the number of latent frames.
    pub scale: f64,
    /// How often a level is drawn from [`HIGH_SIGMAS`] instead, log-uniformly.
    pub high_share: f64,
}

impl TrainingSigmas {
    /// Upstream's for clips of `frames` latent frames.
    pub fn video(frames: usize) -> TrainingSigmas {
        TrainingSigmas { scale: (frames as f64).sqrt(), high_share: 0.05 }
    }

    /// The level for two draws, uniform in 0..1: the first says which branch, the second where in it.
    pub fn at(self, branch: f64, u: f64) -> f64 {
        if branch < self.high_share {
            let (low, high) = (HIGH_SIGMAS.start.ln(), HIGH_SIGMAS.end.ln());
            return (low + u * (high - low)).exp();
        }
        self.scale * quantile(u).exp()
    }
}

/// The value below which a standard normal number lies with probability `p`, by bisection: within 1e-15 of 20.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        let below = 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2);
        if below < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}
