//! RMS norm over the channels of each position, with what follows it: the gain of each channel, and SiLU.
//!
//! Shapes: x [R, C, N], frame by frame; gain [C] -> [R, C, N].
//! Way:    n = x sqrt(C) / max(length, 1e-12) gain, where the length is that of a position's C values; n or silu(n).
//! Source: Zhang and Sennrich 2019, arXiv 1910.07467, in the form of the Wan 2.1 VAE, arXiv 2503.20314.
//! Memory: forward keeps a number per position; backward computes n again.

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

/// Norm of each position's channels, and what follows: x [B, T, C, H, W], gain [C]. Keeps the float type of `x`.
///
/// # Panics
/// There is not a gain for each channel.
pub fn channel_norm(x: Tensor<5>, gain: Tensor<1>, then: Activation) -> Tensor<5> {
    let (shape, dtype) = (x.dims(), FloatDType::from(x.dtype()));
    let [b, t, c, h, w] = shape;
    assert_eq!(gain.dims(), [c], "a gain for each of the {c} channels");
    let x = x.reshape([b * t, c, h * w]).cast(FloatDType::F32).into_dispatch();
    let (y, _) = Dispatch::channel_norm(x, gain.cast(FloatDType::F32).into_dispatch(), then);
    Tensor::<3>::from_dispatch(y).cast(dtype).reshape(shape)
}

/// Lengths below count as this one.
const TINY: f32 = 1e-12;

/// What a position without length is multiplied by.
fn most(channels: usize) -> f32 {
    (channels as f32).sqrt() / TINY
}

/// The op on each backend: f32, shapes as in the module's head.
///
/// `channel_norm` also yields what each position was multiplied by, [R, N]. `channel_norm_backward` yields the gradients of
/// x and gain.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait ChannelNormOps: Backend {
    fn channel_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn channel_norm_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// What the backward pass of [`ChannelNormOps::channel_norm`] needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    factors: FloatTensor<B>,
    then: Activation,
}

impl<B: ChannelNormOps, C: CheckpointStrategy> ChannelNormOps for Autodiff<B, C> {
    fn channel_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        then: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Slopes;
        impl<B: ChannelNormOps> Backward<B, 2> for Slopes {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let Saved { x, gain, factors, then } = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let (x, gain) = B::channel_norm_backward(x, gain, factors, grad, then);
                for (parent, grad) in ops.parents.iter().zip([x, gain]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [input, gains] = [&x, &gain].map(|tensor| tensor.primitive().clone());
        let (y, factors) = B::channel_norm(input.clone(), gains.clone(), then);
        let constant = Self::from_inner(factors.clone());
        let y = match Slopes.prepare::<C>([x.node(), gain.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { x: input, gain: gains, factors, then }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, constant)
    }

    fn channel_norm_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }
}

/// Case: [frames, channels, positions, 1 where SiLU follows]. The input is x and gain, one behind the other.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "channel_norm",
    cases: &[&[1, 2, 1, 0], &[3, 5, 7, 1], &[2, 33, 300, 0], &[1, 400, 90, 1], &[2, 16, 5000, 1]],
    sizes: &[&[5, 96, 19_200, 1], &[2, 384, 1200, 1]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let [frames, channels, positions] = [case[0], case[1], case[2]];
        let (all, count) = (inputs[0].float(), frames * channels * positions);
        let x = all.clone().slice(0..count).reshape([1, frames, channels, positions, 1]);
        channel_norm(x, all.slice(count..count + channels), Activation::silu_if(case[3] == 1)).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 5e-6,
        devices: 5e-6,
        gradient: 2e-4,
        reason: "f32 sums over up to 400 channels; gradients of gains are sums of up to 10,000 terms",
    },
    cost: |case| {
        let count = case[..3].iter().product::<usize>() as u64;
        Cost { bytes: 8 * count, flops: (4 + 20 * case[3] as u64) * count } // an exponential counted as 18
    },
};

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn positions_worked_out_by_hand() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats([3.0, 0.0, 4.0, 0.0], &device).reshape([1, 1, 2, 1, 2]); // (3, 4) and (0, 0)
        let gain = Tensor::<1>::from_floats([1.0, -2.0], &device);
        let (near, far) = (0.6 * 2f32.sqrt(), -1.6 * 2f32.sqrt());
        let found: Tensor<1> = channel_norm(x.clone(), gain.clone(), Activation::None).reshape([-1]);
        found.into_data().assert_approx_eq::<f32>(&TensorData::from([near, 0.0, far, 0.0]), Default::default());
        let [near, far] = [near, far].map(|n| n / (1.0 + (-n).exp()));
        let found: Tensor<1> = channel_norm(x, gain, Activation::Silu).reshape([-1]);
        found.into_data().assert_approx_eq::<f32>(&TensorData::from([near, 0.0, far, 0.0]), Default::default());
    }

    #[test]
    fn a_position_without_length_passes_a_finite_gradient() {
        let device = Device::flex().autodiff();
        let x = Tensor::<5>::zeros([1, 1, 4, 1, 3], &device).require_grad();
        let y = channel_norm(x.clone(), Tensor::ones([4], &device), Activation::None);
        let grad: f32 = x.grad(&y.sum().backward()).unwrap().max().into_scalar();
        assert!((grad / 2e12 - 1.0).abs() < 1e-6, "{grad}");
    }

    #[test]
    #[should_panic(expected = "a gain for each of the 3 channels")]
    fn gains_of_another_count_are_refused() {
        let device = Device::flex();
        channel_norm(Tensor::ones([1, 1, 3, 1, 1], &device), Tensor::ones([2], &device), Activation::None);
    }
}
