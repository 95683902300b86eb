//! Trivial predictors of the next code, which an AR model has to beat: by frequency, and by frequency after the code before.
//!
//! Frequencies are counted in the training scenes; the strength of smoothing is the one that does best on the held-out
//! scenes themselves, in favour of the baselines. Losses are nats per code.

use std::collections::HashMap;

use crate::scenes::Scene;

/// Counts that are added to every code, in all, per code of the codebook.
const UNIGRAM_STRENGTHS: [f64; 6] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0];
/// How many times a code must have been seen before what followed it weighs as much as the frequency of all codes.
const BIGRAM_STRENGTHS: [f64; 6] = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// Mean losses on held-out codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Baselines {
    pub(crate) unigram: f64,
    pub(crate) bigram: f64,
}

impl Baselines {
    pub(crate) fn of(train: &[Scene], held: &[Scene], codebook: usize) -> Baselines {
        let sequences = |scenes: &[Scene]| scenes.iter().map(|scene| scene.codes.clone()).collect::<Vec<_>>();
        Baselines::of_codes(&sequences(train), &sequences(held), codebook)
    }

    fn of_codes(train: &[Vec<u32>], held: &[Vec<u32>], codebook: usize) -> Baselines {
        let mut counts = vec![0.0; codebook];
        let mut after: HashMap<u32, HashMap<u32, f64>> = HashMap::new();
        for codes in train {
            codes.iter().for_each(|code| counts[*code as usize] += 1.0);
            for pair in codes.windows(2) {
                *after.entry(pair[0]).or_default().entry(pair[1]).or_default() += 1.0;
            }
        }
        let total: f64 = counts.iter().sum();
        let unigram = |strength: f64| {
            let counts = &counts;
            move |code: u32| (counts[code as usize] + strength) / (total + strength * codebook as f64)
        };
        let mean = |probability: &dyn Fn(Option<u32>, u32) -> f64| {
            let losses = held.iter().flat_map(|codes| {
                let before = std::iter::once(None).chain(codes.iter().copied().map(Some));
                before.zip(codes).map(|(before, &code)| -probability(before, code).ln())
            });
            let (sum, count) = losses.fold((0.0, 0.0), |(sum, count), loss| (sum + loss, count + 1.0));
            sum / count
        };
        let losses = UNIGRAM_STRENGTHS.map(|strength| (mean(&|_, code| unigram(strength)(code)), strength));
        let (best, smoothing) = losses.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are strengths");
        let frequency = unigram(smoothing);
        let bigram = BIGRAM_STRENGTHS.map(|strength| {
            mean(&|before, code| {
                let Some(after) = before.and_then(|before| after.get(&before)) else { return frequency(code) };
                let seen: f64 = after.values().sum();
                (after.get(&code).copied().unwrap_or(0.0) + strength * frequency(code)) / (seen + strength)
            })
        });
        Baselines { unigram: best, bigram: bigram.into_iter().fold(f64::INFINITY, f64::min) }
    }

    /// The loss that a model has to be below.
    pub(crate) fn better(&self) -> f64 {
        self.unigram.min(self.bigram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_seen_by_the_bigram_alone() {
        // 0 1 2 0 1 2 …: each code is as frequent as the others, and follows from the one before.
        let codes: Vec<u32> = (0..300).map(|index| index % 3).collect();
        let of = Baselines::of_codes(std::slice::from_ref(&codes), &[codes[..30].to_vec()], 3);
        assert!((of.unigram - 3f64.ln()).abs() < 1e-3, "{of:?}");
        assert!(of.bigram < 0.1 && of.better() == of.bigram, "{of:?}");
    }

    #[test]
    fn codes_that_were_never_seen_have_a_finite_loss() {
        let of = Baselines::of_codes(&[vec![0, 1]], &[vec![9, 8, 9]], 10);
        assert!(of.unigram.is_finite() && of.bigram.is_finite() && of.unigram >= 10f64.ln(), "{of:?}");
    }
}
