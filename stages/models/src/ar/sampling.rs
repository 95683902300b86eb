//! From logits to an id, on their device: greedy, temperature, top-k, top-p, and draws that follow from a seed.

use burn::tensor::{Int, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use vw2_kernels::{Choice, sample};

use crate::{Error, Result};

/// How an id is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it. 0 is greedy: the largest logit, the lowest id among equals; no draw is made.
    pub temperature: f64,
    /// Only the k most probable ids; 0: all.
    pub top_k: usize,
    /// Only the fewest most probable ids that together have this probability; 1: all.
    pub top_p: f64,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 0.95, seed: 0 }
    }
}

impl Sampling {
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// # Errors
    /// Names the value that is out of range.
    pub fn check(&self) -> Result<()> {
        let Sampling { temperature, top_p, .. } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::Config(format!("temperature {temperature} must be 0 (greedy) or above")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Config(format!("top_p {top_p} must be above 0 and at most 1")));
        }
        Ok(())
    }
}

/// The draws of one generation, in order.
pub struct Draws<'a> {
    sampling: &'a Sampling,
    rng: StdRng,
}

impl<'a> Draws<'a> {
    pub fn new(sampling: &'a Sampling) -> Draws<'a> {
        Draws { sampling, rng: StdRng::seed_from_u64(sampling.seed) }
    }

    /// An id for a row of logits [1, V], which stays on its device: [1]. Those that are minus infinity are never chosen.
    pub fn choose(&mut self, logits: Tensor<2>) -> Tensor<1, Int> {
        let Sampling { temperature, top_k, top_p, .. } = *self.sampling;
        let draw = if temperature == 0.0 { 0.0 } else { self.rng.random() };
        sample(logits, Choice { temperature, top_k, top_p }, &[draw])
    }
}

/// The number of an id that was chosen.
///
/// # Errors
/// No logit was a finite number.
pub(super) fn known(id: Tensor<1, Int>) -> Result<u32> {
    let id: i64 = id.into_scalar();
    u32::try_from(id)
        .map_err(|_| Error::Input("sampling: no id has a finite logit; the weights may be damaged".to_owned()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, f32::NEG_INFINITY, 2.0, 1.0];

    fn choose(draws: &mut Draws<'_>, logits: &[f32]) -> Result<usize> {
        let logits = Tensor::<1>::from_floats(logits, &Device::flex()).unsqueeze();
        known(draws.choose(logits)).map(|id| id as usize)
    }

    /// How often each id comes in 4000 draws.
    fn counts(sampling: &Sampling) -> [usize; 5] {
        let mut draws = Draws::new(sampling);
        let mut counts = [0; 5];
        for _ in 0..4000 {
            counts[choose(&mut draws, &LOGITS).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(counts(&Sampling::GREEDY), [0, 4000, 0, 0, 0]);
    }

    #[test]
    fn only_the_allowed_ids_come_and_in_their_proportion() {
        let all = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
        let e = std::f64::consts::E;
        for (sampling, weights) in [
            (all.clone(), [1.0, e * e, 0.0, e * e, e]),
            (Sampling { temperature: 2.0, ..all.clone() }, [1.0, e, 0.0, e, e.sqrt()]),
            (Sampling { top_k: 3, ..all.clone() }, [0.0, e * e, 0.0, e * e, e]),
            (Sampling { top_k: 1, ..all.clone() }, [0.0, 1.0, 0.0, 0.0, 0.0]),
            (Sampling { top_p: 0.6, ..all.clone() }, [0.0, 1.0, 0.0, 1.0, 0.0]),
            (Sampling { top_p: 1e-9, ..all }, [0.0, 1.0, 0.0, 0.0, 0.0]),
        ] {
            let counts = counts(&sampling);
            let sum: f64 = weights.iter().sum();
            for (id, (&count, weight)) in counts.iter().zip(weights).enumerate() {
                let wanted = 4000.0 * weight / sum;
                // Four standard deviations of a binomial count.
                let room = 4.0 * (wanted * (1.0 - weight / sum)).sqrt();
                assert!((count as f64 - wanted).abs() <= room, "{sampling:?}: id {id} came {count}, not {wanted}");
            }
        }
    }

    #[test]
    fn draws_follow_from_the_seed_and_stay_as_they_are() {
        let draw = |seed| {
            let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed };
            let mut draws = Draws::new(&sampling);
            std::array::from_fn::<usize, 12, _>(|_| choose(&mut draws, &[0.0; 10]).unwrap())
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        // When a new generator changes these, the stages that sample must raise their VERSION.
        assert_eq!(draw(7), [0, 3, 1, 5, 2, 9, 1, 2, 1, 7, 6, 0]);
    }

    #[test]
    fn nonsense_is_named() {
        assert!(choose(&mut Draws::new(&Sampling::GREEDY), &[f32::NAN, f32::NEG_INFINITY]).is_err());
        for (wrong, word) in [
            (Sampling { temperature: f64::NAN, ..Sampling::GREEDY }, "temperature NaN"),
            (Sampling { temperature: -1.0, ..Sampling::GREEDY }, "temperature -1"),
            (Sampling { top_p: 0.0, ..Sampling::GREEDY }, "top_p 0"),
        ] {
            assert!(wrong.check().unwrap_err().to_string().contains(word));
        }
    }
}
