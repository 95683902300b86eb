//! Rotary positions: turns pairs (x[i], x[i + D/2]) of each row by the angles of its place.
//!
//! Shapes: x [B, heads, N, D], cosines and sines [N, D], whose halves may differ -> [B, heads, N, D]. Places of one or more
//!         axes: the table says which angle is whose.
//! Source: Su et al. 2021, arXiv 2104.09864, in the form by halves.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::heads::Heads;
use crate::simd::wide;
use crate::{Cost, Kernel, Tolerance};

/// `x cos + turned(x) sin`, where `turned` is (-x[i + D/2], x[i]). Keeps the float type of `x`; no gradient passes to the
/// tables.
///
/// # Panics
/// The tables do not have a row for each place and a column for each of an even number of values.
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, _, n, d] = x.dims();
    assert!(d % 2 == 0, "{d} values are not pairs");
    assert_eq!([cos.dims(), sin.dims()], [[n, d]; 2], "tables of {n} places and {d} values");
    let dtype = FloatDType::from(x.dtype());
    let [cos, sin] = [cos, sin].map(|table| table.detach().cast(FloatDType::F32).into_dispatch());
    let y = Dispatch::rotary(x.cast(FloatDType::F32).into_dispatch(), cos, sin, Way::There);
    Tensor::<4>::from_dispatch(y).cast(dtype)
}

/// Whether rows are turned or, for the gradient, turned back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    There,
    Back,
}

/// The op on each backend: f32, shapes as in the module's head.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait RotaryOps: Backend {
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, way: Way) -> FloatTensor<Self>;
}

/// Rows that one thread takes at a time.
const ROWS: usize = 128;

impl RotaryOps for Flex {
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, way: Way) -> FloatTensor<Self> {
        let x = Heads::with_rows(x);
        let (cos, sin) = (cos.to_contiguous(), sin.to_contiguous());
        let [cos, sin] = [&cos, &sin].map(|x| x.as_slice::<f32>().expect("a contiguous f32 tensor is a slice"));
        let [_, heads, n, d] = x.dims;
        let mut y = vec![0.0; x.dims.iter().product()];
        if !y.is_empty() {
            y.par_chunks_mut(ROWS * d).enumerate().for_each(|(part, y)| {
                for (row, y) in (part * ROWS..).zip(y.chunks_exact_mut(d)) {
                    let (head, place) = (row / n, row % n);
                    let x = x.head(head / heads, head % heads).row(place).expect("`with_rows` makes rows");
                    let [cos, sin] = [cos, sin].map(|table| &table[place * d..][..d]);
                    turn(x, cos, sin, way, y);
                }
            });
        }
        FloatTensor::<Self>::from_data(TensorData::new(y, x.dims))
    }
}

wide! {
    fn turn(x: &[f32], cos: &[f32], sin: &[f32], way: Way, y: &mut [f32]) {
        let half = x.len() / 2;
        let ((near, far), (y_near, y_far)) = (x.split_at(half), y.split_at_mut(half));
        let ((cos_near, cos_far), (sin_near, sin_far)) = (cos.split_at(half), sin.split_at(half));
        let near_terms = y_near.iter_mut().zip(near).zip(far).zip(cos_near).zip(sin_near).zip(sin_far);
        match way {
            Way::There => {
                for (((((y, near), far), cos), sin), _) in near_terms {
                    *y = near * cos - far * sin;
                }
                for ((((y, near), far), cos), sin) in y_far.iter_mut().zip(near).zip(far).zip(cos_far).zip(sin_far) {
                    *y = far * cos + near * sin;
                }
            }
            // The matrix of each pair, transposed.
            Way::Back => {
                for (((((y, near), far), cos), _), sin) in near_terms {
                    *y = near * cos + far * sin;
                }
                for ((((y, near), far), cos), sin) in y_far.iter_mut().zip(near).zip(far).zip(cos_far).zip(sin_near) {
                    *y = far * cos - near * sin;
                }
            }
        }
    }
}

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, way: Way) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct TurnBack;
        impl<B: RotaryOps> Backward<B, 1> for TurnBack {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (cos, sin) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                if let [Some(parent)] = ops.parents {
                    grads.register::<B>(parent.id, B::rotary(grad, cos, sin, Way::Back));
                }
            }
        }
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let y = B::rotary(x.primitive().clone(), cos.clone(), sin.clone(), way);
        match TurnBack.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[cfg(feature = "cube")]
mod cube {
    use burn::backend::TensorMetadata;
    use burn::backend::tensor::FloatTensor;
    use burn_cubecl::CubeBackend;
    use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
    use cubecl::calculate_cube_count_elemwise;
    use cubecl::prelude::*;

    use super::{RotaryOps, Way};
    use crate::cube::dense;

    /// One unit per value.
    #[cube(launch)]
    fn turn(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32], places: u32, width: u32, #[comptime] way: Way) {
        if ABSOLUTE_POS < x.len() {
            let width = width as usize;
            let half = width / 2;
            let column = ABSOLUTE_POS % width;
            let table = ABSOLUTE_POS / width % places as usize * width;
            let near = column < half;
            let partner = select(near, column + half, column - half);
            let other = x[ABSOLUTE_POS - column + partner];
            let sign = select(near, -1.0f32, 1.0f32);
            let mut term = other * sin[table + column] * sign;
            if comptime!(way == Way::Back) {
                term = -(other * sin[table + partner] * sign);
            }
            y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * cos[table + column] + term;
        }
    }

    impl RotaryOps for CubeBackend {
        fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, way: Way) -> FloatTensor<Self> {
            let [x, cos, sin] = [x, cos, sin].map(dense);
            let [_, _, places, width] = x.shape().dims();
            let client = x.client.clone();
            let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), x.shape(), x.dtype);
            let dim = CubeDim::new_1d(256);
            turn::launch(
                &client,
                calculate_cube_count_elemwise(&client, x.meta.num_elements(), dim),
                dim,
                x.into_buffer_arg(),
                cos.into_buffer_arg(),
                sin.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                places as u32,
                width as u32,
                way,
            );
            y
        }
    }
}

/// Case: [batch, heads, places, width]. Inputs: x, then the angles' cosines and sines.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "rotary",
    cases: &[&[1, 1, 1, 2], &[2, 3, 5, 6], &[1, 2, 300, 20], &[2, 4, 33, 64]],
    sizes: &[&[1, 12, 512, 64], &[1, 16, 1560, 128]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let [b, heads, n, d] = [case[0], case[1], case[2], case[3]];
        let table = |index: usize| inputs[index].float().reshape([n, d]);
        rotary(inputs[0].float().reshape([b, heads, n, d]), table(1), table(2)).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 1e-6,
        devices: 1e-6,
        gradient: 1e-6,
        reason: "two products of values of at most 2 in f32; devices may fuse one of them with the sum",
    },
    cost: |case| {
        let count = case.iter().product::<usize>() as u64;
        Cost { bytes: 8 * count, flops: 3 * count }
    },
};

/// The same in f64 and plain loops.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    /// Sines and cosines of a pair's halves differ here, so that no kernel may mix them up.
    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let mut draws = Draws::new(seed);
        let mut tensor = |count: usize, span: f64| {
            let values: Vec<f32> = (0..count).map(|_| ((draws.unit() * 2.0 - 1.0) * span) as f32).collect();
            TensorData::new(values, [count])
        };
        let table = case[2] * case[3];
        vec![tensor(case.iter().product(), 2.0), tensor(table, 1.0), tensor(table, 1.0)]
    }

    /// For each value of the result: which two of x it comes from, and by which factors.
    fn terms(case: &[usize], inputs: &[TensorData]) -> impl Iterator<Item = [(usize, f64); 2]> {
        let (places, width) = (case[2], case[3]);
        let table = |index: usize| inputs[index].as_slice::<f32>().expect("`inputs` makes f32").to_vec();
        let (cos, sin) = (table(1), table(2));
        (0..case.iter().product()).map(move |at: usize| {
            let (row, column) = (at / width, at % width);
            let factor = |table: &[f32]| f64::from(table[row % places * width + column]);
            let (partner, sign) = if column < width / 2 { (at + width / 2, -1.0) } else { (at - width / 2, 1.0) };
            [(at, factor(&cos)), (partner, sign * factor(&sin))]
        })
    }

    pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        let x = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
        terms(case, inputs).map(|terms| terms.iter().map(|&(at, factor)| f64::from(x[at]) * factor).sum()).collect()
    }

    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let mut result = vec![0.0; weights.len()];
        for (terms, &weight) in terms(case, inputs).zip(weights) {
            terms.iter().for_each(|&(at, factor)| result[at] += factor * f64::from(weight));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let device = Device::flex();
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
        let y = rotary(x, Tensor::zeros([1, 4], &device), Tensor::ones([1, 4], &device));
        assert_eq!(y.into_data().try_into_vec::<f32>().unwrap(), [-3.0, -4.0, 1.0, 2.0]);
    }

    #[test]
    fn rows_are_read_where_they_lie() {
        let device = Device::flex();
        device.seed(6);
        let draw = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
        let table = || draw([1, 1, 5, 8]).reshape([5, 8]);
        let (x, cos, sin) = (draw([2, 5, 3, 8]), table(), table());
        let view = rotary(x.clone().swap_dims(1, 2), cos.clone(), sin.clone());
        let copy = Tensor::<4>::from_data(x.swap_dims(1, 2).into_data(), &device);
        assert_eq!(view.into_data(), rotary(copy, cos, sin).into_data(), "seed 6");
    }
}
