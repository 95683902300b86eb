//! Memory of a causal network between the calls in which a clip passes.

use burn::tensor::Tensor;
use vw2_kernels::Front;

use crate::nn::CausalConv3d;

/// What the time convolutions of one network remember between calls, in the order in which they run.
pub(super) struct Stream {
    slots: Vec<Option<Tensor<5>>>,
    next: usize,
    keep: bool,
}

impl Stream {
    /// For a clip that passes in several calls.
    pub(super) fn keeping() -> Stream {
        Stream { slots: Vec::new(), next: 0, keep: true }
    }

    /// For a clip that passes in one call: nothing is remembered.
    pub(super) fn once() -> Stream {
        Stream { slots: Vec::new(), next: 0, keep: false }
    }

    pub(super) fn is_once(&self) -> bool {
        !self.keep
    }

    /// To be said before each call of the network.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
    }

    /// What the convolution whose turn it is kept in the last call; `None` in the first call.
    pub(super) fn take(&mut self) -> Option<Tensor<5>> {
        if self.slots.len() == self.next {
            self.slots.push(None);
        }
        self.slots[self.next].take()
    }

    /// Ends the turn of a convolution that saw these frames, one part after the other: it keeps the last `count` of them.
    pub(super) fn put(&mut self, seen: &[&Tensor<5>], count: usize) {
        if self.keep {
            // Frame by frame, so that the concatenation copies; a plain slice would keep all that was seen alive.
            let frames = seen.iter().rev().flat_map(|part| {
                let count = part.dims()[1];
                (0..count).rev().map(|index| Tensor::clone(part).narrow(1, index, 1))
            });
            let mut last: Vec<Tensor<5>> = frames.take(count).collect();
            last.reverse();
            self.slots[self.next] = Some(Tensor::cat(last, 1));
        }
        self.next += 1;
    }
}

pub(super) fn zero_frames(like: &Tensor<5>, count: usize) -> Tensor<5> {
    let [b, _, c, h, w] = like.dims();
    Tensor::zeros([b, count, c, h, w], (&like.device(), like.dtype()))
}

/// A convolution over time whose frames before the first are zeros. Adds the result to `onto` if that is given.
pub(super) fn causal(conv: &CausalConv3d, x: Tensor<5>, stream: &mut Stream, onto: Option<Tensor<5>>) -> Tensor<5> {
    let context = conv.context();
    if context == 0 {
        return conv.forward(x, Front::Zeros(0), onto);
    }
    let past = stream.take().unwrap_or_else(|| zero_frames(&x, context));
    stream.put(&[&past, &x], context);
    conv.forward(x, Front::Frames(past), onto)
}
