//! Causal convolution over the frames of a clip, as the VAE and the dLDM have it.
//!
//! Shapes: x `[B, T, C, H, W]` with frames first, weight `[O, C, kt, kh, kw]` as published, bias `[O]`
//!         -> `[B, T', O, H', W']`; T' = (front + T - kt) / time step + 1, H' = (H + before + after - kh) / space step + 1.
//! Front:  frames before the first are zeros, copies of the first, or given: those that a stream remembers.
//! Way:    a product of the weight and the matrix of all inputs of each output pixel, of which only small panels are ever
//!         made (`columns`). Bias, and a tensor of the result's shape, are added as results are written.
//! Gradient: of all tensors. That of x is the same product with the weight turned around; a step of s gives s x s (x s)
//!         products, one for each phase of the input, none of which multiplies the zeros between the steps.
//! Differs: PyTorch has channels before frames.

mod columns;
#[cfg(feature = "cube")]
mod cores;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod product;
mod reference;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchTensor, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::{Cost, Kernel, Tolerance};

/// What stands before the first frame.
#[expect(
    clippy::large_enum_variant,
    reason = "it is made and taken apart at once; a box would be one more allocation per call"
)]
#[derive(Clone, Debug)]
pub enum Front {
    /// As many frames of zeros.
    Zeros(usize),
    /// As many copies of the first frame.
    First(usize),
    /// These frames, `[B, n, C, H, W]`.
    Frames(Tensor<5>),
}

/// Steps between output frames and between output pixels, and the zeros around a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Steps {
    pub time: usize,
    pub space: usize,
    /// Zeros before the first row and column, and after the last.
    pub pad: [usize; 2],
}

impl Steps {
    /// Step 1, and the padding that keeps height and width for a kernel of odd size.
    pub fn same(kernel: usize) -> Steps {
        Steps { time: 1, space: 1, pad: [kernel / 2; 2] }
    }
}

/// The convolution, plus `onto` if it is given. Any float type; sums are f32.
///
/// # Panics
/// If shapes do not fit, or the frames and the pixels are fewer than the kernel's: the caller checks its configuration.
pub fn conv3d(
    x: Tensor<5>,
    front: Front,
    weight: Tensor<5>,
    bias: Tensor<1>,
    steps: Steps,
    onto: Option<Tensor<5>>,
) -> Tensor<5> {
    let dtype = FloatDType::from(x.dtype());
    let fine = x.dtype() != DType::BF16 || weight.dtype() != DType::BF16;
    let call = Call { fine, ..Call::new(x.dims(), &front, weight.dims(), steps, onto.is_some()) };
    assert_eq!(bias.dims(), [call.outputs()], "one bias per output channel");
    if let Some(onto) = &onto {
        assert_eq!(onto.dims(), call.result(), "what is added has the shape of the result");
    }
    let bias = single(bias);
    let past = match front {
        Front::Frames(frames) => single(frames),
        _ => bias.clone(),
    };
    let onto = onto.map_or_else(|| bias.clone(), single);
    let y = Dispatch::causal_conv3d(single(x), past, single(weight), bias, onto, call);
    Tensor::<5>::from_dispatch(y).cast(dtype)
}

fn single<const D: usize>(tensor: Tensor<D>) -> DispatchTensor {
    tensor.cast(FloatDType::F32).into_dispatch()
}

/// The sizes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    /// `[B, T, C, H, W]`.
    x: [usize; 5],
    /// `[O, C, kt, kh, kw]`.
    weight: [usize; 5],
    /// Frames before the first; they are zeros, unless they repeat the first or are given.
    front: usize,
    repeats: bool,
    given: bool,
    /// A tensor is added to the result.
    adds: bool,
    steps: Steps,
    /// Whether x or the weight had more bits than bf16.
    fine: bool,
}

impl Call {
    fn new(x: [usize; 5], front: &Front, weight: [usize; 5], steps: Steps, adds: bool) -> Call {
        let (repeats, given) = (matches!(front, Front::First(_)), matches!(front, Front::Frames(_)));
        let front = match front {
            Front::Zeros(count) | Front::First(count) => *count,
            Front::Frames(frames) => {
                let [b, count, c, h, w] = frames.dims();
                assert_eq!([b, c, h, w], [x[0], x[2], x[3], x[4]], "frames in front are like those of x");
                count
            }
        };
        assert_eq!(x[2], weight[1], "x has the channels that the weight wants");
        assert!(steps.time > 0 && steps.space > 0, "a step is at least 1");
        assert!(
            x[1] > 0 && front + x[1] >= weight[2],
            "at least {} frames for {weight:?}, not {front}+{x:?}",
            weight[2]
        );
        let sides = [x[3], x[4]].map(|side| side + steps.pad[0] + steps.pad[1]);
        assert!(sides[0] >= weight[3] && sides[1] >= weight[4], "a picture at least as large as the kernel {weight:?}");
        Call { x, weight, front, repeats, given, adds, steps, fine: true }
    }

    fn outputs(&self) -> usize {
        self.weight[0]
    }

    /// `[B, T', O, H', W']`.
    fn result(&self) -> [usize; 5] {
        let [b, t, _, h, w] = self.x;
        let [o, _, kt, kh, kw] = self.weight;
        let side =
            |size: usize, kernel: usize| (size + self.steps.pad[0] + self.steps.pad[1] - kernel) / self.steps.space + 1;
        [b, (self.front + t - kt) / self.steps.time + 1, o, side(h, kh), side(w, kw)]
    }

    /// `[B, n, C, H, W]` of the frames in front.
    fn past(&self) -> [usize; 5] {
        let [b, _, c, h, w] = self.x;
        [b, self.front, c, h, w]
    }

    /// Multiplications of the convolution.
    fn products(&self) -> u64 {
        let [_, c, kt, kh, kw] = self.weight;
        (self.result().iter().product::<usize>() * c * kt * kh * kw) as u64
    }
}

/// The op on each backend, in f32. `past`, the frames in front, and `onto` mean something only where the call says that
/// they are given; else any tensor stands in their place, as an extension of Burn's backends has no optional tensors.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait Conv3dOps: Backend {
    fn causal_conv3d(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;

    /// Gradient of x, or of the frames in front of it.
    fn conv3d_input_gradient(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        of_past: bool,
        call: Call,
    ) -> FloatTensor<Self>;

    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;

    fn conv3d_bias_gradient(grad: FloatTensor<Self>, call: Call) -> FloatTensor<Self>;
}

impl<B: Conv3dOps, C: CheckpointStrategy> Conv3dOps for Autodiff<B, C> {
    fn causal_conv3d(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Convolution;
        impl<B: Conv3dOps> Backward<B, 5> for Convolution {
            /// x, past, weight.
            type State = ([FloatTensor<B>; 3], Call);

            fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
                let ([x, past, weight], call) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let [of_x, of_past, of_weight, of_bias, of_onto] = ops.parents;
                if let Some(node) = of_x {
                    let x = B::conv3d_input_gradient(weight.clone(), grad.clone(), false, call);
                    grads.register::<B>(node.id, x);
                }
                if let Some(node) = of_past.filter(|_| call.given) {
                    let past = B::conv3d_input_gradient(weight, grad.clone(), true, call);
                    grads.register::<B>(node.id, past);
                }
                if let Some(node) = of_weight {
                    grads.register::<B>(node.id, B::conv3d_weight_gradient(x, past, grad.clone(), call));
                }
                if let Some(node) = of_bias {
                    grads.register::<B>(node.id, B::conv3d_bias_gradient(grad.clone(), call));
                }
                if let Some(node) = of_onto.filter(|_| call.adds) {
                    grads.register::<B>(node.id, grad);
                }
            }
        }

        let nodes = [x.node(), past.node(), weight.node(), bias.node(), onto.node()];
        let [x, past, weight, bias, onto] = [x, past, weight, bias, onto].map(|tensor| tensor.into_primitive());
        let y = B::causal_conv3d(x.clone(), past.clone(), weight.clone(), bias, onto, call);
        match Convolution.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([x, past, weight], call), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn conv3d_input_gradient(_: FloatTensor<Self>, _: FloatTensor<Self>, _: bool, _: Call) -> FloatTensor<Self> {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }

    fn conv3d_weight_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Call,
    ) -> FloatTensor<Self> {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }

    fn conv3d_bias_gradient(_: FloatTensor<Self>, _: Call) -> FloatTensor<Self> {
        unreachable!("Burn differentiates once: a backward pass runs on the inner backend")
    }
}

/// Case: see `reference`.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "conv3d",
    cases: &[
        &[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0],
        &[2, 3, 3, 5, 7, 5, 3, 3, 3, 2, 0, 1, 1, 1, 1, 1],
        // A map of one cell: of 3 x 3 taps only the middle one meets it.
        &[2, 6, 3, 1, 1, 4, 3, 3, 3, 2, 1, 1, 1, 1, 1, 0],
        // As the dLDM has them: within frames, over time, pointwise, steps in space and in time.
        &[2, 3, 20, 6, 5, 17, 1, 3, 3, 0, 0, 1, 1, 1, 1, 0],
        &[1, 5, 17, 4, 4, 20, 3, 1, 1, 2, 1, 1, 1, 0, 0, 1],
        &[1, 2, 192, 3, 3, 9, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1],
        &[1, 2, 8, 8, 6, 8, 1, 3, 3, 0, 0, 1, 2, 0, 1, 1],
        &[2, 5, 8, 2, 3, 7, 3, 1, 1, 2, 1, 2, 1, 0, 0, 1],
        // As the VAE streams: given frames in front, steps in time, a first layer of three channels.
        &[1, 4, 3, 9, 50, 8, 3, 3, 3, 2, 2, 1, 1, 1, 1, 0],
        &[1, 4, 16, 5, 5, 16, 3, 1, 1, 1, 2, 2, 1, 0, 0, 0],
        &[1, 1, 30, 12, 11, 33, 3, 3, 3, 2, 2, 1, 1, 1, 1, 1],
        // Steps and paddings that no model has.
        &[1, 7, 2, 11, 10, 3, 2, 4, 4, 3, 1, 3, 3, 2, 0, 1],
        &[1, 2, 2, 1, 3, 2, 1, 1, 1, 0, 0, 1, 2, 1, 0, 0],
    ],
    sizes: &[
        &[1, 5, 96, 120, 160, 96, 3, 3, 3, 2, 0, 1, 1, 1, 1, 0],
        &[1, 5, 256, 60, 104, 256, 1, 3, 3, 0, 0, 1, 1, 1, 1, 0],
        &[1, 5, 512, 15, 26, 512, 3, 1, 1, 2, 1, 1, 1, 0, 0, 1],
        &[4, 5, 40, 16, 16, 40, 1, 3, 3, 0, 0, 1, 1, 1, 1, 0],
    ],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| reference::run(case, inputs[0].float()),
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 2e-5,
        devices: 2e-5,
        gradient: 5e-4,
        reason: "sums of up to 270 products of values below 1 in f32; gradients have up to 1890 terms and reach 140, so \
                 this is 4e-6 of them (a tiled sum on wgpu was off by 2.2e-4)",
    },
    cost: |case| {
        let call = reference::call(case);
        let values = [call.x, call.weight, call.result()].map(|shape| shape.iter().product::<usize>());
        Cost { bytes: 4 * values.iter().sum::<usize>() as u64, flops: 2 * call.products() }
    },
};
