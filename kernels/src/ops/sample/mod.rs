//! An id for each row of logits: greedy, or by temperature, top-k, top-p and a draw that the caller makes.
//!
//! Shapes: logits [B, V], a draw in [0, 1) for each row -> ids i32 [B].
//! Way:    ids in the order of their logits, the lowest id first among equals; the first k of them; of these the fewest
//!         whose weights exp((logit - largest) / temperature) make `top_p` of all; of these the first one up to which the
//!         weights make more than the draw's part of all. Logits that are no finite numbers take no part.
//! Source: Fan et al. 2018, arXiv 1805.04833 (top-k); Holtzman et al. 2019, arXiv 1904.09751 (top-p).
//! Differs: the CPU sums weights in f64, other devices in f32 without sorting; where a draw, or `top_p`, is within about
//!         1e-6 of the border between two ids, they may take the one and the other.

#[cfg(feature = "cube")]
mod cube;
mod flex;
mod reference;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy, backend_extension,
};
use burn::tensor::{FloatDType, Int, Tensor};

use crate::{Cost, Kernel, Tolerance};

/// What ids may be chosen, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Logits are divided by it. 0 is greedy: the first id of the largest logit, whatever the draw.
    pub temperature: f64,
    /// Only the k largest logits; 0: all.
    pub top_k: usize,
    /// Only the fewest most probable ids that together have this probability; 1: all.
    pub top_p: f64,
}

/// An id for each row; -1 for a row without a finite logit. No gradient passes.
///
/// # Panics
/// There is not one draw per row; the temperature is below 0; `top_p` is not in (0, 1].
pub fn sample(logits: Tensor<2>, choice: Choice, draws: &[f64]) -> Tensor<1, Int> {
    let Choice { temperature, top_p, .. } = choice;
    assert_eq!(logits.dims()[0], draws.len(), "one draw per row of logits");
    assert!(temperature >= 0.0, "temperature {temperature} is below 0");
    assert!(top_p > 0.0 && top_p <= 1.0, "top_p {top_p} is not in (0, 1]");
    let logits = logits.detach().cast(FloatDType::F32).into_dispatch();
    Tensor::from_dispatch(Dispatch::sample(logits, choice, draws.to_vec()))
}

/// The op on each backend: f32 logits to i32 ids.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait SampleOps: Backend {
    fn sample(logits: FloatTensor<Self>, choice: Choice, draws: Vec<f64>) -> IntTensor<Self>;
}

impl<B: SampleOps, C: CheckpointStrategy> SampleOps for Autodiff<B, C> {
    fn sample(logits: FloatTensor<Self>, choice: Choice, draws: Vec<f64>) -> IntTensor<Self> {
        B::sample(logits.into_primitive(), choice, draws)
    }
}

/// Case: [rows, ids, hundredths of temperature, top_k, thousandths of top_p].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "sample",
    cases: &[
        &[1, 1, 100, 0, 1000],
        &[5, 7, 0, 0, 1000],
        &[40, 33, 100, 5, 1000],
        &[60, 300, 70, 0, 900],
        &[60, 1005, 100, 50, 950],
        &[20, 1005, 100, 0, 1000],
        &[9, 5000, 150, 600, 800],
    ],
    sizes: &[&[1, 1005, 100, 0, 950], &[64, 1005, 100, 50, 950]],
    inputs: reference::inputs,
    reference: reference::ids,
    run: |case, inputs| {
        let draws: Vec<f64> = inputs[1].float().into_data().iter::<f64>().collect();
        let draws: Vec<f64> = draws.into_iter().map(|draw| draw.clamp(0.0, 0.999)).collect();
        sample(inputs[0].float().reshape([case[0], case[1]]), reference::choice(case), &draws)
            .float()
            .cast(FloatDType::F32)
    },
    gradient: None,
    tolerance: Tolerance {
        reference: 0.0,
        devices: 0.0,
        gradient: 0.0,
        reason: "ids are exact: draws keep 1e-5 of all weights from borders between ids, further than f32 sums err",
    },
    cost: |case| {
        let count = (case[0] * case[1]) as u64;
        Cost { bytes: 4 * count, flops: 20 * count } // an exponential counted as 18
    },
};

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    const ALL: Choice = Choice { temperature: 1.0, top_k: 0, top_p: 1.0 };

    fn id(logits: &[f32], choice: Choice, draw: f64) -> i64 {
        let data = TensorData::new(logits.to_vec(), [1, logits.len()]);
        sample(Tensor::from_data(data, &Device::flex()), choice, &[draw]).into_data().iter::<i64>().next().unwrap()
    }

    #[test]
    fn ids_come_in_the_order_of_logits_and_then_of_ids() {
        // Weights 2, 1, 2, 1 of 6, in the order 0, 2, 1, 3.
        let logits = [2f32.ln(), 0.0, 2f32.ln(), 0.0];
        for (draw, wanted) in [(0.0, 0), (0.33, 0), (0.34, 2), (0.66, 2), (0.67, 1), (0.83, 1), (0.84, 3), (0.999, 3)] {
            assert_eq!(id(&logits, ALL, draw), wanted, "draw {draw}");
        }
        for (choice, draw, wanted) in [
            (Choice { temperature: 0.0, ..ALL }, 0.9, 0),
            (Choice { top_k: 3, ..ALL }, 0.99, 1),
            (Choice { top_k: 1, ..ALL }, 0.99, 0),
            (Choice { top_p: 0.5, ..ALL }, 0.99, 2),
            (Choice { top_p: 0.8, ..ALL }, 0.99, 1),
            (Choice { top_p: 1e-9, ..ALL }, 0.99, 0),
        ] {
            assert_eq!(id(&logits, choice, draw), wanted, "{choice:?}");
        }
    }

    #[test]
    fn what_is_no_finite_number_takes_no_part() {
        let none = f32::NEG_INFINITY;
        assert_eq!(id(&[f32::NAN, none, 1.0, f32::INFINITY], ALL, 0.99), 2);
        assert_eq!(id(&[f32::NAN, none], ALL, 0.5), -1);
        assert_eq!(id(&[none], Choice { temperature: 0.0, ..ALL }, 0.5), -1);
    }

    #[test]
    #[should_panic(expected = "top_p 0 is not in (0, 1]")]
    fn nonsense_is_refused() {
        id(&[0.0], Choice { top_p: 0.0, ..ALL }, 0.0);
    }
}
