//! Attention, blockwise: `softmax(q k^T / sqrt(D)) v` without the N x M scores, forward and backward.
//!
//! Shapes: q [B, heads, N, D], k and v [B, shared, M, D] -> [B, heads, N, D]; `shared` divides `heads`, and neighbouring query
//!         heads share a head of keys. Any strides; f32 inside.
//! Way:    keys pass in blocks; of each query's row its largest score and its sum are kept, and what was gathered shrinks
//!         when a larger score comes. Backward computes the scores again from the row's saved log-sum.
//! Source: Dao 2023, arXiv 2307.08691; Milakov and Gimelshein 2018, arXiv 1805.02867.
//! Differs: key tokens that are all 0 are counted, not made. A query that sees nothing yields 0 instead of NaN.

mod backward;
#[cfg(feature = "cube")]
mod cores;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod reference;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::{Cost, Kernel, Tolerance};

/// What a query sees.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    pub order: Order,
    /// [B, M], 0 at keys that nobody sees, 1 at all others.
    pub real: Option<Tensor<2>>,
    /// Keys and values beside the given ones that are all 0 and that everybody sees: each adds a score of 0 to the softmax,
    /// and nothing to the result.
    pub zeros: usize,
}

/// Which keys a query sees by its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All of them.
    #[default]
    Any,
    /// Those up to its own place; queries are the last N of M places.
    Causal,
    /// Queries come in frames of `queries` each; frame i sees the first (i + 1) x `keys` keys, and those from `rest` on.
    Frames { queries: usize, keys: usize, rest: usize },
}

impl Sight {
    pub fn all() -> Sight {
        Sight::default()
    }

    pub fn causal() -> Sight {
        Sight { order: Order::Causal, ..Sight::default() }
    }

    /// Frame i of `queries` queries each sees the first (i + 1) x `keys` keys.
    pub fn frames(queries: usize, keys: usize) -> Sight {
        Sight { order: Order::Frames { queries, keys, rest: usize::MAX }, ..Sight::default() }
    }
}

/// `softmax(q k^T / sqrt(D)) v` over the keys in sight. Keeps the float type of `q`.
///
/// # Panics
/// The shapes do not fit each other.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<4> {
    let ([b, heads, n, d], [_, shared, m, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), v.dims(), "keys and values have one shape");
    assert_eq!([k.dims()[0], k.dims()[3]], [b, d], "queries and keys have one batch and one width");
    assert!(shared > 0 && heads % shared == 0, "{heads} query heads cannot share {shared} key heads evenly");
    let reach = Reach::new(sight.order, n, m);
    let fine = [&q, &k, &v].into_iter().any(|x| x.dtype() != DType::BF16);
    let form = Form { reach, zeros: sight.zeros, marked: sight.real.is_some(), fine };
    let real = match &sight.real {
        Some(real) => {
            assert_eq!(real.dims(), [b, m], "one mark per key");
            real.clone().detach().cast(FloatDType::F32).into_dispatch()
        }
        // Something has to stand in the marks' place; it is not read.
        None => v.clone().detach().into_dispatch(),
    };
    let dtype = FloatDType::from(q.dtype());
    let [q, k, v] = [q, k, v].map(|x| x.cast(FloatDType::F32).into_dispatch());
    let (out, _) = Dispatch::mix(q, k, v, real, form);
    Tensor::<4>::from_dispatch(out).cast(dtype)
}

/// The op's plain arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    reach: Reach,
    zeros: usize,
    /// Whether the marks of real keys are read.
    marked: bool,
    /// Whether q, k and v had more bits than bf16.
    fine: bool,
}

/// [`Order`] in numbers: query i sees keys below `first + (i / rows + 1) step`, and those from `rest` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    rows: usize,
    step: usize,
    first: isize,
    rest: usize,
    keys: usize,
}

impl Reach {
    fn new(order: Order, queries: usize, keys: usize) -> Reach {
        match order {
            Order::Any => Reach { rows: queries.max(1), step: keys, first: 0, rest: keys, keys },
            Order::Causal => Reach { rows: 1, step: 1, first: keys as isize - queries as isize, rest: keys, keys },
            Order::Frames { queries: rows, keys: step, rest } => {
                Reach { rows: rows.max(1), step, first: 0, rest: rest.min(keys), keys }
            }
        }
    }

    /// Keys below this one are seen.
    fn limit(&self, query: usize) -> usize {
        let limit = self.first + ((query / self.rows + 1) * self.step) as isize;
        (limit.max(0) as usize).min(self.keys)
    }

    /// Whether one of the queries sees one of the keys.
    fn meets(&self, queries: &std::ops::Range<usize>, keys: &std::ops::Range<usize>) -> bool {
        // Later queries see at least what earlier ones do.
        let below = queries.end > 0 && keys.start < self.limit(queries.end - 1);
        below || keys.end > self.rest
    }
}

/// The op on each backend: f32, shapes as in the module's head. `real` is [B, M].
///
/// `mix` also yields the log of base 2 of each row's sum of exponentials, [B, heads, N]: infinite where a query sees
/// nothing. `mix_backward` takes it, and `inner` [B, heads, N]: the products of a row's result and its gradient.
#[backend_extension(Autodiff, Cube: cfg(feature = "cube"), Flex)]
trait AttentionOps: Backend {
    fn mix(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn mix_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        inner: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// What the backward pass of [`AttentionOps::attention`] needs.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    /// q, k and v.
    inputs: [FloatTensor<B>; 3],
    real: FloatTensor<B>,
    out: FloatTensor<B>,
    sums: FloatTensor<B>,
    form: Form,
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn mix(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Again;
        impl<B: AttentionOps> Backward<B, 3> for Again {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let Saved { inputs, real, out, sums, form } = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let [q, k, v] = inputs;
                let inner = B::float_sum_dim(B::float_mul(out, grad.clone()), 3);
                let (q, k, v) = B::mix_backward(q, k, v, real, sums, inner, grad, form);
                for (parent, grad) in ops.parents.iter().zip([q, k, v]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let inputs = [&q, &k, &v].map(|x| x.primitive().clone());
        let real = real.into_primitive();
        let [a, b, c] = inputs.clone();
        let (out, sums) = B::mix(a, b, c, real.clone(), form);
        let constant = Self::from_inner(sums.clone());
        let out = match Again.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { inputs, real, out: out.clone(), sums, form }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (out, constant)
    }

    fn mix_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
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

/// Case: [batch, heads, shared heads, queries, keys, width, order, frame's queries, its keys, rest, zeros, hidden keys].
/// The input is q, k and v, one behind the other, then the marks of real keys.
pub(crate) const KERNEL: Kernel = Kernel {
    name: "attention",
    cases: &[
        &[1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        &[2, 4, 4, 100, 100, 32, 1, 0, 0, 0, 0, 0],
        &[1, 6, 2, 7, 19, 20, 1, 0, 0, 0, 0, 0],
        &[2, 2, 1, 5, 3, 9, 1, 0, 0, 0, 0, 0],
        &[3, 2, 2, 33, 41, 12, 0, 0, 0, 0, 37, 0],
        &[1, 1, 1, 65, 15, 24, 2, 13, 3, 99, 0, 0],
        &[1, 2, 2, 24, 17, 8, 2, 6, 1, 4, 3, 0],
        &[2, 2, 1, 37, 37, 16, 1, 0, 0, 0, 0, 5],
        &[1, 1, 1, 3, 700, 130, 0, 0, 0, 0, 0, 9],
        &[1, 2, 1, 300, 300, 64, 1, 0, 0, 0, 0, 0],
    ],
    sizes: &[
        &[1, 16, 16, 2048, 2048, 128, 1, 0, 0, 0, 0, 0],
        &[1, 12, 12, 512, 512, 64, 1, 0, 0, 0, 0, 0],
        &[1, 4, 4, 100, 100, 32, 1, 0, 0, 0, 0, 0],
        &[1, 16, 16, 1560, 100, 128, 0, 0, 0, 0, 420, 0],
    ],
    inputs: reference::inputs,
    reference: reference::result,
    run: |case, inputs| {
        let parts = reference::Parts::new(case);
        let all = inputs[0].float();
        let part = |index: usize| all.clone().slice([parts.ranges[index].clone()]).reshape(parts.shapes[index]);
        let mut sight = reference::sight(case);
        sight.real = (case[11] > 0).then(|| inputs[1].float().reshape([case[0], case[4]]));
        attention(part(0), part(1), part(2), &sight).reshape([-1])
    },
    gradient: Some(reference::gradient),
    tolerance: Tolerance {
        reference: 3e-6,
        devices: 3e-6,
        gradient: 2e-5,
        reason: "f32 sums over D, M and N terms of about 1, and an exponential that is right to 2 units in the last place",
    },
    cost: |case| {
        let [b, heads, shared, n, m, d] = [0, 1, 2, 3, 4, 5].map(|i| case[i]);
        let reach = Reach::new(reference::sight(case).order, n, m);
        let seen: usize = (0..n).map(|query| reach.limit(query).max(m - reach.rest)).sum();
        Cost { bytes: (4 * b * d * (2 * heads * n + 2 * shared * m)) as u64, flops: (4 * b * heads * seen * d) as u64 }
    },
};
