//! Cross-entropy of rows of logits, forward and backward, without a table of log-probabilities.
//!
//! Shapes: logits [R, V], labels int [R] -> f32 [R]: log of the sum of exponentials, minus the label's logit.
//! Labels below 0 are left out: their rows yield 0 and pass no gradient.
//! Memory: forward keeps a number per row; backward writes the logits' gradient and nothing else.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Int, IntDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::{LANES, exp2, total, wide};
use crate::{Cost, Kernel, Tolerance};

/// Cross-entropy of each row, in f32.
///
/// # Panics
/// There is not one label per row; on the CPU also if a label is not below V. On other devices such a row yields NaN.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    assert_eq!(labels.dims()[0], logits.dims()[0], "one label per row of logits");
    let labels = labels.cast(IntDType::I32).into_dispatch();
    let (losses, _) = Dispatch::cross_entropy(logits.cast(FloatDType::F32).into_dispatch(), labels);
    Tensor::from_dispatch(losses)
}

/// The op on each backend: f32 logits, i32 labels. `cross_entropy` also yields the log-sum of each row, [R].
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait CrossEntropyOps: Backend {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Logits below which waking threads costs more than it gains.
const ALONE: usize = 1 << 14;

impl CrossEntropyOps for Flex {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logits, labels) = (logits.to_contiguous(), labels.to_contiguous());
        let [rows, width] = [logits.shape()[0], logits.shape()[1]];
        let values = logits.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let labels = labels.as_slice::<i32>().expect("a contiguous i32 tensor is a slice");
        let results: Vec<(f32, f32)> = labels
            .par_iter()
            .enumerate()
            .with_min_len(ALONE.div_ceil(width.max(1)))
            .map(|(row, &label)| {
                let Ok(label) = usize::try_from(label) else { return (0.0, 0.0) };
                assert!(label < width, "label {label} of row {row} is not below the {width} classes");
                let row = &values[row * width..][..width];
                let sum = log_sum(row);
                (sum - row[label], sum)
            })
            .collect();
        let (losses, sums): (Vec<f32>, Vec<f32>) = results.into_iter().unzip();
        let tensor = |values| FloatTensor::<Self>::from_data(TensorData::new(values, [rows]));
        (tensor(losses), tensor(sums))
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (labels, sums, grad) = (labels.to_contiguous(), sums.to_contiguous(), grad.to_contiguous());
        let [rows, width] = [logits.shape()[0], logits.shape()[1]];
        let labels = labels.as_slice::<i32>().expect("a contiguous i32 tensor is a slice");
        let [sums, grad] = [&sums, &grad].map(|x| x.as_slice::<f32>().expect("a contiguous f32 tensor is a slice"));
        let logits = logits.to_contiguous();
        let values = logits.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let mut result = vec![0.0; rows * width];
        let parts = result.par_chunks_mut(width.max(1)).zip(values.par_chunks(width.max(1))).enumerate();
        parts.with_min_len(ALONE.div_ceil(width.max(1))).for_each(|(row, (result, values))| {
            if let Ok(label) = usize::try_from(labels[row]) {
                probabilities(values, sums[row], grad[row], result);
                result[label] -= grad[row];
            }
        });
        FloatTensor::<Self>::from_data(TensorData::new(result, [rows, width]))
    }
}

wide! {
    /// log(sum(exp(row))).
    fn log_sum(row: &[f32]) -> f32 {
        let (lanes, tail) = row.as_chunks::<LANES>();
        let mut tops = [f32::NEG_INFINITY; LANES];
        for lane in lanes {
            for (top, &value) in tops.iter_mut().zip(lane) {
                *top = if value > *top { value } else { *top };
            }
        }
        let top = tops.iter().chain(tail).fold(f32::NEG_INFINITY, |top, &value| if value > top { value } else { top });
        // Without any finite value, any base serves.
        let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let mut sums = [0.0; LANES];
        for lane in lanes {
            for (sum, &value) in sums.iter_mut().zip(lane) {
                *sum += exp2((value - base) * std::f32::consts::LOG2_E);
            }
        }
        for (sum, &value) in sums.iter_mut().zip(tail) {
            *sum += exp2((value - base) * std::f32::consts::LOG2_E);
        }
        base + total(sums).ln()
    }
}

wide! {
    /// exp(value - sum) times a factor.
    fn probabilities(values: &[f32], sum: f32, factor: f32, result: &mut [f32]) {
        for (result, &value) in result.iter_mut().zip(values) {
            *result = exp2((value - sum) * std::f32::consts::LOG2_E) * factor;
        }
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Softmax;
        impl<B: CrossEntropyOps> Backward<B, 1> for Softmax {
            type State = (FloatTensor<B>, IntTensor<B>, FloatTensor<B>);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (logits, labels, sums) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                if let [Some(parent)] = ops.parents {
                    grads.register::<B>(parent.id, B::cross_entropy_backward(logits, labels, sums, grad));
                }
            }
        }
        let input = logits.primitive().clone();
        let (losses, sums) = B::cross_entropy(input.clone(), labels.clone());
        let constant = Self::from_inner(sums.clone());
        let losses = match Softmax.prepare::<C>([logits.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((input, labels, sums), losses),
            OpsKind::UnTracked(prep) => prep.finish(losses),
        };
        (losses, constant)
    }

    fn cross_entropy_backward(
        _: FloatTensor<Self>,
        _: IntTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }
}

#[cfg(feature = "cube")]
mod cube {
    use burn::backend::TensorMetadata;
    use burn::backend::tensor::{FloatTensor, IntTensor};
    use burn::tensor::{DType, Shape};
    use burn_cubecl::CubeBackend;
    use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
    use cubecl::calculate_cube_count_elemwise;
    use cubecl::prelude::*;

    use super::CrossEntropyOps;
    use crate::cube::dense;

    /// Units that share a row.
    const UNITS: usize = 128;

    /// One cube per row: units take every 128th logit, then each adds up what all found.
    #[cube(launch)]
    fn losses(logits: &[f32], labels: &[i32], losses: &mut [f32], sums: &mut [f32], width: u32) {
        let row = CUBE_POS as usize;
        let unit = UNIT_POS as usize;
        let width = width as usize;
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let mut label = i32::new(-1);
        if row < labels.len() {
            label = labels[row];
        }
        let mut top = f32::new(-3.0e38);
        let mut at = unit;
        while label >= 0i32 && at < width {
            top = f32::max(top, logits[row * width + at]);
            at += UNITS;
        }
        shared[unit] = top;
        sync_cube();
        for other in 0..UNITS {
            top = f32::max(top, shared[other]);
        }
        sync_cube();
        let mut sum = 0.0f32;
        at = unit;
        while label >= 0i32 && at < width {
            sum += f32::exp(logits[row * width + at] - top);
            at += UNITS;
        }
        shared[unit] = sum;
        sync_cube();
        if unit == 0 && row < labels.len() {
            let mut loss = 0.0f32;
            let mut log_sum = 0.0f32;
            if label >= 0i32 {
                let mut all = 0.0f32;
                for other in 0..UNITS {
                    all += shared[other];
                }
                log_sum = top + f32::ln(all);
                loss = 0.0f32 / (all - all); // NaN, unless the label is one of the classes
                if label < width as i32 {
                    loss = log_sum - logits[row * width + label as usize];
                }
            }
            losses[row] = loss;
            sums[row] = log_sum;
        }
    }

    /// One unit per logit.
    #[cube(launch)]
    fn backward(logits: &[f32], labels: &[i32], sums: &[f32], grad: &[f32], result: &mut [f32], width: u32) {
        if ABSOLUTE_POS < logits.len() {
            let row = ABSOLUTE_POS / width as usize;
            let column = (ABSOLUTE_POS % width as usize) as i32;
            let mut slope = 0.0f32;
            if labels[row] >= 0i32 {
                slope = f32::exp(logits[ABSOLUTE_POS] - sums[row]);
                if labels[row] == column {
                    slope -= 1.0f32;
                }
            }
            result[ABSOLUTE_POS] = slope * grad[row];
        }
    }

    impl CrossEntropyOps for CubeBackend {
        fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let (logits, labels) = (dense(logits), dense(labels));
            let client = logits.client.clone();
            let [rows, width] = logits.shape().dims();
            let row =
                || empty_device_contiguous_dtype(client.clone(), logits.device.clone(), Shape::new([rows]), DType::F32);
            let (found, sums) = (row(), row());
            if rows > 0 {
                let dim = CubeDim::new_1d(UNITS as u32);
                losses::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                    dim,
                    logits.clone().into_buffer_arg(),
                    labels.into_buffer_arg(),
                    found.clone().into_buffer_arg(),
                    sums.clone().into_buffer_arg(),
                    width as u32,
                );
            }
            (found, sums)
        }

        fn cross_entropy_backward(
            logits: FloatTensor<Self>,
            labels: IntTensor<Self>,
            sums: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let [logits, sums, grad] = [logits, sums, grad].map(dense);
            let labels = dense(labels);
            let client = logits.client.clone();
            let [_, width] = logits.shape().dims();
            let result =
                empty_device_contiguous_dtype(client.clone(), logits.device.clone(), logits.shape(), DType::F32);
            let count = logits.meta.num_elements();
            if count > 0 {
                let dim = CubeDim::new_1d(256);
                backward::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, count, dim),
                    dim,
                    logits.into_buffer_arg(),
                    labels.into_buffer_arg(),
                    sums.into_buffer_arg(),
                    grad.into_buffer_arg(),
                    result.clone().into_buffer_arg(),
                    width as u32,
                );
            }
            result
        }
    }
}

/// Case: [rows, classes]. Every fifth label is left out.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    cases: &[&[1, 1], &[7, 3], &[4, 17], &[33, 1005], &[3, 5000]],
    sizes: &[&[512, 1002], &[512, 32_000]],
    inputs: reference::inputs,
    reference: reference::losses,
    run: |case, inputs| {
        let logits = inputs[0].float().reshape([case[0], case[1]]);
        cross_entropy(logits, inputs[1].int())
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 2e-6,
        devices: 2e-6,
        gradient: 1e-6,
        reason: "sums of up to 5000 exponentials in f32, whose logarithm is at most 15",
    },
    cost: |case| {
        let count = (case[0] * case[1]) as u64;
        Cost { bytes: 4 * count, flops: 20 * count } // an exponential counted as 18
    },
};

/// The same in f64 and plain loops.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let (rows, classes) = (case[0], case[1]);
        let mut draws = Draws::new(seed);
        let logits: Vec<f32> = (0..rows * classes).map(|_| (draws.unit() * 12.0 - 6.0) as f32).collect();
        let label = |row: usize, bits: u64| if row % 5 == 4 { -100 } else { (bits % classes as u64) as i32 };
        let labels: Vec<i32> = (0..rows).map(|row| label(row, draws.bits())).collect();
        vec![TensorData::new(logits, [rows * classes]), TensorData::new(labels, [rows])]
    }

    /// What each row has: its logits, the log of their sum, and its label.
    fn rows<'a>(case: &[usize], inputs: &'a [TensorData]) -> impl Iterator<Item = (Vec<f64>, f64, Option<usize>)> + 'a {
        let logits = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
        let labels = inputs[1].as_slice::<i32>().expect("`inputs` makes i32");
        logits.chunks(case[1]).zip(labels).map(|(row, &label)| {
            let row: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
            let sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            (row, sum, usize::try_from(label).ok())
        })
    }

    pub(super) fn losses(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        rows(case, inputs).map(|(row, sum, label)| label.map_or(0.0, |label| sum - row[label])).collect()
    }

    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let rows = rows(case, inputs).zip(weights);
        rows.flat_map(|((row, sum, label), &weight)| {
            let slope = move |(class, logit): (usize, f64)| match label {
                Some(label) => f64::from(weight) * ((logit - sum).exp() - f64::from(u8::from(class == label))),
                None => 0.0,
            };
            row.into_iter().enumerate().map(slope).collect::<Vec<_>>()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;

    fn losses(logits: &[f32], label: i32) -> f32 {
        let logits = Tensor::<1>::from_floats(logits, &Device::flex()).unsqueeze();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(vec![label], [1]), (&Device::flex(), DType::I32));
        cross_entropy(logits, labels).into_scalar()
    }

    #[test]
    fn known_losses() {
        assert_eq!(losses(&[0.0, 0.0], -1), 0.0);
        assert!((losses(&[3.0, 3.0, 3.0, 3.0], 2) - 4f32.ln()).abs() < 1e-6);
        // Logits far from 0, and one that is never right.
        assert!((losses(&[1000.0, 1001.0, f32::NEG_INFINITY], 0) - 1.313_261_7).abs() < 1e-4);
        assert!(losses(&[1.0, f32::NAN], 0).is_nan());
    }

    #[test]
    #[should_panic(expected = "label 2 of row 0 is not below the 2 classes")]
    fn a_label_beyond_the_classes_is_refused() {
        losses(&[0.0, 0.0], 2);
    }
}
