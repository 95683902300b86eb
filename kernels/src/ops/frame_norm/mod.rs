//! Group norm of one group over each frame, with what follows it: gain and bias of each channel, and SiLU.
//!
//! Shapes: x [R, C, N], frame by frame; gain and bias [C] -> [R, C, N].
//! Way:    n = (x - mean) / sqrt(variance + eps) gain + bias, mean and variance over C and N of a frame; n or silu(n).
//! Source: Wu and He 2018, arXiv 1803.08494.
//! Memory: forward keeps two numbers per frame; backward computes n again.

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

use crate::ops::Activation;
use crate::{Cost, Kernel, Tolerance};

/// Norm of each frame, and what follows: x [B, T, C, H, W], gain and bias [C]. Keeps the float type of `x`.
///
/// # Panics
/// There is not a gain and a bias for each channel.
pub fn frame_norm(x: Tensor<5>, gain: Tensor<1>, bias: Tensor<1>, eps: f64, then: Activation) -> Tensor<5> {
    let (shape, dtype) = (x.dims(), FloatDType::from(x.dtype()));
    let [b, t, c, h, w] = shape;
    assert_eq!((gain.dims(), bias.dims()), ([c], [c]), "a gain and a bias for each of the {c} channels");
    let x = x.reshape([b * t, c, h * w]).cast(FloatDType::F32).into_dispatch();
    let [gain, bias] = [gain, bias].map(|x| x.cast(FloatDType::F32).into_dispatch());
    let (y, _) = Dispatch::frame_norm(x, gain, bias, Form { eps: eps as f32, then });
    Tensor::<3>::from_dispatch(y).cast(dtype).reshape(shape)
}

/// The op's plain arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    eps: f32,
    then: Activation,
}

/// The op on each backend: f32, shapes as in the module's head.
///
/// `frame_norm` also yields each frame's mean and the reciprocal of its deviation, [R, 2]. `frame_norm_backward` yields the
/// gradients of x, gain and bias.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait FrameNormOps: Backend {
    fn frame_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn frame_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// What the backward pass of [`FrameNormOps::frame_norm`] needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    bias: FloatTensor<B>,
    stats: FloatTensor<B>,
    form: Form,
}

impl<B: FrameNormOps, C: CheckpointStrategy> FrameNormOps for Autodiff<B, C> {
    fn frame_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Slopes;
        impl<B: FrameNormOps> Backward<B, 3> for Slopes {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let Saved { x, gain, bias, stats, form } = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let (x, gain, bias) = B::frame_norm_backward(x, gain, bias, stats, grad, form);
                for (parent, grad) in ops.parents.iter().zip([x, gain, bias]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [input, factor, shift] = [&x, &gain, &bias].map(|tensor| tensor.primitive().clone());
        let (y, stats) = B::frame_norm(input.clone(), factor.clone(), shift.clone(), form);
        let constant = Self::from_inner(stats.clone());
        let y = match Slopes.prepare::<C>([x.node(), gain.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { x: input, gain: factor, bias: shift, stats, form }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, constant)
    }

    fn frame_norm_backward(
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

/// Case: [frames, channels, positions, 1 where SiLU follows]. The input is x, gain and bias, one behind the other.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "frame_norm",
    cases: &[&[1, 2, 1, 0], &[3, 5, 7, 1], &[2, 3, 33, 0], &[5, 40, 1, 1], &[2, 37, 900, 1]],
    sizes: &[&[24, 256, 1560, 1], &[24, 128, 6240, 1], &[92, 1024, 1, 1]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let [frames, channels, positions] = [case[0], case[1], case[2]];
        let (all, count) = (inputs[0].float(), frames * channels * positions);
        let x = all.clone().slice(0..count).reshape([1, frames, channels, positions, 1]);
        let part = |index: usize| all.clone().slice(count + index * channels..count + (index + 1) * channels);
        frame_norm(x, part(0), part(1), reference::EPS, Activation::silu_if(case[3] == 1)).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 5e-6,
        devices: 5e-6,
        gradient: 5e-4,
        reason: "f32 sums over up to 33,300 values; gradients of gains reach 1,050, where f32 steps by 1.2e-4",
    },
    cost: |case| {
        let count = case[..3].iter().product::<usize>() as u64;
        Cost { bytes: 12 * count, flops: (7 + 20 * case[3] as u64) * count } // an exponential counted as 18
    },
};

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData};

    use super::*;

    #[test]
    fn a_frame_worked_out_by_hand() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([1.0, 3.0, 5.0, 7.0, 2.0, 2.0, 2.0, 2.0], &device).reshape([1, 2, 2, 1, 2]);
        let (gain, bias) =
            (Tensor::<1>::from_floats([1.0, 2.0], &device), Tensor::<1>::from_floats([0.0, 1.0], &device));
        let root = 5f32.sqrt(); // of frame 0; frame 1 is constant
        let normed = [-3.0 / root, -1.0 / root, 2.0 / root + 1.0, 6.0 / root + 1.0, 0.0, 0.0, 1.0, 1.0];
        let found = frame_norm(x.clone(), gain.clone(), bias.clone(), 1e-12, Activation::None).reshape([-1]);
        let found: Tensor<1> = found;
        found.into_data().assert_approx_eq::<f32>(&TensorData::from(normed), Default::default());
        let silu = normed.map(|n| n / (1.0 + (-n).exp()));
        let found: Tensor<1> = frame_norm(x, gain, bias, 1e-12, Activation::Silu).reshape([-1]);
        found.into_data().assert_approx_eq::<f32>(&TensorData::from(silu), Default::default());
    }

    #[test]
    fn a_frame_depends_on_no_other() {
        let device = Device::flex();
        device.seed(2);
        let x = Tensor::<5>::random([2, 3, 8, 5, 70], Distribution::Default, &device);
        let (gain, bias) = (Tensor::<1>::ones([8], &device), Tensor::<1>::zeros([8], &device));
        let norm = |x| frame_norm(x, gain.clone(), bias.clone(), 1e-6, Activation::Silu);
        let alone = norm(x.clone().slice([1..2, 2..3, 0..8, 0..5, 0..70]));
        assert_eq!(norm(x).slice([1..2, 2..3, 0..8, 0..5, 0..70]).into_data(), alone.into_data(), "seed 2");
    }

    #[test]
    #[should_panic(expected = "a gain and a bias for each of the 3 channels")]
    fn gains_of_another_count_are_refused() {
        let (x, gain) = (Tensor::ones([1, 1, 3, 1, 1], &Device::flex()), Tensor::ones([2], &Device::flex()));
        frame_norm(x, gain.clone(), gain, 0.0, Activation::None);
    }
}
