//! GELU: `x P(x)`, where P is the chance that a draw of the normal distribution is at most x; element by element, forward and
//! backward in one pass each.
//!
//! Shapes: any.
//! Way:    P by Abramowitz and Stegun's 7.1.26, a polynomial times exp(-x^2 / 2), which is right to 1.5e-7.
//! Source: Hendrycks and Gimpel 2016, arXiv 1606.08415. Not the approximation by tanh.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::{exp2, wide};
use crate::{Cost, Kernel, Tolerance};

/// 7.1.26: the inner coefficient, for x instead of x / sqrt(2), and half of the outer ones.
const INNER: f32 = 0.231_641_9;
const OUTER: [f32; 5] = [0.127_414_8, -0.142_248_37, 0.710_706_9, -0.726_576_01, 0.530_702_7];
/// 1 / sqrt(2 pi).
const PEAK: f32 = 0.398_942_3;
/// exp(-x^2 / 2) as a power of two.
const HALF_LOG2_E: f32 = 0.721_347_5;

/// `x P(x)`. Keeps the float type.
pub fn gelu<const N: usize>(x: Tensor<N>) -> Tensor<N> {
    let dtype = FloatDType::from(x.dtype());
    Tensor::<N>::from_dispatch(Dispatch::normal_gate(x.cast(FloatDType::F32).into_dispatch())).cast(dtype)
}

/// The op on each backend, in f32.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait GeluOps: Backend {
    fn normal_gate(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn normal_gate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Elements that one thread takes at a time: enough work to be worth waking it.
const PART: usize = 1 << 14;

impl GeluOps for Flex {
    fn normal_gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        let values = slice(&x);
        let mut result = vec![0.0; values.len()];
        result.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(result, values)| apply(values, result));
        FloatTensor::<Self>::from_data(TensorData::new(result, x.shape()))
    }

    fn normal_gate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let (values, grads) = (slice(&x), slice(&grad));
        let mut result = vec![0.0; values.len()];
        let inputs = values.par_chunks(PART).zip(grads.par_chunks(PART));
        result.par_chunks_mut(PART).zip(inputs).for_each(|(result, (values, grads))| slopes(values, grads, result));
        FloatTensor::<Self>::from_data(TensorData::new(result, x.shape()))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

/// P(x), and exp(-x^2 / 2).
#[inline(always)]
fn chance(x: f32) -> (f32, f32) {
    let bell = exp2(-x * x * HALF_LOG2_E);
    let t = 1.0 / (1.0 + INNER * x.abs());
    let [a, b, c, d, e] = OUTER;
    let beyond = ((((e * t + d) * t + c) * t + b) * t + a) * t * bell;
    (if x < 0.0 { beyond } else { 1.0 - beyond }, bell)
}

wide! {
    fn apply(values: &[f32], result: &mut [f32]) {
        for (result, &x) in result.iter_mut().zip(values) {
            *result = x * chance(x).0;
        }
    }
}

wide! {
    fn slopes(values: &[f32], grads: &[f32], result: &mut [f32]) {
        for ((result, &x), &grad) in result.iter_mut().zip(values).zip(grads) {
            let (chance, bell) = chance(x);
            *result = grad * (chance + x * bell * PEAK);
        }
    }
}

impl<B: GeluOps, C: CheckpointStrategy> GeluOps for Autodiff<B, C> {
    fn normal_gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Slopes;
        impl<B: GeluOps> Backward<B, 1> for Slopes {
            type State = FloatTensor<B>;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let [parent] = ops.parents;
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, B::normal_gate_backward(ops.state, grad));
                }
            }
        }
        let values = x.primitive().clone();
        let result = B::normal_gate(values.clone());
        match Slopes.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(values, result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        }
    }

    fn normal_gate_backward(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }
}

#[cfg(feature = "cube")]
mod cube {
    use burn::backend::TensorMetadata;
    use burn::backend::tensor::FloatTensor;
    use burn_cubecl::CubeBackend;
    use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
    use burn_cubecl::tensor::CubeTensor;
    use cubecl::calculate_cube_count_elemwise;
    use cubecl::prelude::*;

    use super::{GeluOps, INNER, OUTER, PEAK};
    use crate::cube::dense;

    /// As on the CPU.
    #[cube]
    fn chance(x: f32) -> (f32, f32) {
        let bell = f32::exp(x * x * -0.5f32);
        let t = 1.0f32 / (1.0f32 + f32::abs(x) * INNER);
        let (a, b, c, d, e) = comptime!((OUTER[0], OUTER[1], OUTER[2], OUTER[3], OUTER[4]));
        let beyond = ((((t * e + d) * t + c) * t + b) * t + a) * t * bell;
        (select(x < 0.0f32, beyond, 1.0f32 - beyond), bell)
    }

    /// One unit per element.
    #[cube(launch)]
    fn apply(x: &[f32], result: &mut [f32]) {
        if ABSOLUTE_POS < x.len() {
            let value = x[ABSOLUTE_POS];
            let (chance, _) = chance(value);
            result[ABSOLUTE_POS] = value * chance;
        }
    }

    /// One unit per element.
    #[cube(launch)]
    fn slopes(x: &[f32], grad: &[f32], result: &mut [f32]) {
        if ABSOLUTE_POS < x.len() {
            let value = x[ABSOLUTE_POS];
            let (chance, bell) = chance(value);
            result[ABSOLUTE_POS] = grad[ABSOLUTE_POS] * (chance + value * bell * PEAK);
        }
    }

    fn like(x: &CubeTensor) -> (CubeTensor, CubeCount, CubeDim) {
        let dim = CubeDim::new_1d(256);
        let count = calculate_cube_count_elemwise(&x.client, x.meta.num_elements(), dim);
        (empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype), count, dim)
    }

    impl GeluOps for CubeBackend {
        fn normal_gate(x: FloatTensor<Self>) -> FloatTensor<Self> {
            let x = dense(x);
            let (result, count, dim) = like(&x);
            let client = x.client.clone();
            apply::launch(&client, count, dim, x.into_buffer_arg(), result.clone().into_buffer_arg());
            result
        }

        fn normal_gate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
            let (x, grad) = (dense(x), dense(grad));
            let (result, count, dim) = like(&x);
            let client = x.client.clone();
            let out = result.clone().into_buffer_arg();
            slopes::launch(&client, count, dim, x.into_buffer_arg(), grad.into_buffer_arg(), out);
            result
        }
    }
}

/// Case: [elements].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "gelu",
    cases: &[&[1], &[33], &[40_001]],
    sizes: &[&[1560 * 8192]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |_, inputs| gelu(inputs[0].float()),
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 2e-6,
        devices: 2e-6,
        gradient: 2e-6,
        reason: "a chance that is right to 1.5e-7 and rounded in a few f32 operations, times values of at most 6",
    },
    cost: |case| Cost { bytes: 8 * case[0] as u64, flops: 34 * case[0] as u64 }, // an exponential counted as 18
};

/// The same in f64.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let mut draws = Draws::new(seed);
        let values: Vec<f32> = (0..case[0]).map(|_| (draws.unit() * 12.0 - 6.0) as f32).collect();
        vec![TensorData::new(values, [case[0]])]
    }

    fn values(inputs: &[TensorData]) -> impl Iterator<Item = f64> {
        inputs[0].as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&x| f64::from(x))
    }

    fn gelu(x: f64) -> f64 {
        x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
    }

    pub(super) fn result(_: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        values(inputs).map(gelu).collect()
    }

    /// Central differences.
    pub(super) fn gradient(_: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let h = 1e-5;
        let slope = |x: f64| (gelu(x + h) - gelu(x - h)) / (2.0 * h);
        values(inputs).zip(weights).map(|(x, &weight)| slope(x) * f64::from(weight)).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn known_values() {
        let x = Tensor::<1>::from_floats([0.0, 1.0, -1.0, 30.0, -30.0, f32::NAN], &Device::flex());
        let found: Vec<f32> = gelu(x).into_data().try_into_vec().unwrap();
        assert_eq!((found[0], found[3], found[4]), (0.0, 30.0, -0.0));
        assert!((found[1] - 0.841_344_7).abs() < 3e-7 && (found[2] + 0.158_655_3).abs() < 3e-7, "{found:?}");
        assert!(found[5].is_nan());
    }
}
