//! A gated residual: `x + y gate`, with a gate per frame, in one pass; the end of each modulated part of a diffusion
//! transformer's block.
//!
//! Shapes: x and y [G, R, D], gate [G, D] -> [G, R, D].
//! Source: Peebles and Xie 2022, arXiv 2212.09748.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::wide;
use crate::{Cost, Kernel, Tolerance};

/// `x + y gate`: x and y [B, T, N, D], gate [B, T, 1, D]. Keeps the float type of `x`.
///
/// # Panics
/// The shapes do not fit each other.
pub fn gated(x: Tensor<4>, y: Tensor<4>, gate: Tensor<4>) -> Tensor<4> {
    let [b, t, n, d] = x.dims();
    assert_eq!((y.dims(), gate.dims()), ([b, t, n, d], [b, t, 1, d]), "a value for each, and a gate for each frame");
    let dtype = FloatDType::from(x.dtype());
    let rows = |x: Tensor<4>| x.reshape([b * t, n, d]).cast(FloatDType::F32).into_dispatch();
    let gate = gate.reshape([b * t, d]).cast(FloatDType::F32).into_dispatch();
    Tensor::<3>::from_dispatch(Dispatch::gated(rows(x), rows(y), gate)).cast(dtype).reshape([b, t, n, d])
}

/// The op on each backend: f32, shapes as in the module's head. `gated_backward` yields the gradients of y and gate; that of
/// x is the result's.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait GateOps: Backend {
    fn gated(x: FloatTensor<Self>, y: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gated_backward(
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl GateOps for Flex {
    fn gated(x: FloatTensor<Self>, y: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let [x, y, gate] = [x, y, gate].map(|x| x.to_contiguous());
        let [_, rows, width] = x.shape().dims();
        let [values, additions, gates] = [&x, &y, &gate].map(slice);
        let mut result = values.to_vec();
        if !result.is_empty() {
            let parts = result.par_chunks_mut(width).zip(additions.par_chunks(width)).enumerate();
            parts.with_min_len(16).for_each(|(row, (result, y))| add(y, &gates[row / rows * width..][..width], result));
        }
        FloatTensor::<Self>::from_data(TensorData::new(result, x.shape()))
    }

    /// Gates are shared out over threads, and the rows of each are summed in order.
    fn gated_backward(
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [y, gate, grad] = [y, gate, grad].map(|x| x.to_contiguous());
        let [groups, rows, width] = y.shape().dims();
        let [values, gates, grads] = [&y, &gate, &grad].map(slice);
        let (mut of_y, mut of_gate) = (vec![0.0; groups * rows * width], vec![0.0; groups * width]);
        if !of_y.is_empty() {
            let results = of_y.par_chunks_mut(rows * width).zip(of_gate.par_chunks_mut(width)).enumerate();
            results.for_each(|(group, (of_y, of_gate))| {
                let gate = &gates[group * width..][..width];
                for (row, of_y) in (group * rows..).zip(of_y.chunks_exact_mut(width)) {
                    let [y, grad] = [values, grads].map(|values| &values[row * width..][..width]);
                    slopes(y, gate, grad, of_y, of_gate);
                }
            });
        }
        let of_y = FloatTensor::<Self>::from_data(TensorData::new(of_y, [groups, rows, width]));
        (of_y, FloatTensor::<Self>::from_data(TensorData::new(of_gate, [groups, width])))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

wide! {
    fn add(y: &[f32], gate: &[f32], result: &mut [f32]) {
        for ((result, &y), &gate) in result.iter_mut().zip(y).zip(gate) {
            *result += y * gate;
        }
    }
}

wide! {
    fn slopes(y: &[f32], gate: &[f32], grad: &[f32], of_y: &mut [f32], of_gate: &mut [f32]) {
        for ((((of_y, of_gate), &y), &gate), &grad) in of_y.iter_mut().zip(of_gate).zip(y).zip(gate).zip(grad) {
            *of_y = grad * gate;
            *of_gate += grad * y;
        }
    }
}

impl<B: GateOps, C: CheckpointStrategy> GateOps for Autodiff<B, C> {
    fn gated(x: FloatTensor<Self>, y: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Slopes;
        impl<B: GateOps> Backward<B, 3> for Slopes {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (y, gate) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let [of_x, of_y, of_gate] = ops.parents;
                if of_y.is_some() || of_gate.is_some() {
                    let (y, gate) = B::gated_backward(y, gate, grad.clone());
                    for (parent, grad) in [(of_y, y), (of_gate, gate)] {
                        if let Some(parent) = parent {
                            grads.register::<B>(parent.id, grad);
                        }
                    }
                }
                if let Some(parent) = of_x {
                    grads.register::<B>(parent.id, grad);
                }
            }
        }
        let (additions, gates) = (y.primitive().clone(), gate.primitive().clone());
        let result = B::gated(x.primitive().clone(), additions.clone(), gates.clone());
        match Slopes.prepare::<C>([x.node(), y.node(), gate.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((additions, gates), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        }
    }

    fn gated_backward(
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

    use super::GateOps;
    use crate::cube::dense;

    /// One unit per value; `frame` values share the gates of a frame.
    #[cube(launch)]
    fn add(x: &[f32], y: &[f32], gate: &[f32], result: &mut [f32], frame: u32, width: u32) {
        if ABSOLUTE_POS < x.len() {
            let width = width as usize;
            let at = ABSOLUTE_POS / frame as usize * width + ABSOLUTE_POS % width;
            result[ABSOLUTE_POS] = x[ABSOLUTE_POS] + y[ABSOLUTE_POS] * gate[at];
        }
    }

    /// One unit per gate: goes down the rows of its frame.
    #[cube(launch)]
    fn slopes(y: &[f32], gate: &[f32], grad: &[f32], of_y: &mut [f32], of_gate: &mut [f32], rows: u32, width: u32) {
        if ABSOLUTE_POS < gate.len() {
            let width = width as usize;
            let start = ABSOLUTE_POS / width * rows as usize * width + ABSOLUTE_POS % width;
            let mut sum = 0.0f32;
            for row in 0..rows as usize {
                let at = start + row * width;
                of_y[at] = grad[at] * gate[ABSOLUTE_POS];
                sum += grad[at] * y[at];
            }
            of_gate[ABSOLUTE_POS] = sum;
        }
    }

    fn like(x: &CubeTensor) -> CubeTensor {
        empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
    }

    impl GateOps for CubeBackend {
        fn gated(x: FloatTensor<Self>, y: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
            let [x, y, gate] = [x, y, gate].map(dense);
            let [_, rows, width] = x.shape().dims();
            let client = x.client.clone();
            let result = like(&x);
            let dim = CubeDim::new_1d(256);
            add::launch(
                &client,
                calculate_cube_count_elemwise(&client, x.meta.num_elements(), dim),
                dim,
                x.into_buffer_arg(),
                y.into_buffer_arg(),
                gate.into_buffer_arg(),
                result.clone().into_buffer_arg(),
                (rows * width) as u32,
                width as u32,
            );
            result
        }

        fn gated_backward(
            y: FloatTensor<Self>,
            gate: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let [y, gate, grad] = [y, gate, grad].map(dense);
            let [_, rows, width] = y.shape().dims();
            let client = y.client.clone();
            let (of_y, of_gate) = (like(&y), like(&gate));
            let dim = CubeDim::new_1d(256);
            slopes::launch(
                &client,
                calculate_cube_count_elemwise(&client, gate.meta.num_elements(), dim),
                dim,
                y.into_buffer_arg(),
                gate.into_buffer_arg(),
                grad.into_buffer_arg(),
                of_y.clone().into_buffer_arg(),
                of_gate.clone().into_buffer_arg(),
                rows as u32,
                width as u32,
            );
            (of_y, of_gate)
        }
    }
}

/// Case: [frames, rows of a frame, width]. The input is x, y and gate, one behind the other.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "gate",
    cases: &[&[1, 1, 1], &[3, 5, 7], &[2, 40, 33]],
    sizes: &[&[6, 390, 2048]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let [frames, rows, width] = [case[0], case[1], case[2]];
        let (all, count) = (inputs[0].float(), frames * rows * width);
        let part = |start: usize, rows: usize| {
            let part = all.clone().slice(start..start + frames * rows * width);
            part.reshape([1, frames, rows, width])
        };
        gated(part(0, rows), part(count, rows), part(2 * count, 1)).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 1e-6,
        devices: 1e-6,
        gradient: 1e-5,
        reason: "one product and one sum in f32; gates' gradients sum up to 40 terms",
    },
    cost: |case| {
        let count = case.iter().product::<usize>() as u64;
        Cost { bytes: 12 * count, flops: 2 * count }
    },
};

/// The same in f64 and plain loops.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let count = case[0] * (2 * case[1] + 1) * case[2];
        let mut draws = Draws::new(seed);
        let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 2.0) as f32).collect();
        vec![TensorData::new(values, [count])]
    }

    fn values(inputs: &[TensorData]) -> Vec<f64> {
        inputs[0].as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&value| f64::from(value)).collect()
    }

    /// Where the gate of a value of x lies.
    fn gate(case: &[usize], at: usize) -> usize {
        let frame = case[1] * case[2];
        2 * case[0] * frame + at / frame * case[2] + at % case[2]
    }

    pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        let (x, count) = (values(inputs), case.iter().product::<usize>());
        (0..count).map(|at| x[at] + x[count + at] * x[gate(case, at)]).collect()
    }

    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let (x, count) = (values(inputs), case.iter().product::<usize>());
        let mut result = vec![0.0; x.len()];
        for (at, &weight) in weights.iter().enumerate() {
            let weight = f64::from(weight);
            result[at] = weight;
            result[count + at] = weight * x[gate(case, at)];
            result[gate(case, at)] += weight * x[count + at];
        }
        result
    }
}
