//! SwiGLU: `silu(gate) up`, element by element, forward and backward in one pass each.
//!
//! Shapes: any; gate and up have the same one.
//! Source: Shazeer 2020, arXiv 2002.05202.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::{sigmoid, wide};
use crate::{Cost, Kernel, Tolerance};

/// `gate / (1 + exp(-gate)) up`. Keeps the float type of `gate`.
///
/// # Panics
/// The shapes differ.
pub fn swiglu<const N: usize>(gate: Tensor<N>, up: Tensor<N>) -> Tensor<N> {
    assert_eq!(gate.dims(), up.dims(), "a gate for each value");
    let dtype = FloatDType::from(gate.dtype());
    let [gate, up] = [gate, up].map(|x| x.cast(FloatDType::F32).into_dispatch());
    Tensor::<N>::from_dispatch(Dispatch::swiglu(gate, up)).cast(dtype)
}

/// The op on each backend: f32, equal shapes.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait SwigluOps: Backend {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Elements that one thread takes at a time: enough work to be worth waking it.
const PART: usize = 1 << 14;

impl SwigluOps for Flex {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let [gates, ups] = [&gate, &up].map(slice);
        let mut result = vec![0.0; gates.len()];
        let inputs = gates.par_chunks(PART).zip(ups.par_chunks(PART));
        result.par_chunks_mut(PART).zip(inputs).for_each(|(result, (gates, ups))| apply(gates, ups, result));
        FloatTensor::<Self>::from_data(TensorData::new(result, gate.shape()))
    }

    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [gate, up, grad] = [gate, up, grad].map(|x| x.to_contiguous());
        let [gates, ups, grads] = [&gate, &up, &grad].map(slice);
        let (mut of_gate, mut of_up) = (vec![0.0; gates.len()], vec![0.0; gates.len()]);
        let results = of_gate.par_chunks_mut(PART).zip(of_up.par_chunks_mut(PART));
        let inputs = gates.par_chunks(PART).zip(ups.par_chunks(PART)).zip(grads.par_chunks(PART));
        results.zip(inputs).for_each(|((of_gate, of_up), ((gates, ups), grads))| {
            slopes(gates, ups, grads, of_gate, of_up);
        });
        let tensor = |values| FloatTensor::<Self>::from_data(TensorData::new(values, gate.shape()));
        (tensor(of_gate), tensor(of_up))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

wide! {
    fn apply(gates: &[f32], ups: &[f32], result: &mut [f32]) {
        for ((result, &gate), &up) in result.iter_mut().zip(gates).zip(ups) {
            *result = gate * sigmoid(gate) * up;
        }
    }
}

wide! {
    fn slopes(gates: &[f32], ups: &[f32], grads: &[f32], of_gate: &mut [f32], of_up: &mut [f32]) {
        let inputs = gates.iter().zip(ups).zip(grads);
        for ((of_gate, of_up), ((&gate, &up), &grad)) in of_gate.iter_mut().zip(of_up).zip(inputs) {
            let open = sigmoid(gate);
            *of_gate = grad * up * open * (1.0 + gate * (1.0 - open));
            *of_up = grad * gate * open;
        }
    }
}

impl<B: SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Slopes;
        impl<B: SwigluOps> Backward<B, 2> for Slopes {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (gate, up) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let (gate, up) = B::swiglu_backward(gate, up, grad);
                for (parent, grad) in ops.parents.iter().zip([gate, up]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [gates, ups] = [&gate, &up].map(|x| x.primitive().clone());
        let result = B::swiglu(gates.clone(), ups.clone());
        match Slopes.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gates, ups), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        }
    }

    fn swiglu_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
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

    use super::SwigluOps;
    use crate::cube::dense;

    /// The clamp keeps drivers away from exp overflow.
    #[cube]
    fn sigmoid(x: f32) -> f32 {
        1.0f32 / (1.0f32 + f32::exp(f32::min(-x, 88.0f32)))
    }

    /// One unit per element.
    #[cube(launch)]
    fn apply(gate: &[f32], up: &[f32], result: &mut [f32]) {
        if ABSOLUTE_POS < gate.len() {
            let g = gate[ABSOLUTE_POS];
            result[ABSOLUTE_POS] = g * sigmoid(g) * up[ABSOLUTE_POS];
        }
    }

    /// One unit per element.
    #[cube(launch)]
    fn slopes(gate: &[f32], up: &[f32], grad: &[f32], of_gate: &mut [f32], of_up: &mut [f32]) {
        if ABSOLUTE_POS < gate.len() {
            let g = gate[ABSOLUTE_POS];
            let open = sigmoid(g);
            of_gate[ABSOLUTE_POS] = grad[ABSOLUTE_POS] * up[ABSOLUTE_POS] * open * (1.0f32 + g * (1.0f32 - open));
            of_up[ABSOLUTE_POS] = grad[ABSOLUTE_POS] * g * open;
        }
    }

    fn like(x: &CubeTensor) -> (CubeTensor, CubeCount, CubeDim) {
        let dim = CubeDim::new_1d(256);
        let count = calculate_cube_count_elemwise(&x.client, x.meta.num_elements(), dim);
        (empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype), count, dim)
    }

    impl SwigluOps for CubeBackend {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            let [gate, up] = [gate, up].map(dense);
            let (result, count, dim) = like(&gate);
            let client = gate.client.clone();
            let out = result.clone().into_buffer_arg();
            apply::launch(&client, count, dim, gate.into_buffer_arg(), up.into_buffer_arg(), out);
            result
        }

        fn swiglu_backward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let [gate, up, grad] = [gate, up, grad].map(dense);
            let (of_gate, count, dim) = like(&gate);
            let (of_up, ..) = like(&gate);
            let client = gate.client.clone();
            slopes::launch(
                &client,
                count,
                dim,
                gate.into_buffer_arg(),
                up.into_buffer_arg(),
                grad.into_buffer_arg(),
                of_gate.clone().into_buffer_arg(),
                of_up.clone().into_buffer_arg(),
            );
            (of_gate, of_up)
        }
    }
}

/// Case: [elements]. The input is gate and up, one behind the other.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "swiglu",
    cases: &[&[1], &[33], &[40_001]],
    sizes: &[&[512 * 2048]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let all = inputs[0].float();
        swiglu(all.clone().slice(0..case[0]), all.slice(case[0]..2 * case[0]))
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 4e-6,
        devices: 4e-6,
        gradient: 4e-6,
        reason: "a few f32 operations on values of at most 20, and an exponential right to 2 units in the last place",
    },
    cost: |case| Cost { bytes: 12 * case[0] as u64, flops: 22 * case[0] as u64 }, // an exponential counted as 18
};

/// The same in f64.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let mut draws = Draws::new(seed);
        let gates = (0..case[0]).map(|i| (i, 20.0)).chain((0..case[0]).map(|i| (i, 2.0)));
        let values: Vec<f32> = gates.map(|(_, span)| (draws.unit() * span - span / 2.0) as f32).collect();
        vec![TensorData::new(values, [2 * case[0]])]
    }

    fn pairs(case: &[usize], inputs: &[TensorData]) -> Vec<(f64, f64)> {
        let values = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
        let (gates, ups) = values.split_at(case[0]);
        gates.iter().zip(ups).map(|(&gate, &up)| (f64::from(gate), f64::from(up))).collect()
    }

    fn silu(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        pairs(case, inputs).into_iter().map(|(gate, up)| silu(gate) * up).collect()
    }

    /// Central differences.
    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let pairs = pairs(case, inputs);
        let h = 1e-5;
        let of_gates = pairs.iter().map(|(gate, up)| (silu(gate + h) - silu(gate - h)) / (2.0 * h) * up);
        let of_ups = pairs.iter().map(|(gate, _)| silu(*gate));
        of_gates.chain(of_ups).zip(weights.iter().cycle()).map(|(slope, &weight)| slope * f64::from(weight)).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn known_values() {
        let device = Device::flex();
        let gate = Tensor::<1>::from_floats([0.0, 1.0, -200.0, 200.0, f32::NAN], &device);
        let found: Vec<f32> = swiglu(gate, Tensor::ones([5], &device) * 2.0).into_data().try_into_vec().unwrap();
        assert_eq!((found[0], found[2], found[3]), (0.0, 0.0, 400.0));
        assert!((found[1] - 1.462_117_2).abs() < 1e-6 && found[4].is_nan(), "{found:?}");
    }
}
