//! Memory of a causal network between the calls in which a clip passes.

use burn::tensor::Tensor;

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

    /// Ends the turn of a convolution: it keeps the last `count` frames of `seen`.
    pub(super) fn put(&mut self, seen: &Tensor<5>, count: usize) {
        if self.keep {
            let frames = seen.dims()[1];
            // Frame by frame, so that the concatenation copies; a plain slice would keep all of `seen` alive.
            let last = (frames - count..frames).map(|index| seen.clone().narrow(1, index, 1));
            self.slots[self.next] = Some(Tensor::cat(last.collect(), 1));
        }
        self.next += 1;
    }
}

pub(super) fn zero_frames(like: &Tensor<5>, count: usize) -> Tensor<5> {
    let [b, _, c, h, w] = like.dims();
    Tensor::zeros([b, count, c, h, w], (&like.device(), like.dtype()))
}

/// A convolution over time whose frames before the first are zeros.
pub(super) fn causal(conv: &CausalConv3d, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
    let context = conv.context();
    if context == 0 {
        return conv.forward(x);
    }
    let past = stream.take().unwrap_or_else(|| zero_frames(&x, context));
    let x = Tensor::cat(vec![past, x], 1);
    stream.put(&x, context);
    conv.forward(x)
}
