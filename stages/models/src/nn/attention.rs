//! Attention over one axis of tokens; heads stand in the batch.
//!
//! Scores of all queries at once would take N x M values per head; where that is much, queries pass in parts.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

/// The most scores that are in memory at a time, as far as one query's row allows.
const SCORES: usize = 1 << 25;

/// `softmax(q k^T / sqrt(D)) v`. q `[B, N, D]`, k and v `[B, M, D]`; where `hidden` `[1 or B, N, M]` is true, a query
/// does not see a key. Every query must see at least one.
pub fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, hidden: Option<Tensor<3, Bool>>) -> Tensor<3> {
    in_parts(q, &k, hidden, |scores| softmax(scores, 2).matmul(v.clone()))
}

/// As [`attend`], beside `zeros` further keys and values that are all 0: each adds a score of 0 to the softmax, and nothing
/// to the result. They are not made.
pub fn attend_beside_zeros(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    hidden: Option<Tensor<3, Bool>>,
    zeros: usize,
) -> Tensor<3> {
    if zeros == 0 {
        return attend(q, k, v, hidden);
    }
    in_parts(q, &k, hidden, |scores| {
        // The largest score only keeps the exponentials in range: no gradient passes it.
        let largest = scores.clone().detach().max_dim(2).clamp_min(0.0);
        let weights = (scores - largest.clone()).exp();
        let sum = weights.clone().sum_dim(2) + (-largest).exp().mul_scalar(zeros as f64);
        weights.matmul(v.clone()) / sum
    })
}

/// `mix` of the scores of as many queries at a time as [`SCORES`] allows.
fn in_parts(
    q: Tensor<3>,
    k: &Tensor<3>,
    hidden: Option<Tensor<3, Bool>>,
    mix: impl Fn(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let [batch, queries, width] = q.dims();
    let keys = k.dims()[1];
    let q = q * (width as f64).sqrt().recip();
    let k = k.clone().swap_dims(1, 2);
    let part = |start: usize, count: usize| {
        let scores = q.clone().narrow(1, start, count).matmul(k.clone()); // [B, count, M]
        mix(match &hidden {
            Some(hidden) => {
                let shape = scores.dims();
                scores.mask_fill(hidden.clone().narrow(1, start, count).expand(shape), f32::NEG_INFINITY)
            }
            None => scores,
        })
    };
    let count = (SCORES / (batch * keys).max(1)).clamp(1, queries.max(1));
    if count == queries {
        return part(0, queries);
    }
    let parts = (0..queries).step_by(count).map(|start| part(start, count.min(queries - start)));
    Tensor::cat(parts.collect(), 1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn difference(a: Tensor<3>, b: Tensor<3>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn zeros_that_are_not_made_count_as_those_that_are() {
        let device = Device::flex();
        device.seed(7);
        let random = |n: usize| Tensor::<3>::random([3, n, 8], Distribution::Normal(0.0, 2.0), &device);
        let (q, k, v) = (random(5), random(4), random(4));
        for zeros in [0, 1, 60] {
            let padded = |x: &Tensor<3>| Tensor::cat(vec![x.clone(), Tensor::zeros([3, zeros, 8], &device)], 1);
            let made = if zeros == 0 {
                attend(q.clone(), k.clone(), v.clone(), None)
            } else {
                attend(q.clone(), padded(&k), padded(&v), None)
            };
            let ours = attend_beside_zeros(q.clone(), k.clone(), v.clone(), None, zeros);
            let difference = difference(made, ours);
            assert!(difference < 1e-5, "{zeros} zeros: {difference}");
        }
    }

    #[test]
    fn parts_give_the_result_of_the_whole() {
        let device = Device::flex();
        device.seed(8);
        let random = |n: usize| Tensor::<3>::random([1, n, 2], Distribution::Normal(0.0, 1.0), &device);
        // 8200 keys: 4092 queries at a time.
        let (q, k, v) = (random(5000), random(8200), random(8200));
        let whole = attend(q.clone(), k.clone(), v.clone(), None);
        let end = attend(q.narrow(1, 4900, 100), k, v, None);
        assert!(difference(whole.narrow(1, 4900, 100), end) < 1e-6);
    }
}
