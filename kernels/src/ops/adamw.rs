//! One AdamW step of one parameter in a single pass over its memory, with the factor of a global-norm clip taken along; and
//! the squares that this norm is made of.
//!
//! Shapes: any; parameter, gradient and both moments have the same one. f32.
//! Source: Loshchilov and Hutter 2019, arXiv 1711.05101; the order of operations is that of PyTorch's CPU path, each
//!         rounded to f32, so that five steps give PyTorch's bits.
//! Differs: tensors that nobody else holds are updated in place.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::wide;
use crate::{Cost, Kernel, Tolerance};

/// The numbers of one step of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// By which gradients are multiplied first; 1 where nothing is clipped.
    pub clip: f64,
    pub rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// How often the moments will have been updated, this step included.
    pub updates: u64,
}

/// A parameter after the step, and its moments.
#[derive(Clone, Debug)]
pub struct Stepped {
    pub parameter: Tensor<1>,
    pub first: Tensor<1>,
    pub second: Tensor<1>,
}

/// `parameter` and the running means of its gradient and of the gradient's square, one step on.
///
/// # Panics
/// The tensors differ in length, or one is tracked by autodiff.
pub fn adamw(before: Stepped, gradient: Tensor<1>, step: &AdamWStep) -> Stepped {
    let Stepped { parameter, first, second } = before;
    let count = parameter.dims();
    for other in [gradient.dims(), first.dims(), second.dims()] {
        assert_eq!(other, count, "a parameter, its gradient and its moments have one length");
    }
    let tensors = [parameter, gradient, first, second].map(Tensor::into_dispatch);
    let [parameter, gradient, first, second] = tensors;
    let (parameter, first, second) = Dispatch::adamw(parameter, gradient, first, second, Factors::new(step));
    let [parameter, first, second] = [parameter, first, second].map(Tensor::from_dispatch);
    Stepped { parameter, first, second }
}

/// The sum of the squares of each tensor, summed in f64; NaN or infinite where a tensor holds such a value.
pub fn squares(tensors: Vec<Tensor<1>>) -> Vec<f64> {
    // All kernels are started before the first result is waited for.
    let sums: Vec<Tensor<1>> =
        tensors.into_iter().map(|tensor| Tensor::from_dispatch(Dispatch::squares(tensor.into_dispatch()))).collect();
    sums.into_iter().map(|sum| sum.into_data().iter::<f64>().sum()).collect()
}

/// [`AdamWStep`] as each element needs it, in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Factors {
    clip: f32,
    /// 1 - beta1
    toward: f32,
    beta2: f32,
    /// 1 - beta2
    fresh: f32,
    /// The root of what the second moment's bias is divided by.
    root: f32,
    eps: f32,
    /// The rate over the first moment's bias.
    step: f32,
    decay: f32,
}

impl Factors {
    fn new(step: &AdamWStep) -> Factors {
        let AdamWStep { clip, rate, beta1, beta2, eps, weight_decay, updates } = *step;
        let updates = updates as f64;
        Factors {
            clip: clip as f32,
            toward: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            fresh: (1.0 - beta2) as f32,
            root: (1.0 - beta2.powf(updates)).sqrt() as f32,
            eps: eps as f32,
            step: (rate / (1.0 - beta1.powf(updates))) as f32,
            decay: (1.0 - rate * weight_decay) as f32,
        }
    }
}

/// The op on each backend: flat f32 tensors.
///
/// `squares` yields partial sums in f32 whose sum is the tensor's; each has few enough terms to be as good as f64.
#[backend_extension(Cube: cfg(feature = "cube"), Flex)]
trait AdamWOps: Backend {
    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        factors: Factors,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    fn squares(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Elements that one thread takes at a time.
const PART: usize = 1 << 14;

impl AdamWOps for Flex {
    fn adamw(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        factors: Factors,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let own = |tensor: FloatTensor<Self>| tensor.to_contiguous();
        let (mut parameter, mut first, mut second) = (own(parameter), own(first), own(second));
        let gradient = own(gradient);
        let gradients = gradient.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        // `storage_mut` copies what somebody else holds, too.
        let parts = parameter
            .storage_mut::<f32>()
            .par_chunks_mut(PART)
            .zip(first.storage_mut::<f32>().par_chunks_mut(PART))
            .zip(second.storage_mut::<f32>().par_chunks_mut(PART))
            .zip(gradients.par_chunks(PART));
        if gradients.len() <= PART { parts.with_min_len(usize::MAX) } else { parts.with_min_len(1) }
            .for_each(|(((parameter, first), second), gradient)| advance(parameter, gradient, first, second, factors));
        (parameter, first, second)
    }

    fn squares(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        let tensor = tensor.to_contiguous();
        let values = tensor.as_slice::<f32>().expect("a contiguous f32 tensor is a slice");
        let sums: Vec<f32> = values.par_chunks(PART).map(sum_squares).collect();
        let count = sums.len();
        FloatTensor::<Self>::from_data(TensorData::new(sums, [count]))
    }
}

wide! {
    fn advance(parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], f: Factors) {
        for (((p, &g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = g * f.clip;
            *m += (g - *m) * f.toward;
            *v = *v * f.beta2 + g * g * f.fresh;
            let change = *m / (v.sqrt() / f.root + f.eps) * f.step;
            *p = *p * f.decay - change;
        }
    }
}

wide! {
    /// In 8 lanes of f64: the result, as f32, does not depend on how wide the machine is.
    fn sum_squares(values: &[f32]) -> f32 {
        let mut lanes = [0f64; 8];
        let (eights, tail) = values.as_chunks::<8>();
        for eight in eights {
            for (lane, &value) in lanes.iter_mut().zip(eight) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        let rest = tail.iter().map(|&value| f64::from(value) * f64::from(value));
        (lanes.iter().sum::<f64>() + rest.sum::<f64>()) as f32
    }
}

#[cfg(feature = "cube")]
mod cube {
    use burn::backend::tensor::FloatTensor;
    use burn::tensor::{DType, Shape};
    use burn_cubecl::CubeBackend;
    use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
    use burn_cubecl::tensor::CubeTensor;
    use cubecl::calculate_cube_count_elemwise;
    use cubecl::prelude::*;

    use super::{AdamWOps, Factors};
    use crate::cube::dense;

    /// Units of a cube, and elements that each of them squares.
    const UNITS: usize = 256;
    const TERMS: usize = 64;

    #[derive(CubeType, CubeLaunch, Clone, Copy)]
    struct Scalars {
        clip: f32,
        toward: f32,
        beta2: f32,
        fresh: f32,
        root: f32,
        eps: f32,
        step: f32,
        decay: f32,
    }

    /// One unit per element.
    #[cube(launch)]
    fn advance(parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], f: Scalars) {
        if ABSOLUTE_POS < gradient.len() {
            let g = gradient[ABSOLUTE_POS] * f.clip;
            let m = first[ABSOLUTE_POS] + (g - first[ABSOLUTE_POS]) * f.toward;
            let v = second[ABSOLUTE_POS] * f.beta2 + g * g * f.fresh;
            first[ABSOLUTE_POS] = m;
            second[ABSOLUTE_POS] = v;
            let change = m / (f32::sqrt(v) / f.root + f.eps) * f.step;
            parameter[ABSOLUTE_POS] = parameter[ABSOLUTE_POS] * f.decay - change;
        }
    }

    /// One sum per cube: each unit adds its terms, the first one adds those of all units.
    #[cube(launch)]
    fn sum_squares(values: &[f32], sums: &mut [f32]) {
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let start = CUBE_POS as usize * comptime!(UNITS * TERMS) + UNIT_POS as usize;
        let mut sum = 0.0f32;
        for term in 0..TERMS {
            let at = start + term * UNITS;
            if at < values.len() {
                sum += values[at] * values[at];
            }
        }
        shared[UNIT_POS as usize] = sum;
        sync_cube();
        if UNIT_POS == 0 && (CUBE_POS as usize) < sums.len() {
            let mut all = 0.0f32;
            for unit in 0..UNITS {
                all += shared[unit];
            }
            sums[CUBE_POS as usize] = all;
        }
    }

    /// A tensor that may be written: itself where nobody else holds it, else a copy.
    fn own(tensor: CubeTensor) -> CubeTensor {
        let tensor = dense(tensor);
        if tensor.can_mut() { tensor } else { tensor.copy() }
    }

    impl AdamWOps for CubeBackend {
        fn adamw(
            parameter: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            f: Factors,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            let [parameter, first, second] = [parameter, first, second].map(own);
            let gradient = dense(gradient);
            let client = parameter.client.clone();
            let count = parameter.meta.num_elements();
            if count > 0 {
                let dim = CubeDim::new_1d(256);
                advance::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, count, dim),
                    dim,
                    parameter.clone().into_buffer_arg(),
                    gradient.into_buffer_arg(),
                    first.clone().into_buffer_arg(),
                    second.clone().into_buffer_arg(),
                    ScalarsLaunch::new(f.clip, f.toward, f.beta2, f.fresh, f.root, f.eps, f.step, f.decay),
                );
            }
            (parameter, first, second)
        }

        fn squares(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
            let tensor = dense(tensor);
            let client = tensor.client.clone();
            let cubes = tensor.meta.num_elements().div_ceil(UNITS * TERMS);
            let sums =
                empty_device_contiguous_dtype(client.clone(), tensor.device.clone(), Shape::new([cubes]), DType::F32);
            if cubes > 0 {
                let dim = CubeDim::new_1d(UNITS as u32);
                let count = calculate_cube_count_elemwise(&client, cubes * UNITS, dim);
                sum_squares::launch(&client, count, dim, tensor.into_buffer_arg(), sums.clone().into_buffer_arg());
            }
            sums
        }
    }
}

/// Case: [elements, updates before].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "adamw",
    cases: &[&[1, 0], &[17, 1], &[1000, 3], &[40_001, 0]],
    sizes: &[&[768 * 2048, 5], &[768, 5]],
    inputs: reference::inputs,
    reference: reference::stepped,
    run: |case, inputs| {
        let [parameter, gradient, first, second] = [0, 1, 2, 3].map(|i| inputs[i].float());
        let after = adamw(Stepped { parameter, first, second }, gradient, &reference::step(case));
        Tensor::cat(vec![after.parameter, after.first, after.second], 0)
    },
    gradient: None,
    tolerance: Tolerance {
        reference: 1e-6,
        devices: 1e-6,
        gradient: 0.0,
        reason: "a dozen f32 operations on values of at most 4; devices may fuse a product with a sum",
    },
    cost: |case| Cost { bytes: 28 * case[0] as u64, flops: 14 * case[0] as u64 },
};

/// The same in f64 and plain loops, from the publication's formulas.
mod reference {
    use burn::tensor::TensorData;

    use super::AdamWStep;
    use crate::ops::Draws;

    pub(super) fn step(case: &[usize]) -> AdamWStep {
        let updates = case[1] as u64 + 1;
        AdamWStep { clip: 0.7, rate: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, updates }
    }

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let mut draws = Draws::new(seed);
        let mut tensor = |low: f64, high: f64| {
            let values: Vec<f32> = (0..case[0]).map(|_| (low + draws.unit() * (high - low)) as f32).collect();
            TensorData::new(values, [case[0]])
        };
        vec![tensor(-2.0, 2.0), tensor(-3.0, 3.0), tensor(-0.5, 0.5), tensor(0.05, 2.0)]
    }

    pub(super) fn stepped(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        let AdamWStep { clip, rate, beta1, beta2, eps, weight_decay, updates } = step(case);
        let [p, g, m, v] = [0, 1, 2, 3].map(|i| inputs[i].as_slice::<f32>().expect("`inputs` makes f32"));
        let (mut parameters, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..case[0] {
            let [p, g, m, v] = [p, g, m, v].map(|values| f64::from(values[i]));
            let g = g * clip;
            let (m, v) = (beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g);
            let unbiased = |moment: f64, beta: f64| moment / (1.0 - beta.powf(updates as f64));
            let change = rate * (unbiased(m, beta1) / (unbiased(v, beta2).sqrt() + eps) + weight_decay * p);
            parameters.push(p - change);
            firsts.push(m);
            seconds.push(v);
        }
        [parameters, firsts, seconds].concat()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn state(case: &[usize]) -> (Stepped, Tensor<1>) {
        let tensors = reference::inputs(case, 3).into_iter().map(|data| Tensor::from_data(data, &Device::flex()));
        let [parameter, gradient, first, second] = tensors.collect::<Vec<_>>().try_into().unwrap();
        (Stepped { parameter, first, second }, gradient)
    }

    #[test]
    fn one_pass_has_the_bits_of_one_operation_after_the_other() {
        let (before, gradient) = state(&[20_000, 2]);
        let step = reference::step(&[20_000, 2]);
        let after = adamw(before.clone(), gradient.clone(), &step);
        let gradient = gradient.mul_scalar(step.clip);
        let first = before.first.clone() + (gradient.clone() - before.first).mul_scalar(1.0 - step.beta1);
        let second = before.second.mul_scalar(step.beta2) + gradient.square().mul_scalar(1.0 - step.beta2);
        let root = (1.0 - step.beta2.powi(3)).sqrt();
        let change = first.clone() / second.clone().sqrt().div_scalar(root).add_scalar(step.eps);
        let change = change.mul_scalar(step.rate / (1.0 - step.beta1.powi(3)));
        let parameter = before.parameter.mul_scalar(1.0 - step.rate * step.weight_decay) - change;
        for (ours, wanted) in [(after.parameter, parameter), (after.first, first), (after.second, second)] {
            assert_eq!(ours.into_data(), wanted.into_data());
        }
    }

    #[test]
    fn tensors_that_others_hold_stay_as_they_are() {
        let (before, gradient) = state(&[100, 0]);
        let values = before.parameter.to_data();
        let after = adamw(before.clone(), gradient, &reference::step(&[100, 0]));
        assert_eq!(before.parameter.to_data(), values);
        assert_ne!(after.parameter.to_data(), values);
    }

    #[test]
    fn squares_are_those_of_f64() {
        for count in [0, 1, 9, 50_000] {
            let values: Vec<f32> = (0..count).map(|i| (i % 1000) as f32 * 0.01 + 0.1).collect();
            let wanted: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            let found = squares(vec![Tensor::from_floats(values.as_slice(), &Device::flex())])[0];
            assert!((found - wanted).abs() <= 1e-7 * wanted, "{count}: {found}, not {wanted}");
        }
        let damaged = Tensor::<1>::from_floats([1.0, f32::NAN], &Device::flex());
        assert!(squares(vec![damaged])[0].is_nan());
    }
}
