//! Blocks whose inner values are not kept for the way back, but computed again there: memory for time.
//!
//! Kept are what each block is given and what it hands on; its inner values live only while the way back passes it. That
//! costs one more forward pass, about a third of a training step.
//!
//! Within [`taped`], [`block`] computes without a graph, hands its result on as the start of a new graph, and notes itself.
//! [`Tape::gradients`] goes back through the loss, then through the notes from the last to the first: each block is computed
//! once more, now with a graph, and gone back through from the gradient of what it handed on. Values that are used by
//! blocks as well as beside them pass through [`cut`] first, since a graph can be gone back through only once.
//!
//! Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.

use std::cell::RefCell;

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};

use crate::nn::Rotary;
use crate::train::Grads;
use crate::weights::Named;

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// What the blocks of a forward pass noted, from the first to the last.
#[derive(Default)]
pub struct Tape(Vec<Note>);

/// A gradient for each of several values, flat and without graph, where the loss depends on it.
pub(crate) type Flat = Vec<Option<Tensor<1>>>;

/// Takes gradients out of those of a backward pass, and adds them.
type Take = Box<dyn Fn(&mut Gradients, &mut Flat)>;

/// From gradients to the scalar whose backward pass goes on towards the front.
type Back = Box<dyn FnOnce(&Flat) -> Option<Tensor<1>>>;

struct Note {
    /// Of what was handed on, as far as they are known.
    grads: Flat,
    take: Take,
    back: Back,
}

/// Runs a forward pass whose blocks are computed again on the way back; `false`: one that keeps everything. The tape is to
/// be used up by [`Tape::gradients`].
pub fn taped<R>(recompute: bool, pass: impl FnOnce() -> R) -> (R, Tape) {
    let before = TAPE.replace(recompute.then(Tape::default));
    let result = pass();
    (result, TAPE.replace(before).unwrap_or_default())
}

/// Whether blocks are noted now.
pub(crate) fn is_on() -> bool {
    TAPE.with_borrow(Option::is_some)
}

/// What blocks are given beside their weights.
pub(crate) trait Values: Clone + 'static {
    /// The same, without graph.
    fn inner(self) -> Self;

    /// The same, as the start of a graph of its own.
    fn leaf(self) -> Self;

    /// Appends the gradient of each value, or takes it out of those of a backward pass and adds it: `grads` from `place` on.
    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize);

    /// The sum of products of values and gradients: its backward pass takes these gradients further.
    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>>;
}

impl<const D: usize> Values for Tensor<D> {
    fn inner(self) -> Self {
        Tensor::inner(self)
    }

    fn leaf(self) -> Self {
        Tensor::from_inner(Tensor::inner(self)).require_grad()
    }

    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize) {
        if grads.len() == *place {
            grads.push(None);
        }
        if let Some(found) = self.grad_remove(pass) {
            let found = found.reshape([-1]);
            grads[*place] = Some(match grads[*place].take() {
                Some(before) => before + found,
                None => found,
            });
        }
        *place += 1;
    }

    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>> {
        let grad = grads[*place].clone();
        *place += 1;
        Some((self.clone().reshape([-1]) * Tensor::from_inner(grad?)).sum())
    }
}

impl<A: Values, B: Values> Values for (A, B) {
    fn inner(self) -> Self {
        (self.0.inner(), self.1.inner())
    }

    fn leaf(self) -> Self {
        (self.0.leaf(), self.1.leaf())
    }

    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize) {
        self.0.collect_grads(pass, grads, place);
        self.1.collect_grads(pass, grads, place);
    }

    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>> {
        let (a, b) = (self.0.along(grads, place), self.1.along(grads, place));
        match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    }
}

impl<A: Values> Values for Option<A> {
    fn inner(self) -> Self {
        self.map(A::inner)
    }

    fn leaf(self) -> Self {
        self.map(A::leaf)
    }

    fn collect_grads(&self, pass: &mut Gradients, grads: &mut Flat, place: &mut usize) {
        self.iter().for_each(|values| values.collect_grads(pass, grads, place));
    }

    fn along(&self, grads: &Flat, place: &mut usize) -> Option<Tensor<1>> {
        self.as_ref().and_then(|values| values.along(grads, place))
    }
}

/// What no gradient is wanted of: it takes part in no graph, and is only brought to where the block computes.
#[derive(Clone)]
pub(crate) struct Fixed<T>(pub(crate) T);

/// Tensors that nothing is trained by.
pub(crate) trait Inner: Clone + 'static {
    /// The same, without graph.
    fn inner(self) -> Self;
}

impl Inner for Rotary {
    fn inner(self) -> Self {
        Rotary { cos: self.cos.inner(), sin: self.sin.inner() }
    }
}

impl Inner for vw2_kernels::Sight {
    fn inner(self) -> Self {
        vw2_kernels::Sight { real: self.real.map(Tensor::inner), ..self }
    }
}

impl<A: Inner, B: Inner> Inner for (A, B) {
    fn inner(self) -> Self {
        (self.0.inner(), self.1.inner())
    }
}

impl<T: Inner> Values for Fixed<T> {
    fn inner(self) -> Self {
        Fixed(self.0.inner())
    }

    fn leaf(self) -> Self {
        self
    }

    fn collect_grads(&self, _: &mut Gradients, _: &mut Flat, _: &mut usize) {}

    fn along(&self, _: &Flat, _: &mut usize) -> Option<Tensor<1>> {
        None
    }
}

/// `forward` of a block of a model. Where a tape runs, the block is noted and its inner values are not kept.
pub(crate) fn block<M, V, const D: usize>(
    module: &M,
    values: V,
    forward: impl Fn(&M, V) -> Tensor<D> + 'static,
) -> Tensor<D>
where
    M: Module + 'static,
    V: Values,
{
    if !is_on() {
        return forward(module, values);
    }
    let result = forward(&module.valid(), values.clone().inner());
    let result = Tensor::from_inner(result).require_grad();
    let module = module.clone();
    note(result.clone(), move |grads| forward(&module, values).along(grads, &mut 0));
    result
}

/// The values as the start of a graph of their own, where a tape runs. Wanted for what blocks use that is also used beside
/// them, or by several of them. The graph before them is gone back through once, with the gradients of all their uses. At
/// least one of them depends on something that is trained.
pub(crate) fn cut<V: Values>(values: V) -> V {
    if !is_on() {
        return values;
    }
    let result = values.clone().leaf();
    note(result.clone(), move |grads| values.along(grads, &mut 0));
    result
}

fn note<V: Values>(result: V, back: impl FnOnce(&Flat) -> Option<Tensor<1>> + 'static) {
    let take = move |pass: &mut Gradients, grads: &mut Flat| result.collect_grads(pass, grads, &mut 0);
    let note = Note { grads: Vec::new(), take: Box::new(take), back: Box::new(back) };
    TAPE.with_borrow_mut(|tape| tape.as_mut().expect("the tape runs").0.push(note));
}

impl Tape {
    /// Goes back from `loss` through the graph and all that was noted, and takes the gradients of `model`'s parameters.
    ///
    /// # Panics
    /// The loss depends on nothing that is trained.
    pub fn gradients(self, loss: &Tensor<1>, model: &mut impl Named) -> Grads {
        let Tape(mut notes) = self;
        let mut grads = Grads::default();
        let mut next = Some(loss.clone());
        while let Some(from) = next {
            let mut pass = from.backward();
            grads.add(Grads::take(&mut pass, model));
            notes.iter_mut().for_each(|note| (note.take)(&mut pass, &mut note.grads));
            // What the loss does not depend on is passed over.
            next = std::iter::from_fn(|| notes.pop()).find_map(|note| (note.back)(&note.grads));
        }
        grads
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::{Device, Distribution, Int, TensorData};

    use super::*;
    use crate::ar::{Ar, ArConfig, next_id_loss};
    use crate::dit::{DitConfig, Inputs, VideoDit};
    use crate::dldm::{Dldm, DldmConfig};
    use crate::train::floats;
    use crate::vae::{Vae, VaeConfig};
    use crate::weights::{Names, Visitor};

    struct Shake;

    impl Visitor for Shake {
        fn param<const D: usize>(&mut self, _: &str, param: &mut Param<Tensor<D>>) {
            let value = param.val().inner();
            let noise = Tensor::random(value.dims(), Distribution::Normal(0.0, 0.1), &value.device());
            *param = Param::initialized(param.id, Tensor::from_inner(value + noise).require_grad());
        }
    }

    /// The loss and its gradients must be the same whether blocks are kept or computed again.
    fn check<M: Named>(what: &str, model: &mut M, loss: impl Fn(&M) -> Tensor<1>) {
        let [kept, again] = [false, true].map(|recompute| {
            let (loss, tape) = taped(recompute, || loss(model));
            assert_eq!(tape.0.is_empty(), !recompute, "{what}");
            (floats(loss.clone()), tape.gradients(&loss, model))
        });
        assert_eq!(kept.0, again.0, "{what}");
        let [names, others] = [&kept.1, &again.1].map(|grads| grads.names().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(names, others, "{what}");
        let largest = |values: &[f32]| values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        let [a, b] = [&kept.1, &again.1]
            .map(|grads| names.iter().map(|name| floats(grads.get(name).unwrap())).collect::<Vec<_>>());
        let all = a.iter().fold(0.0, |all: f32, grad| all.max(largest(grad)));
        for ((name, a), b) in names.iter().zip(&a).zip(&b) {
            // What several blocks add up to is added in another order; and of a key's bias nothing is left but rounding.
            let off = a.iter().zip(b).fold(0.0, |off: f32, (a, b)| off.max((a - b).abs()));
            assert!(off <= 1e-5 * largest(a) + 1e-6 * all, "{what}: {name}: {off} of {}", largest(a));
        }
    }

    #[test]
    fn gradients_are_the_same_where_blocks_are_computed_again() {
        let device = Device::flex().autodiff();
        let random = |shape: [usize; 5]| Tensor::<5>::random(shape, Distribution::Default, &device) * 2.0 - 1.0;

        let ids =
            Tensor::<2, Int>::from_data(TensorData::new((0..24i64).map(|i| i * 7 % 11).collect(), [2, 12]), &device);
        let config = ArConfig::preset("tiny", 11).unwrap();
        check("ar", &mut Ar::init(&config, 1, &device).unwrap(), |ar| {
            next_id_loss(ar.forward(ids.clone(), None), ids.clone())
        });

        let x = random([2, 3, 9, 32, 32]);
        check("dldm", &mut Dldm::new(&DldmConfig::preset("tiny").unwrap(), &device, 1).unwrap(), |dldm| {
            let encoded = dldm.encode(x.clone()).unwrap();
            let video = dldm.decode(encoded.codes.clone(), encoded.first()).unwrap();
            let stills = dldm.stills(encoded.h.clone()).unwrap();
            let condition = dldm.condition(encoded.codes).unwrap();
            (video - x.clone()).square().mean()
                + stills.square().mean()
                + encoded.query.square().mean()
                + condition.square().mean()
        });
        let mut dit =
            VideoDit::new(&DitConfig { num_blocks: 3, ..DitConfig::preset("tiny").unwrap() }, &device, 1).unwrap();
        dit.walk(&mut Names::new(&mut Shake)); // a fresh one ends in zeros, and nothing behind them learns
        let context = Tensor::<3>::random([2, 5, dit.config().crossattn_emb_channels], Distribution::Default, &device);
        let inputs = Inputs {
            x: random([2, 16, 3, 4, 6]),
            times: Tensor::random([2, 3], Distribution::Default, &device),
            mask: Some(Tensor::zeros([2, 1, 3, 4, 6], &device)),
            padding: None,
            context,
            hint: Some(random([2, 16, 3, 4, 6])),
            rotary: dit.rotary([3, 4, 6], None, &device),
        };
        check("dit", &mut dit, |dit| dit.forward(&inputs).unwrap().square().mean());

        check("vae", &mut Vae::new(&VaeConfig::preset("tiny").unwrap(), &device, 1).unwrap(), |vae| {
            let (mu, _) = vae.moments(x.clone()).unwrap();
            (vae.decode_means(mu).unwrap() - x.clone()).abs().mean()
        });
    }
}
