//! Norms over the last axis with what follows them: gain and bias, of all rows or of groups of rows.
//!
//! Shapes: x [R, D]; gain and bias [G, D], each for R / G neighbouring rows -> [R, D].
//! Way:    y = (x - mean) / sqrt(variance + eps) gain + bias; or, without a mean, x / sqrt(mean square + eps) gain.
//! Source: Ba et al. 2016, arXiv 1607.06450; Zhang and Sennrich 2019, arXiv 1910.07467; Peebles and Xie 2022, arXiv
//!         2212.09748, whose modulation is a norm with gain and bias of each frame.

#[cfg(feature = "cube")]
mod cube;
mod flex;
mod reference;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::{FloatDType, Tensor};

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
    assert!(groups > 0 && rows.is_multiple_of(groups), "{rows} rows are not {groups} groups of equal size");
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
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
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
        let x = all.clone().slice(0..groups * rows * width).reshape([groups * rows, width]);
        let part = |index: usize| {
            let start = groups * (rows + index) * width;
            all.clone().slice(start..start + groups * width).reshape([groups, width])
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData};

    use super::*;

    #[test]
    fn norms_are_those_worked_out_by_hand() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[3.0, -4.0], [0.0, 0.0]], &device);
        let ones = Tensor::<1>::ones([2], &device);
        let root = 12.5f32.sqrt();
        let found = rms_norm(x.clone(), ones.clone() * 2.0, 0.0).slice(0..1).into_data();
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
