//! Haar wavelets of 3D patches, in one pass: pixels of `p` frames x `p` rows x `p` columns to the sub-bands of one cell, and
//! back.
//!
//! Shapes: pixels [B, K, 1 + p m, H, W] <-> cells, frames first, [B, m + 1, p^3 K, H/p, W/p].
//! Way:    pairs of pixels along time, height and width become (low, high) = (b x0 + a x1, a x0 - b x1), from neighbours to
//!         what lies further apart; (a, b) are the stored taps. Channels: coarsest sub-band, .., finest sub-band, colour; a
//!         sub-band's letters are time, height, width, low before high. Cells are divided by sqrt(8) at each level.
//! Source: Cosmos tokenizer, arXiv 2501.03575 (patcher of video).
//! Note:   each step is its own transpose, so the gradient of one direction is the other one.

#[cfg(feature = "cube")]
mod cube;
mod flex;
mod reference;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{FloatDType, Tensor};

use crate::{Cost, Kernel, Tolerance};

/// What a clip's first frame is in its cell of `p` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HaarFront {
    /// All of them; from cells, their sum.
    Copies,
    /// The last one, behind zeros; from cells, the last one.
    Last,
}

/// Sub-bands of a clip's cells: x [B, K, 1 + p m, H, W], taps [2] -> [B, m + 1, p^3 K, H/p, W/p]; the first frame fills a
/// cell by its copies. Keeps the float type of `x`; no gradient passes to the taps.
///
/// # Panics
/// `patch` is no power of two, or frames, height and width do not consist of patches.
pub fn haar_cells(x: Tensor<5>, taps: Tensor<1>, patch: usize) -> Tensor<5> {
    let [_, _, t, h, w] = x.dims();
    assert!(patch.is_power_of_two(), "a patch of {patch} is no power of two");
    let fits = t % patch == 1 % patch && h % patch == 0 && w % patch == 0;
    assert!(fits, "[{t}, {h}, {w}] does not consist of a first frame and patches of {patch}");
    let scale = 8f64.powi(patch.ilog2() as i32).sqrt().recip() as f32;
    moved(x, taps, Dispatch::haar_cells, Form { patch, scale, front: HaarFront::Copies })
}

/// The inverse of [`haar_cells`]; of the first cell, only the last frame is kept.
///
/// # Panics
/// `patch` is no power of two, or channels do not consist of its sub-bands.
pub fn haar_frames(z: Tensor<5>, taps: Tensor<1>, patch: usize) -> Tensor<5> {
    let c = z.dims()[2];
    assert!(patch.is_power_of_two(), "a patch of {patch} is no power of two");
    assert!(c.is_multiple_of(patch.pow(3)), "{c} channels are not sub-bands of patches of {patch}");
    let scale = 8f64.powi(patch.ilog2() as i32).sqrt() as f32;
    moved(z, taps, Dispatch::haar_frames, Form { patch, scale, front: HaarFront::Last })
}

type Primitive = FloatTensor<Dispatch>;

fn moved(x: Tensor<5>, taps: Tensor<1>, way: fn(Primitive, Primitive, Form) -> Primitive, form: Form) -> Tensor<5> {
    assert_eq!(taps.dims(), [2], "two taps");
    let dtype = FloatDType::from(x.dtype());
    let taps = taps.detach().cast(FloatDType::F32).into_dispatch();
    Tensor::<5>::from_dispatch(way(x.cast(FloatDType::F32).into_dispatch(), taps, form)).cast(dtype)
}

/// The op's plain arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    patch: usize,
    scale: f32,
    front: HaarFront,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    clips: usize,
    colours: usize,
    /// Cells along time, height and width.
    cells: [usize; 3],
    patch: usize,
}

impl Sizes {
    fn of_frames([clips, colours, t, h, w]: [usize; 5], patch: usize) -> Sizes {
        Sizes { clips, colours, cells: [(t - 1) / patch + 1, h / patch, w / patch], patch }
    }

    fn of_cells([clips, t, c, h, w]: [usize; 5], patch: usize) -> Sizes {
        Sizes { clips, colours: c / patch.pow(3), cells: [t, h, w], patch }
    }

    fn frames(&self) -> [usize; 5] {
        let ([t, h, w], p) = (self.cells, self.patch);
        [self.clips, self.colours, (t - 1) * p + 1, h * p, w * p]
    }

    fn bands(&self) -> [usize; 5] {
        let [t, h, w] = self.cells;
        [self.clips, t, self.patch.pow(3) * self.colours, h, w]
    }
}

/// The sub-band that stands where the pixel (time, row, column) was: its bits, level by level.
fn band([t, y, x]: [usize; 3], patch: usize) -> usize {
    (0..patch.ilog2())
        .map(|level| ((t >> level & 1) * 4 + (y >> level & 1) * 2 + (x >> level & 1)) << (3 * level))
        .sum()
}

/// The op on each backend: f32, shapes as in the module's head.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait HaarOps: Backend {
    fn haar_cells(x: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self>;
    fn haar_frames(z: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self>;
}

impl<B: HaarOps, C: CheckpointStrategy> HaarOps for Autodiff<B, C> {
    fn haar_cells(x: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ToFrames;
        impl<B: HaarOps> Backward<B, 1> for ToFrames {
            type State = (FloatTensor<B>, Form);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (taps, form) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                if let [Some(parent)] = ops.parents {
                    grads.register::<B>(parent.id, B::haar_frames(grad, taps, form));
                }
            }
        }
        let taps = taps.into_primitive();
        let cells = B::haar_cells(x.primitive().clone(), taps.clone(), form);
        match ToFrames.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((taps, form), cells),
            OpsKind::UnTracked(prep) => prep.finish(cells),
        }
    }

    fn haar_frames(z: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ToCells;
        impl<B: HaarOps> Backward<B, 1> for ToCells {
            type State = (FloatTensor<B>, Form);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (taps, form) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                if let [Some(parent)] = ops.parents {
                    grads.register::<B>(parent.id, B::haar_cells(grad, taps, form));
                }
            }
        }
        let taps = taps.into_primitive();
        let frames = B::haar_frames(z.primitive().clone(), taps.clone(), form);
        match ToCells.prepare::<C>([z.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((taps, form), frames),
            OpsKind::UnTracked(prep) => prep.finish(frames),
        }
    }
}

/// Case: [clips, colours, cells along time, height and width, patch, 1 for the way back].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "haar",
    cases: &[
        &[1, 1, 1, 1, 1, 1, 0],
        &[2, 3, 2, 3, 5, 2, 0],
        &[2, 3, 2, 3, 5, 2, 1],
        &[1, 3, 3, 2, 19, 4, 0],
        &[1, 3, 3, 2, 19, 4, 1],
        &[1, 2, 2, 1, 3, 8, 0],
        &[1, 2, 2, 1, 3, 8, 1],
    ],
    sizes: &[&[1, 3, 5, 60, 104, 4, 0], &[1, 3, 5, 60, 104, 4, 1]],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let sizes = reference::sizes(case);
        let (x, taps) = (inputs[0].float(), inputs[1].float());
        if case[6] == 1 {
            haar_frames(x.reshape(sizes.bands()), taps, case[5]).reshape([-1])
        } else {
            haar_cells(x.reshape(sizes.frames()), taps, case[5]).reshape([-1])
        }
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 5e-5,
        devices: 5e-5,
        gradient: 5e-5,
        reason: "f32 sums of 512 values of at most 2, on the way back times 23 and after 9 steps of rounding",
    },
    cost: |case| {
        let sizes = reference::sizes(case);
        let (count, steps) = (sizes.bands().iter().product::<usize>(), 3 * sizes.patch.ilog2() as usize);
        Cost { bytes: 8 * count as u64, flops: (count * (3 * steps / 2 + 1)) as u64 }
    },
};

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn taps() -> Tensor<1> {
        Tensor::from_floats([std::f32::consts::FRAC_1_SQRT_2; 2], &Device::flex())
    }

    #[test]
    fn the_first_band_is_the_mean_of_a_patch() {
        let device = Device::flex();
        device.seed(3);
        let x = Tensor::<5>::random([1, 1, 5, 4, 4], Distribution::Default, &device);
        let cells = haar_cells(x.clone(), taps(), 4);
        let mean: f32 = x.slice([0..1, 0..1, 1..5, 0..4, 0..4]).mean().into_scalar();
        let low: f32 = cells.slice([0..1, 1..2, 0..1, 0..1, 0..1]).into_scalar();
        assert!((low - mean).abs() < 1e-6, "seed 3: {low} and {mean}");
    }

    #[test]
    fn the_way_back_is_the_inverse() {
        let device = Device::flex();
        device.seed(5);
        for patch in [1, 2, 4, 8] {
            let shape = [2, 3, 1 + 2 * patch, 3 * patch, 17 * patch];
            let x = Tensor::<5>::random(shape, Distribution::Default, &device);
            let back = haar_frames(haar_cells(x.clone(), taps(), patch), taps(), patch);
            let difference: f32 = (back - x).abs().max().into_scalar();
            assert!(difference < 2e-6, "seed 5, patch {patch}: {difference}");
        }
    }

    #[test]
    #[should_panic(expected = "[4, 8, 8] does not consist of a first frame and patches of 4")]
    fn a_clip_that_is_cut_otherwise_is_refused() {
        haar_cells(Tensor::ones([1, 3, 4, 8, 8], &Device::flex()), taps(), 4);
    }
}
