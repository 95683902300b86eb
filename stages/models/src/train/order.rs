//! Which items a step sees: a seeded shuffle of all items per epoch, cut into minibatches; or draws from a [`Mixture`].
//!
//! Stateless: the items of step n follow from (seed, n), so a resumed run goes on with the very minibatches that it would
//! have seen. An epoch's last minibatch goes on into the next epoch, so all have equal size.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::mixture::Mixture;

/// A shuffle of `0..items` for each epoch, or a mixture.
#[derive(Clone, Debug)]
pub struct Order {
    items: usize,
    minibatch: usize,
    seed: u64,
    shuffled: Option<(u64, Vec<usize>)>,
    mixture: Option<Mixture>,
}

impl Order {
    /// # Panics
    /// No items, or minibatches of none: the caller checks its table and parameters.
    pub fn new(items: usize, minibatch: usize, seed: u64) -> Order {
        assert!(items > 0 && minibatch > 0, "training takes at least 1 item and minibatches of at least 1");
        Order { items, minibatch, seed, shuffled: None, mixture: None }
    }

    /// Draws of the mixture's items, in place of shuffles.
    ///
    /// # Panics
    /// Minibatches of none.
    pub fn mixed(mixture: Mixture, minibatch: usize, seed: u64) -> Order {
        Order { mixture: Some(mixture), ..Order::new(1, minibatch, seed) }
    }

    /// The items of step `step`, counted from 0.
    pub fn minibatch(&mut self, step: u64) -> Vec<usize> {
        let (items, size) = (self.items as u64, self.minibatch as u64);
        if let Some(mixture) = &self.mixture {
            return (step * size..(step + 1) * size).map(|n| mixture.item(self.seed, n)).collect();
        }
        (step * size..(step + 1) * size).map(|i| self.epoch(i / items)[(i % items) as usize]).collect()
    }

    fn epoch(&mut self, epoch: u64) -> &[usize] {
        if self.shuffled.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut order: Vec<usize> = (0..self.items).collect();
            order.shuffle(&mut StdRng::seed_from_u64(mix(self.seed, epoch)));
            self.shuffled = Some((epoch, order));
        }
        let (_, order) = self.shuffled.as_ref().expect("it was filled above");
        order
    }
}

/// Another seed from a seed and a number, spread over all 64 bits (the finaliser of SplitMix64).
pub fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::mixture::Part;
    use super::*;

    #[test]
    fn neighbouring_numbers_give_unrelated_seeds() {
        let differing: u32 = (0..64).map(|i| (mix(5, i) ^ mix(5, i + 1)).count_ones()).sum();
        assert!((28 * 64..36 * 64).contains(&differing), "{differing} of 4096 bits differ");
        assert_ne!(mix(5, 6), mix(6, 5));
    }

    #[test]
    fn each_epoch_has_every_item_once_in_another_order() {
        let mut order = Order::new(10, 4, 3);
        let seen: Vec<usize> = (0..5).flat_map(|step| order.minibatch(step)).collect();
        let (first, second) = seen.split_at(10);
        for epoch in [first, second] {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
    }

    #[test]
    fn a_step_has_the_same_items_wherever_one_starts() {
        let mut through = Order::new(7, 3, 1);
        let all: Vec<_> = (0..20).map(|step| through.minibatch(step)).collect();
        for step in [13, 2, 19] {
            assert_eq!(Order::new(7, 3, 1).minibatch(step), all[step as usize]);
        }
        assert_ne!(Order::new(7, 3, 2).minibatch(0), all[0]);
    }

    #[test]
    fn a_mixture_is_drawn_from_step_after_step() {
        let mixture = Mixture::new(vec![Part { weight: 1.0, videos: vec![vec![5, 6], vec![9]] }]);
        let mut order = Order::mixed(mixture.clone(), 4, 2);
        let seen: Vec<usize> = (0..3).flat_map(|step| order.minibatch(step)).collect();
        assert_eq!(seen, (0..12).map(|n| mixture.item(2, n)).collect::<Vec<_>>());
        assert_eq!(Order::mixed(mixture, 4, 2).minibatch(2), seen[8..]);
    }

    #[test]
    fn a_minibatch_may_be_larger_than_the_data() {
        assert_eq!(Order::new(1, 3, 0).minibatch(9), [0, 0, 0]);
    }
}
