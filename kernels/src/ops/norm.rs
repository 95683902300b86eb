//! Norms over the last axis with what follows them: gain and bias, of all rows or of groups of rows.
//!
//! Shapes: x [R, D]; gain and bias [G, D], each for R / G neighbouring rows -> [R, D].
//! Way:    y = (x - mean) / sqrt(variance + eps) gain + bias; or, without a mean, x / sqrt(mean square + eps) gain.
//! Source: Ba et al. 2016, arXiv 1607.06450; Zhang and Sennrich 2019, arXiv 1910.07467; Peebles and Xie 2022, arXiv
//!         2212.09748, whose modulation is a norm with gain and bias of each frame.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use crate::simd::{LANES, sum, total, wide};
use crate::{Cost, Kernel, Tolerance};

/// `x / sqrt(mean(x^2) + eps) gain` over the last axis. x [.., D], gain [D].
pub fn rms_norm<const N: usize>(x: Tensor<N>, gain: Tensor<1>, eps: f64) -> Tensor<N> {
    let form = Form { centred: false, biased: false, eps: eps as f32 };
    normed(x, gain.unsqueeze(), None, form)
}

/// `(x - mean) / sqrt(variance + eps) gain + bias` over the last axis. x [.., D], gain and bias [D].
pub fn layer_norm<const N: usize>(x: Tensor<N>, gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<N> {
    let form = Form { centred: true, biased: true, eps: eps as f32 };
    normed(x, gain.unsqueeze(), Some(bias.unsqueeze()), form)
}

/// `norm(x) (1 + scale) + shift`, where the norm is a layer norm without gain: x [B, T, N, D], scale and shift
/// [B, T, 1, D].
pub fn modulate(x: Tensor<4>, shift: Tensor<4>, scale: Tensor<4>, eps: f64) -> Tensor<4> {
    let [b, t, _, d] = x.dims();
    let form = Form { centred: true, biased: true, eps: eps as f32 };
    normed(x, (scale + 1.0).reshape([b * t, d]), Some(shift.reshape([b * t, d])), form)
}

fn normed<const N: usize>(x: Tensor<N>, gain: Tensor<2>, bias: Option<Tensor<2>>, form: Form) -> Tensor<N> {
    let (shape, dtype) = (x.dims(), FloatDType::from(x.dtype()));
    let (width, [groups, columns]) = (shape[N - 1], gain.dims());
    let rows: usize = shape[..N - 1].iter().product();
    assert_eq!(columns, width, "a gain for each of the {width} columns");
    assert!(groups > 0 && rows % groups == 0, "{rows} rows are not {groups} groups of equal size");
    let whole = |x: Tensor<2>| x.cast(FloatDType::F32).into_dispatch();
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), gain.dims(), "as many biases as gains");
    }
    // Without a bias the gain stands in its place; it is not read.
    let bias = bias.unwrap_or_else(|| gain.clone().detach());
    let (y, _, _) = Dispatch::norm(whole(x.reshape([rows, width])), whole(gain), whole(bias), form);
    Tensor::<2>::from_dispatch(y).cast(dtype).reshape(shape)
}

/// The op's plain arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    /// Whether the mean is taken away.
    centred: bool,
    /// Whether the bias is read.
    biased: bool,
    eps: f32,
}

/// The op on each backend: f32, shapes as in the module's head.
///
/// `norm` also yields each row's mean (0 where it is not taken away) and the reciprocal of its deviation, [R] each.
/// `norm_backward` yields the gradients of x, gain and bias.
#[backend_extension(Autodiff, Cube: cfg(feature = "wgpu"), Flex)]
trait NormOps: Backend {
    fn norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    fn norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// What the backward pass of [`NormOps::norm`] needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    mean: FloatTensor<B>,
    scale: FloatTensor<B>,
    form: Form,
}

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Slopes;
        impl<B: NormOps> Backward<B, 3> for Slopes {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let Saved { x, gain, mean, scale, form } = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let (x, gain, bias) = B::norm_backward(x, gain, mean, scale, grad, form);
                for (parent, grad) in ops.parents.iter().zip([x, gain, bias]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [input, factor, shift] = [&x, &gain, &bias].map(|tensor| tensor.primitive().clone());
        let (y, mean, scale) = B::norm(input.clone(), factor.clone(), shift, form);
        let constants = (Self::from_inner(mean.clone()), Self::from_inner(scale.clone()));
        let y = match Slopes.prepare::<C>([x.node(), gain.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { x: input, gain: factor, mean, scale, form }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, constants.0, constants.1)
    }

    fn norm_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }
}

/// Rows that one thread takes at a time. Gradients of gains are summed over these first, so that threads change no bit.
const ROWS: usize = 32;

impl NormOps for Flex {
    fn norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, bias] = [x, gain, bias].map(|tensor| tensor.to_contiguous());
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let [values, gains, biases] = [&x, &gain, &bias].map(slice);
        let (mut y, mut means, mut scales) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
        if !y.is_empty() {
            let parts = y.par_chunks_mut(ROWS * width).zip(values.par_chunks(ROWS * width));
            let stats = means.par_chunks_mut(ROWS).zip(scales.par_chunks_mut(ROWS));
            parts.zip(stats).enumerate().for_each(|(part, ((y, x), (means, scales)))| {
                let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(means.iter_mut().zip(scales));
                for (row, ((y, x), (mean, scale))) in rows.enumerate() {
                    let group = (part * ROWS + row) / (values.len() / width / groups);
                    let gain = &gains[group * width..][..width];
                    let bias = form.biased.then(|| &biases[group * width..][..width]);
                    (*mean, *scale) = norm_row(x, gain, bias, form, y);
                }
            });
        }
        let stats = |values| FloatTensor::<Self>::from_data(TensorData::new(values, [rows]));
        let y = FloatTensor::<Self>::from_data(TensorData::new(y, [rows, width]));
        (y, stats(means), stats(scales))
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gain, grad] = [x, gain, grad].map(|tensor| tensor.to_contiguous());
        let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
        let [values, gains, grads, means, scales] = [&x, &gain, &grad, &mean, &scale].map(slice);
        let (mut of_x, mut of_gain) = (vec![0.0; rows * width], vec![0.0; groups * width]);
        let mut of_bias = of_gain.clone();
        if !of_x.is_empty() {
            // Rows of a group stand together, in parts that begin anew with each group.
            let group_rows = rows / groups;
            let parts: Vec<(usize, usize, &mut [f32])> = of_x
                .chunks_exact_mut(group_rows * width)
                .enumerate()
                .flat_map(|(group, of_x)| {
                    let parts = of_x.chunks_mut(ROWS * width).enumerate();
                    parts.map(move |(part, of_x)| (group, group * group_rows + part * ROWS, of_x))
                })
                .collect();
            let sums: Vec<(usize, Vec<f32>, Vec<f32>)> = parts
                .into_par_iter()
                .map(|(group, start, of_x)| {
                    let (mut of_gain, mut of_bias) = (vec![0.0; width], vec![0.0; width]);
                    let gain = &gains[group * width..][..width];
                    for (row, of_x) in (start..).zip(of_x.chunks_exact_mut(width)) {
                        let [x, grad] = [values, grads].map(|values| &values[row * width..][..width]);
                        let stats = (means[row], scales[row]);
                        norm_row_backward(x, gain, stats, grad, form, of_x, &mut of_gain, &mut of_bias);
                    }
                    (group, of_gain, of_bias)
                })
                .collect();
            for (group, gain, bias) in sums {
                for (sums, terms) in [(&mut of_gain, gain), (&mut of_bias, bias)] {
                    let sums = &mut sums[group * width..][..width];
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
            }
        }
        let tensor = |values, rows| FloatTensor::<Self>::from_data(TensorData::new(values, [rows, width]));
        (tensor(of_x, rows), tensor(of_gain, groups), tensor(of_bias, groups))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

wide! {
    /// One row; its mean and the reciprocal of its deviation.
    fn norm_row(x: &[f32], gain: &[f32], bias: Option<&[f32]>, form: Form, y: &mut [f32]) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if form.centred { sum(x, |value| value) / count } else { 0.0 };
        let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
        let scale = 1.0 / (variance + form.eps).sqrt();
        match bias {
            Some(bias) => {
                for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                    *y = (x - mean) * scale * gain + bias;
                }
            }
            None => {
                for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
                    *y = (x - mean) * scale * gain;
                }
            }
        }
        (mean, scale)
    }
}

wide! {
    /// The gradient of one row; adds to those of gain and bias.
    fn norm_row_backward(
        x: &[f32],
        gain: &[f32],
        stats: (f32, f32),
        grad: &[f32],
        form: Form,
        of_x: &mut [f32],
        of_gain: &mut [f32],
        of_bias: &mut [f32],
    ) {
        let (mean, scale) = stats;
        let count = x.len() as f32;
        // `of_x` holds the gradient of the normed row until its means are known.
        for ((of_x, &grad), &gain) in of_x.iter_mut().zip(grad).zip(gain) {
            *of_x = grad * gain;
        }
        let along = sum_products(of_x, x, mean, scale) / count;
        let shift = if form.centred { sum(of_x, |slope| slope) / count } else { 0.0 };
        for (of_x, &x) in of_x.iter_mut().zip(x) {
            *of_x = scale * (*of_x - shift - (x - mean) * scale * along);
        }
        for (((of_gain, of_bias), &grad), &x) in of_gain.iter_mut().zip(of_bias).zip(grad).zip(x) {
            *of_gain += grad * (x - mean) * scale;
            *of_bias += grad;
        }
    }
}

/// The sum of `a (b - mean) scale`, in fixed lanes.
#[inline(always)]
fn sum_products(a: &[f32], b: &[f32], mean: f32, scale: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (many_a, tail_a) = a.as_chunks::<LANES>();
    let (many_b, tail_b) = b.as_chunks::<LANES>();
    for (a, b) in many_a.iter().zip(many_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * ((b - mean) * scale);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(tail_a).zip(tail_b) {
        *lane += a * ((b - mean) * scale);
    }
    total(lanes)
}

#[cfg(feature = "wgpu")]
mod cube {
    use burn::backend::TensorMetadata;
    use burn::backend::tensor::FloatTensor;
    use burn::tensor::{DType, Shape};
    use burn_cubecl::CubeBackend;
    use burn_cubecl::kernel::into_contiguous;
    use burn_cubecl::ops::numeric::empty_device_dtype;
    use burn_cubecl::tensor::CubeTensor;
    use cubecl::calculate_cube_count_elemwise;
    use cubecl::prelude::*;

    use super::{Form, NormOps};

    /// Units that share a row.
    const UNITS: usize = 128;

    /// The sum of what all units of the cube have, in every unit.
    #[cube]
    fn total(value: f32, shared: &mut Shared<[f32]>) -> f32 {
        sync_cube();
        shared[UNIT_POS as usize] = value;
        sync_cube();
        let mut sum = 0.0f32;
        for other in 0..UNITS {
            sum += shared[other];
        }
        sum
    }

    /// One cube per row; units take every 128th column.
    #[cube(launch)]
    fn forward(
        x: &[f32],
        gain: &[f32],
        bias: &[f32],
        y: &mut [f32],
        means: &mut [f32],
        scales: &mut [f32],
        width: u32,
        group_rows: u32,
        eps: f32,
        #[comptime] centred: bool,
        #[comptime] biased: bool,
    ) {
        let (row, unit, width) = (CUBE_POS as usize, UNIT_POS as usize, width as usize);
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let mut end = width;
        if row >= means.len() {
            end = 0;
        }
        let count = f32::cast_from(width as u32);
        let mut mean = 0.0f32;
        if comptime!(centred) {
            let mut sum = 0.0f32;
            let mut at = unit;
            while at < end {
                sum += x[row * width + at];
                at += UNITS;
            }
            mean = total(sum, &mut shared) / count;
        }
        let mut sum = 0.0f32;
        let mut at = unit;
        while at < end {
            let value = x[row * width + at] - mean;
            sum += value * value;
            at += UNITS;
        }
        let scale = 1.0f32 / f32::sqrt(total(sum, &mut shared) / count + eps);
        let group = row as u32 / group_rows;
        let group = group as usize * width;
        at = unit;
        while at < end {
            let mut value = (x[row * width + at] - mean) * scale * gain[group + at];
            if comptime!(biased) {
                value += bias[group + at];
            }
            y[row * width + at] = value;
            at += UNITS;
        }
        if unit == 0 && row < means.len() {
            means[row] = mean;
            scales[row] = scale;
        }
    }

    /// One cube per row; units take every 128th column.
    #[cube(launch)]
    fn backward_rows(
        x: &[f32],
        gain: &[f32],
        means: &[f32],
        scales: &[f32],
        grad: &[f32],
        of_x: &mut [f32],
        width: u32,
        group_rows: u32,
        #[comptime] centred: bool,
    ) {
        let (row, unit, width) = (CUBE_POS as usize, UNIT_POS as usize, width as usize);
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let mut end = width;
        let mut mean = 0.0f32;
        let mut scale = 0.0f32;
        if row >= means.len() {
            end = 0;
        } else {
            mean = means[row];
            scale = scales[row];
        }
        let count = f32::cast_from(width as u32);
        let group = row as u32 / group_rows;
        let group = group as usize * width;
        let mut along = 0.0f32;
        let mut shift = 0.0f32;
        let mut at = unit;
        while at < end {
            let slope = grad[row * width + at] * gain[group + at];
            along += slope * ((x[row * width + at] - mean) * scale);
            shift += slope;
            at += UNITS;
        }
        along = total(along, &mut shared) / count;
        if comptime!(centred) {
            shift = total(shift, &mut shared) / count;
        } else {
            shift = 0.0f32;
        }
        at = unit;
        while at < end {
            let slope = grad[row * width + at] * gain[group + at];
            of_x[row * width + at] = scale * (slope - shift - (x[row * width + at] - mean) * scale * along);
            at += UNITS;
        }
    }

    /// One unit per gain: goes down the rows of its group.
    #[cube(launch)]
    fn backward_gains(
        x: &[f32],
        means: &[f32],
        scales: &[f32],
        grad: &[f32],
        of_gain: &mut [f32],
        of_bias: &mut [f32],
        width: u32,
        group_rows: u32,
    ) {
        if ABSOLUTE_POS < of_gain.len() {
            let width = width as usize;
            let column = ABSOLUTE_POS % width;
            let first = ABSOLUTE_POS / width * group_rows as usize;
            let mut gain = 0.0f32;
            let mut bias = 0.0f32;
            for row in first..first + group_rows as usize {
                let slope = grad[row * width + column];
                gain += slope * ((x[row * width + column] - means[row]) * scales[row]);
                bias += slope;
            }
            of_gain[ABSOLUTE_POS] = gain;
            of_bias[ABSOLUTE_POS] = bias;
        }
    }

    fn like(x: &CubeTensor) -> CubeTensor {
        empty_device_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
    }

    impl NormOps for CubeBackend {
        fn norm(
            x: FloatTensor<Self>,
            gain: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            form: Form,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            let [x, gain, bias] = [x, gain, bias].map(into_contiguous);
            let client = x.client.clone();
            let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
            let y = like(&x);
            let row = || empty_device_dtype(client.clone(), x.device.clone(), Shape::new([rows]), DType::F32);
            let (means, scales) = (row(), row());
            if rows * width > 0 {
                let dim = CubeDim::new_1d(UNITS as u32);
                forward::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                    dim,
                    x.clone().into_buffer_arg(),
                    gain.into_buffer_arg(),
                    bias.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    means.clone().into_buffer_arg(),
                    scales.clone().into_buffer_arg(),
                    width as u32,
                    (rows / groups) as u32,
                    form.eps,
                    form.centred,
                    form.biased,
                );
            }
            (y, means, scales)
        }

        fn norm_backward(
            x: FloatTensor<Self>,
            gain: FloatTensor<Self>,
            mean: FloatTensor<Self>,
            scale: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            form: Form,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            let [x, gain, mean, scale, grad] = [x, gain, mean, scale, grad].map(into_contiguous);
            let client = x.client.clone();
            let ([rows, width], groups) = (x.shape().dims(), gain.shape()[0]);
            let (of_x, of_gain, of_bias) = (like(&x), like(&gain), like(&gain));
            if rows * width > 0 {
                let dim = CubeDim::new_1d(UNITS as u32);
                backward_rows::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                    dim,
                    x.clone().into_buffer_arg(),
                    gain.into_buffer_arg(),
                    mean.clone().into_buffer_arg(),
                    scale.clone().into_buffer_arg(),
                    grad.clone().into_buffer_arg(),
                    of_x.clone().into_buffer_arg(),
                    width as u32,
                    (rows / groups) as u32,
                    form.centred,
                );
                backward_gains::launch(
                    &client,
                    calculate_cube_count_elemwise(&client, groups * width, dim),
                    dim,
                    x.into_buffer_arg(),
                    mean.into_buffer_arg(),
                    scale.into_buffer_arg(),
                    grad.into_buffer_arg(),
                    of_gain.clone().into_buffer_arg(),
                    of_bias.clone().into_buffer_arg(),
                    width as u32,
                    (rows / groups) as u32,
                );
            }
            (of_x, of_gain, of_bias)
        }
    }
}

/// Case: [groups, rows of a group, columns, 1 where the mean is taken away and a bias added]. The input is x, gain and bias,
/// one behind the other.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "norm",
    cases: &[&[1, 1, 1, 0], &[1, 3, 7, 1], &[5, 2, 33, 1], &[1, 70, 20, 0], &[2, 37, 300, 1], &[1, 9, 768, 0]],
    sizes: &[&[1, 512, 768, 0], &[6, 390, 2048, 1]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let [groups, rows, width] = [case[0], case[1], case[2]];
        let all = inputs[0].float();
        let x = all.clone().slice([0..groups * rows * width]).reshape([groups * rows, width]);
        let part = |index: usize| {
            let start = groups * (rows + index) * width;
            all.clone().slice([start..start + groups * width]).reshape([groups, width])
        };
        let centred = case[3] == 1;
        let form = Form { centred, biased: centred, eps: reference::EPS as f32 };
        normed(x, part(0), centred.then(|| part(1)), form).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 2e-5,
        devices: 2e-5,
        gradient: 2e-4,
        reason: "f32 sums over up to 768 columns, divided by deviations down to 0.03 where a row has one column",
    },
    cost: |case| {
        let count = (case[0] * case[1] * case[2]) as u64;
        Cost { bytes: 8 * count, flops: 7 * count }
    },
};

/// The same in f64 and plain loops.
mod reference {
    use burn::tensor::TensorData;

    use crate::ops::Draws;

    pub(super) const EPS: f64 = 1e-3;

    pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
        let count = case[0] * (case[1] + 2) * case[2];
        let mut draws = Draws::new(seed);
        let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 1.5) as f32).collect();
        vec![TensorData::new(values, [count])]
    }

    /// A row's place among the rows, where its gain and its bias start, its mean and its deviation.
    struct Row {
        start: usize,
        gain: usize,
        bias: usize,
        mean: f64,
        deviation: f64,
    }

    fn rows(case: &[usize], inputs: &[TensorData], mut see: impl FnMut(&[f64], Row)) {
        let [groups, rows, width] = [case[0], case[1], case[2]];
        let values = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
        let x: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        for row in 0..groups * rows {
            let start = row * width;
            let gain = (groups * rows + row / rows) * width;
            let row = &x[start..][..width];
            let mean = if case[3] == 1 { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
            see(&x, Row { start, gain, bias: gain + groups * width, mean, deviation: (variance + EPS).sqrt() });
        }
    }

    pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
        let mut y = Vec::new();
        rows(case, inputs, |x, row| {
            y.extend((0..case[2]).map(|i| {
                let bias = if case[3] == 1 { x[row.bias + i] } else { 0.0 };
                (x[row.start + i] - row.mean) / row.deviation * x[row.gain + i] + bias
            }));
        });
        y
    }

    pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
        let (width, centred) = (case[2], case[3] == 1);
        let mut result = vec![0.0; case[0] * (case[1] + 2) * width];
        rows(case, inputs, |x, row| {
            let grad = |i: usize| f64::from(weights[row.start + i]);
            let normed = |i: usize| (x[row.start + i] - row.mean) / row.deviation;
            let slope = |i: usize| grad(i) * x[row.gain + i];
            let along = (0..width).map(|i| slope(i) * normed(i)).sum::<f64>() / width as f64;
            let shift = if centred { (0..width).map(slope).sum::<f64>() / width as f64 } else { 0.0 };
            for i in 0..width {
                result[row.start + i] = (slope(i) - shift - normed(i) * along) / row.deviation;
                result[row.gain + i] += grad(i) * normed(i);
                result[row.bias + i] += if centred { grad(i) } else { 0.0 };
            }
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn norms_are_those_worked_out_by_hand() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[3.0, -4.0], [0.0, 0.0]], &device);
        let ones = Tensor::<1>::ones([2], &device);
        let root = 12.5f32.sqrt();
        let found = rms_norm(x.clone(), ones.clone() * 2.0, 0.0).slice([0..1]).into_data();
        found.assert_approx_eq::<f32>(&TensorData::from([[6.0 / root, -8.0 / root]]), Default::default());
        let found = layer_norm(x, ones.clone() * 2.0, ones, 1e-12).into_data();
        found.assert_approx_eq::<f32>(&TensorData::from([[3.0, -1.0], [1.0, 1.0]]), Default::default());
    }

    #[test]
    fn each_frame_has_its_own_modulation() {
        let device = Device::flex();
        device.seed(4);
        let draw = |n: usize| Tensor::<4>::random([2, 3, n, 10], Distribution::Default, &device);
        let (x, shift, scale) = (draw(5), draw(1), draw(1));
        let ones = Tensor::<1>::ones([10], &device);
        let wanted =
            layer_norm(x.clone(), ones.clone(), ones.zeros_like(), 1e-6) * (scale.clone() + 1.0) + shift.clone();
        let difference: f32 = (modulate(x, shift, scale, 1e-6) - wanted).abs().max().into_scalar();
        assert!(difference < 2e-6, "seed 4: {difference}");
    }

    #[test]
    #[should_panic(expected = "7 rows are not 2 groups of equal size")]
    fn groups_of_unequal_size_are_refused() {
        let device = Device::flex();
        let form = Form { centred: false, biased: false, eps: 0.0 };
        normed(Tensor::<2>::ones([7, 3], &device), Tensor::ones([2, 3], &device), None, form);
    }
}
