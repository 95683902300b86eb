//! Items in proportion: a sub-dataset drawn by weight, a video of it, a clip of that, each evenly.
//!
//! Draw n follows from (seed, n) alone, by a counter-based generator, so a resumed run goes on with the very draws that it
//! would have seen, on any number of workers. Videos count alike whatever their number of clips.
//! Source: spec section 1.4. Differs: the original draws from two generators that it seeds with the index, so that each
//! epoch repeats the first; that is [`Mixture::repeating`], and not the default (spec 10.1, Q17). Numbers are not its own.

use super::order::mix;

/// What there is to draw from.
#[derive(Clone, Debug)]
pub struct Mixture {
    parts: Vec<Part>,
    /// Sums of weights up to and with each part.
    sums: Vec<f64>,
    items: u64,
    repeating: bool,
}

/// A sub-dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its share is this, over the sum of all.
    pub weight: f64,
    /// The items of each video.
    pub videos: Vec<Vec<usize>>,
}

impl Mixture {
    /// Parts without items or weight are never drawn.
    ///
    /// # Panics
    /// A weight is negative or no number, or nothing is left to draw: the caller checks its parameters and table.
    pub fn new(parts: Vec<Part>) -> Mixture {
        assert!(parts.iter().all(|part| part.weight.is_finite() && part.weight >= 0.0), "weights are 0 or more");
        let mut parts = parts;
        parts.iter_mut().for_each(|part| part.videos.retain(|items| !items.is_empty()));
        parts.retain(|part| part.weight > 0.0 && !part.videos.is_empty());
        assert!(!parts.is_empty(), "a mixture has at least one item in a part with a weight");
        let mut sum = 0.0;
        let sums = parts.iter().map(|part| {
            sum += part.weight;
            sum
        });
        let sums = sums.collect();
        let items = parts.iter().flat_map(|part| &part.videos).map(|items| items.len() as u64).sum();
        Mixture { parts, sums, items, repeating: false }
    }

    /// The same draws in every epoch, which has as many as there are items.
    pub fn repeating(self) -> Mixture {
        Mixture { repeating: true, ..self }
    }

    /// The `n`-th item.
    pub fn item(&self, seed: u64, n: u64) -> usize {
        let n = if self.repeating { n % self.items } else { n };
        let key = mix(seed, n);
        let total = self.sums[self.sums.len() - 1];
        let at = share(mix(key, 0)) * total;
        // Rounding may reach the total itself.
        let part = self.sums.partition_point(|sum| *sum <= at).min(self.parts.len() - 1);
        let videos = &self.parts[part].videos;
        let items = &videos[below(mix(key, 1), videos.len())];
        items[below(mix(key, 2), items.len())]
    }
}

/// In [0, 1), with 53 bits.
fn share(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Below `count`, which is far below 2^64: the bias of this is one in 2^64 / count.
fn below(bits: u64, count: usize) -> usize {
    ((u128::from(bits) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(weight: f64, videos: &[&[usize]]) -> Part {
        Part { weight, videos: videos.iter().map(|items| items.to_vec()).collect() }
    }

    /// How often each of the items below `items` is drawn.
    fn counts(mixture: &Mixture, items: usize, draws: u64) -> Vec<u64> {
        let mut counts = vec![0; items];
        (0..draws).for_each(|n| counts[mixture.item(7, n)] += 1);
        counts
    }

    #[test]
    fn parts_are_drawn_by_weight_videos_and_clips_evenly() {
        let parts = [part(3.0, &[&[0, 1, 2], &[3]]), part(1.0, &[&[4]]), part(0.0, &[&[5]]), part(9.0, &[&[], &[]])];
        let mixture = Mixture::new(parts.to_vec());
        let draws = 40_000;
        let wanted = [1.0 / 8.0, 1.0 / 8.0, 1.0 / 8.0, 3.0 / 8.0, 1.0 / 4.0, 0.0].map(|share| share * draws as f64);
        for (item, (count, wanted)) in counts(&mixture, 6, draws).into_iter().zip(wanted).enumerate() {
            // Six standard deviations of a binomial draw are at most 3 sqrt(draws).
            assert!((count as f64 - wanted).abs() < 3.0 * (draws as f64).sqrt(), "item {item}: {count}, not {wanted}");
        }
    }

    #[test]
    fn a_draw_follows_from_its_seed_and_number() {
        let parts = vec![part(1.0, &[&[0, 1], &[2, 3]]), part(2.0, &[&[4, 5, 6]])];
        let mixture = Mixture::new(parts.clone());
        let draws = |mixture: &Mixture, seed| (0..50).map(|n| mixture.item(seed, n)).collect::<Vec<_>>();
        assert_eq!(draws(&mixture, 3), draws(&Mixture::new(parts.clone()), 3));
        assert_ne!(draws(&mixture, 3), draws(&mixture, 4));
        assert_ne!(draws(&mixture, 3)[..7], draws(&mixture, 3)[7..14], "another epoch has other draws");
        let repeating = draws(&Mixture::new(parts).repeating(), 3);
        assert_eq!(repeating[..7], draws(&mixture, 3)[..7]);
        assert!(repeating.chunks(7).all(|epoch| *epoch == repeating[..epoch.len()]), "{repeating:?}");
    }

    #[test]
    fn numbers_below_a_count_reach_all_of_it() {
        assert_eq!([0, u64::MAX / 2, u64::MAX].map(|bits| below(bits, 3)), [0, 1, 2]);
        assert!(share(u64::MAX) < 1.0 && share(0) == 0.0);
    }
}
