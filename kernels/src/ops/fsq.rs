//! Finite scalar quantisation: a latent vector to the nearest point of a small grid, and back.
//!
//! Shapes: z [.., D] with D = `levels.len()` -> codes [.., D] -> index int [.., 1].
//! Range:  code = q / floor(L/2) with whole q; q in -4..=3 for L = 8, -2..=2 for L = 5. index < product of levels, and
//!         dimension 0 is its fastest digit; levels [8, 5, 5, 5] give 1000 codes.
//! Source: Mentzer et al. 2023, arXiv 2309.15505, with the constants of VideoWorld 2.
//! Differs: rounds half to even on every device, so that CPU and GPU give equal codes; z of any float type is bounded
//!         and rounded in f32.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::{Cost, Kernel, Tolerance};

/// Codes of `z`: each component bounded, rounded and scaled to [-1, 1]. Keeps the float type of `z`.
/// Gradient: straight through the rounding, but through tanh as usual.
///
/// # Panics
/// If the last dimension of `z` is not `levels.len()`, or a level is below 2: the caller checks its configuration.
pub fn fsq<const N: usize>(z: Tensor<N>, levels: &[u32]) -> Tensor<N> {
    assert_dims(&z.dims(), levels);
    let dtype = FloatDType::from(z.dtype());
    let codes = Dispatch::fsq(z.cast(FloatDType::F32).into_dispatch(), levels.to_vec());
    Tensor::<N>::from_dispatch(codes).cast(dtype)
}

/// The value that [`fsq`] rounds, in f32: tanh(z + shift) x half - offset. Differentiable.
pub fn fsq_bound<const N: usize>(z: Tensor<N>, levels: &[u32]) -> Tensor<N> {
    assert_dims(&z.dims(), levels);
    let steps = Step::all(levels);
    let device = z.device();
    let row = |value: fn(&Step) -> f32| {
        let values: Vec<f32> = steps.iter().map(value).collect();
        let mut shape = [1; N];
        shape[N - 1] = values.len();
        Tensor::<N>::from_data(TensorData::new(values, shape), (&device, DType::F32))
    };
    (z.cast(FloatDType::F32) + row(|s| s.shift)).tanh() * row(|s| s.half) - row(|s| s.offset)
}

/// Index of the code of each vector, int [.., 1].
pub fn fsq_indices<const N: usize>(z: Tensor<N>, levels: &[u32]) -> Tensor<N, Int> {
    fsq_codes_to_indices(fsq(z.cast(FloatDType::F32), levels), levels)
}

/// Codes, as [`fsq`] gives them, to indices, int [.., 1].
pub fn fsq_codes_to_indices<const N: usize>(codes: Tensor<N>, levels: &[u32]) -> Tensor<N, Int> {
    assert_dims(&codes.dims(), levels);
    let mut basis = 1;
    let mut index: Option<Tensor<N, Int>> = None;
    for (d, &level) in levels.iter().enumerate() {
        let width = (level / 2) as f32;
        let digit = codes.clone().narrow(N - 1, d, 1).cast(FloatDType::F32) * width + width;
        let term = digit.round().int() * basis;
        index = Some(match index {
            None => term,
            Some(sum) => sum + term,
        });
        basis *= i64::from(level);
    }
    index.expect("`assert_dims` refuses an empty list of levels")
}

/// Indices int [.., 1] to codes f32 [.., D].
pub fn fsq_dequantise<const N: usize>(indices: Tensor<N, Int>, levels: &[u32]) -> Tensor<N> {
    assert_eq!(indices.dims()[N - 1], 1, "indices have shape [.., 1]");
    let mut basis = 1;
    let mut digits = Vec::with_capacity(levels.len());
    for &level in levels {
        let width = (level / 2) as f32;
        let digit = (indices.clone() / basis) % i64::from(level);
        digits.push((digit.float().cast(FloatDType::F32) - width) / width);
        basis *= i64::from(level);
    }
    Tensor::cat(digits, N - 1)
}

fn assert_dims(dims: &[usize], levels: &[u32]) {
    assert_eq!(dims.last(), Some(&levels.len()), "the last dimension of {dims:?} has one component per level");
    assert!(levels.iter().all(|&level| level >= 2), "every level of {levels:?} is at least 2");
}

/// The constants of one component.
#[derive(Clone, Copy, Debug)]
struct Step {
    shift: f32,
    half: f32,
    offset: f32,
    /// floor(L/2): the distance of neighbouring codes is 1/width.
    width: f32,
}

impl Step {
    fn all(levels: &[u32]) -> Vec<Step> {
        levels.iter().map(|&level| Step::new(level)).collect()
    }

    fn new(level: u32) -> Step {
        let half = f64::from(level - 1) * (1.0 + 1e-3) / 2.0;
        let offset = if level.is_multiple_of(2) { 0.5 } else { 0.0 };
        let shift = (offset / half).atanh();
        Step { shift: shift as f32, half: half as f32, offset: offset as f32, width: (level / 2) as f32 }
    }

    fn code(&self, z: f32) -> f32 {
        ((z + self.shift).tanh() * self.half - self.offset).round_ties_even() / self.width
    }

    /// d code / d z, the rounding taken as the identity.
    fn slope(&self, z: f32) -> f32 {
        let t = (z + self.shift).tanh();
        (1.0 - t * t) * self.half / self.width
    }
}

/// The op on each backend: `z` is f32 and its last dimension holds the components.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait FsqOps: Backend {
    fn fsq(z: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self>;
    fn fsq_backward(z: FloatTensor<Self>, grad: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self>;
}

/// Rows that one thread takes at a time: enough work to be worth waking it.
const ROWS: usize = 4096;

impl FsqOps for Flex {
    fn fsq(z: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self> {
        let steps = Step::all(&levels);
        let z = z.to_contiguous();
        let values = z.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let mut codes = vec![0.0; values.len()];
        let rows = ROWS * steps.len();
        codes.par_chunks_mut(rows).zip(values.par_chunks(rows)).for_each(|(codes, values)| {
            for (codes, values) in codes.chunks_exact_mut(steps.len()).zip(values.chunks_exact(steps.len())) {
                for ((code, &value), step) in codes.iter_mut().zip(values).zip(&steps) {
                    *code = step.code(value);
                }
            }
        });
        FloatTensor::<Self>::from_data(TensorData::new(codes, z.shape()))
    }

    fn fsq_backward(z: FloatTensor<Self>, grad: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self> {
        let steps = Step::all(&levels);
        let (z, grad) = (z.to_contiguous(), grad.to_contiguous());
        let values = z.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let grads = grad.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let result: Vec<f32> = (values.iter().zip(grads).zip(steps.iter().cycle()))
            .map(|((&value, &grad), step)| grad * step.slope(value))
            .collect();
        FloatTensor::<Self>::from_data(TensorData::new(result, z.shape()))
    }
}

impl<B: FsqOps, C: CheckpointStrategy> FsqOps for Autodiff<B, C> {
    fn fsq(z: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct StraightThrough;
        impl<B: FsqOps> Backward<B, 1> for StraightThrough {
            type State = (FloatTensor<B>, Vec<u32>);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (z, levels) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                if let [Some(parent)] = ops.parents {
                    grads.register::<B>(parent.id, B::fsq_backward(z, grad, levels));
                }
            }
        }
        let input = z.primitive().clone();
        let codes = B::fsq(input.clone(), levels.clone());
        match StraightThrough.prepare::<C>([z.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((input, levels), codes),
            OpsKind::UnTracked(prep) => prep.finish(codes),
        }
    }

    fn fsq_backward(_: FloatTensor<Self>, _: FloatTensor<Self>, _: Vec<u32>) -> FloatTensor<Self> {
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

    use super::{FsqOps, Step};
    use crate::cube::dense;

    /// Four numbers per component, in the order of [`Step`]'s fields.
    fn upload(client: &Client, levels: &[u32]) -> BufferArg {
        let steps: Vec<f32> = Step::all(levels).iter().flat_map(|s| [s.shift, s.half, s.offset, s.width]).collect();
        let handle = client.create_from_slice(f32::as_bytes(&steps));
        // SAFETY: the handle was made from a slice of exactly `steps.len()` floats.
        unsafe { BufferArg::from_raw_parts(handle, steps.len()) }
    }

    /// tanh; the clamp keeps drivers away from exp overflow, and f32 tanh is 1 beyond it.
    #[cube]
    fn bounded(z: f32, shift: f32) -> f32 {
        f32::tanh(f32::clamp(z + shift, -15.0f32, 15.0f32))
    }

    /// Whole number nearest to `x`, the even one of two: `round` of the targets differs in that.
    #[cube]
    fn round_ties_even(x: f32) -> f32 {
        let low = f32::floor(x);
        let rest = x - low;
        let odd = low - 2.0f32 * f32::floor(low * 0.5f32);
        select(rest > 0.5f32, low + 1.0f32, select(rest < 0.5f32, low, low + odd))
    }

    /// One unit per component.
    #[cube(launch)]
    fn quantise(z: &[f32], steps: &[f32], codes: &mut [f32], #[comptime] dims: usize) {
        if ABSOLUTE_POS < z.len() {
            let s = (ABSOLUTE_POS % dims) * 4;
            let bound = bounded(z[ABSOLUTE_POS], steps[s]) * steps[s + 1] - steps[s + 2];
            codes[ABSOLUTE_POS] = round_ties_even(bound) / steps[s + 3];
        }
    }

    /// One unit per component.
    #[cube(launch)]
    fn quantise_backward(z: &[f32], grad: &[f32], steps: &[f32], result: &mut [f32], #[comptime] dims: usize) {
        if ABSOLUTE_POS < z.len() {
            let s = (ABSOLUTE_POS % dims) * 4;
            let t = bounded(z[ABSOLUTE_POS], steps[s]);
            result[ABSOLUTE_POS] = grad[ABSOLUTE_POS] * (1.0f32 - t * t) * steps[s + 1] / steps[s + 3];
        }
    }

    fn like(z: &CubeTensor) -> (CubeTensor, CubeCount, CubeDim) {
        let dim = CubeDim::new_1d(256);
        let count = calculate_cube_count_elemwise(&z.client, z.meta.num_elements(), dim);
        (empty_device_contiguous_dtype(z.client.clone(), z.device.clone(), z.shape(), z.dtype), count, dim)
    }

    impl FsqOps for CubeBackend {
        fn fsq(z: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self> {
            let z = dense(z);
            let (codes, count, dim) = like(&z);
            let client = z.client.clone();
            let steps = upload(&client, &levels);
            quantise::launch(
                &client,
                count,
                dim,
                z.into_buffer_arg(),
                steps,
                codes.clone().into_buffer_arg(),
                levels.len(),
            );
            codes
        }

        fn fsq_backward(z: FloatTensor<Self>, grad: FloatTensor<Self>, levels: Vec<u32>) -> FloatTensor<Self> {
            let (z, grad) = (dense(z), dense(grad));
            let (result, count, dim) = like(&z);
            let client = z.client.clone();
            let steps = upload(&client, &levels);
            quantise_backward::launch(
                &client,
                count,
                dim,
                z.into_buffer_arg(),
                grad.into_buffer_arg(),
                steps,
                result.clone().into_buffer_arg(),
                levels.len(),
            );
            result
        }
    }
}

/// Case: [rows, level of component 0, level of component 1, ..].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "fsq",
    cases: &[&[1, 2], &[3, 7], &[65, 8, 5, 5, 5], &[33, 3, 4, 5, 6, 7, 8], &[8191, 8, 8, 8, 6, 5]],
    sizes: &[&[736, 8, 5, 5, 5], &[1 << 20, 8, 5, 5, 5]],
    inputs: reference::inputs,
    reference: reference::codes,
    run: |case, inputs| {
        let levels = reference::levels(case);
        let z = inputs[0].float().reshape([case[0], levels.len()]);
        fsq(z, &levels).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 1e-7,
        devices: 1e-7,
        gradient: 1e-5,
        reason: "codes are exact but for one division; inputs keep 1e-3 from rounding ties, further than any tanh errs",
    },
    cost: |case| {
        let count = (case[0] * (case.len() - 1)) as u64;
        Cost { bytes: 8 * count, flops: 25 * count } // tanh counted as 20
    },
};

/// The same in f64 and plain loops, written from the formulas.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) fn levels(case: &[usize]) -> Vec<u32> {
        case[1..].iter().map(|&level| level as u32).collect()
    }

    fn bound(z: f64, level: u32) -> f64 {
        let half = f64::from(level - 1) * 1.001 / 2.0;
        let offset = if level.is_multiple_of(2) { 0.5 } else { 0.0 };
        (z + (offset / half).atanh()).tanh() * half - offset
    }

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let levels = levels(case);
        let mut draws = Draws::new(seed);
        let z: Vec<f32> = (0..case[0] * levels.len())
            .map(|i| {
                loop {
                    let z = (draws.unit() * 6.0 - 3.0) as f32;
                    let b = bound(f64::from(z), levels[i % levels.len()]);
                    if (b - b.floor() - 0.5).abs() > 1e-3 {
                        break z;
                    }
                }
            })
            .collect();
        vec![TensorData::new(z, [case[0] * levels.len()])]
    }

    fn components<'a>(levels: &'a [u32], inputs: &'a [TensorData]) -> impl Iterator<Item = (f64, u32)> + 'a {
        let z = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
        z.iter().zip(levels.iter().cycle()).map(|(&z, &level)| (f64::from(z), level))
    }

    pub(super) fn codes(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        let levels = levels(case);
        components(&levels, inputs).map(|(z, level)| bound(z, level).round_ties_even() / f64::from(level / 2)).collect()
    }

    /// Central differences of the bound: what the gradient is once the rounding counts as the identity.
    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let levels = levels(case);
        let h = 1e-5;
        components(&levels, inputs)
            .zip(weights)
            .map(|((z, level), &weight)| {
                let slope = (bound(z + h, level) - bound(z - h, level)) / (2.0 * h);
                f64::from(weight) * slope / f64::from(level / 2)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn row(z: &[f32]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(z.to_vec(), [1, z.len()]), &Device::flex())
    }

    fn check(z: &[f32], levels: &[u32], codes: &[f32], index: i64) {
        let found = fsq(row(z), levels).into_data();
        assert_eq!(found.as_slice::<f32>().unwrap(), codes, "codes of {z:?}");
        let indices = fsq_indices(row(z), levels);
        assert_eq!(indices.clone().into_data().iter::<i64>().collect::<Vec<_>>(), [index], "index of {z:?}");
        let back = fsq_dequantise(indices, levels).into_data();
        assert_eq!(back.as_slice::<f32>().unwrap(), codes, "codes of index {index}");
    }

    #[test]
    fn known_codes() {
        const L: &[u32] = &[8, 5, 5, 5];
        check(&[0.0, 0.0, 0.0, 0.0], L, &[0.0, 0.0, 0.0, 0.0], 500); // digits 4, 2, 2, 2
        check(&[-1e4, -1e4, -1e4, -1e4], L, &[-1.0, -1.0, -1.0, -1.0], 0);
        check(&[1e4, 1e4, 1e4, 1e4], L, &[0.75, 1.0, 1.0, 1.0], 999);
        check(&[-1e4, 0.3, -0.6, 1e4], L, &[-1.0, 0.5, -0.5, 1.0], 3 * 8 + 40 + 4 * 200);
        check(&[9.0], &[8], &[0.75], 7);
        check(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[2, 3, 4, 5, 6, 7], &[0.0; 6], 1 + 2 + 12 + 48 + 360 + 2160);
    }

    #[test]
    fn constants_of_the_released_levels() {
        let eight = Step::new(8);
        assert!((eight.half - 3.5035).abs() < 1e-6 && (eight.shift - 0.143_695_35).abs() < 1e-7);
        let five = Step::new(5);
        assert_eq!((five.half, five.offset, five.shift, five.width), (2.002, 0.0, 0.0, 2.0));
    }

    #[test]
    fn every_index_survives_the_way_to_codes_and_back() {
        for levels in [&[8u32, 5, 5, 5][..], &[7, 5, 8], &[2], &[11, 13, 9]] {
            let count: u32 = levels.iter().product();
            let indices: Vec<i64> = (0..i64::from(count)).collect();
            let tensor =
                Tensor::<2, Int>::from_data(TensorData::new(indices.clone(), [indices.len(), 1]), &Device::flex());
            let back = fsq_codes_to_indices(fsq_dequantise(tensor, levels), levels).into_data();
            assert_eq!(back.iter::<i64>().collect::<Vec<_>>(), indices, "levels {levels:?}");
        }
    }

    #[test]
    fn rounding_the_bound_gives_the_codes() {
        let levels = [8, 5, 6];
        let data = (KERNEL.inputs)(&[100, 8, 5, 6], 1).remove(0);
        let z = Tensor::<1>::from_data(data, &Device::flex()).reshape([100, 3]);
        let widths = Tensor::<2>::from_data([[4.0, 2.0, 3.0]], &Device::flex());
        let by_hand = fsq_bound(z.clone(), &levels).round() / widths;
        assert_eq!(by_hand.into_data(), fsq(z, &levels).into_data());
    }

    #[test]
    fn half_precision_in_gives_half_precision_codes() {
        let z = row(&[0.7, -0.4]).cast(FloatDType::BF16);
        let codes = fsq(z, &[8, 5]);
        assert_eq!(codes.dtype(), DType::BF16);
        assert_eq!(codes.cast(FloatDType::F32).into_data().as_slice::<f32>().unwrap(), [0.5, -0.5]);
    }

    #[test]
    fn a_strided_input_is_read_in_its_own_order() {
        let z = Tensor::<2>::from_data([[2.0, -2.0, 0.0], [0.5, -0.5, 1.0]], &Device::flex());
        let swapped = fsq(z.clone().swap_dims(0, 1), &[8, 5]).into_data();
        let copied = Tensor::<2>::from_data([[2.0, 0.5], [-2.0, -0.5], [0.0, 1.0]], &Device::flex());
        assert_eq!(swapped, fsq(copied, &[8, 5]).into_data());
    }
}
