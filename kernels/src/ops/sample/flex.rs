//! The op on the CPU: sorts, and sums in f64.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{Choice, SampleOps};

impl SampleOps for Flex {
    fn sample(logits: FloatTensor<Self>, choice: Choice, draws: Vec<f64>) -> IntTensor<Self> {
        let logits = logits.to_contiguous();
        let width = logits.shape()[1];
        let values = logits.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let row = |(row, &draw): (usize, &f64)| choose(&values[row * width..][..width], choice, draw);
        let ids: Vec<i32> = draws.par_iter().enumerate().map(row).map(|id| id.map_or(-1, |id| id as i32)).collect();
        let rows = ids.len();
        IntTensor::<Self>::from_data(TensorData::new(ids, [rows]))
    }
}

/// None where no logit is a finite number.
fn choose(logits: &[f32], choice: Choice, draw: f64) -> Option<usize> {
    let Choice { temperature, top_k, top_p } = choice;
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i].is_finite()).collect();
    // A stable sort, so that equal logits keep the order of their ids.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let &best = order.first()?;
    if temperature == 0.0 {
        return Some(best);
    }
    if top_k > 0 {
        order.truncate(top_k);
    }
    let top = f64::from(logits[best]);
    let mut weights: Vec<f64> = order.iter().map(|&i| ((f64::from(logits[i]) - top) / temperature).exp()).collect();
    if top_p < 1.0 {
        let wanted = top_p * weights.iter().sum::<f64>();
        let mut together = 0.0;
        let enough = weights.iter().position(|weight| {
            together += weight;
            together >= wanted
        });
        weights.truncate(enough.map_or(weights.len(), |last| last + 1));
    }
    let mut left = draw * weights.iter().sum::<f64>();
    for (&index, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return Some(index);
        }
    }
    // Rounding may leave a rest of nothing behind the last id.
    Some(order[weights.len() - 1])
}
