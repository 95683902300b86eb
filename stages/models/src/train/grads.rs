//! The gradients of one step, by published name, and their global norm.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor, TensorData};
use vw2_kernels::squares;

use crate::weights::{Named, Names, Visitor};

/// A flat gradient for each parameter that the loss depends on. Others have none, and stay untouched by the optimizer.
#[derive(Clone, Debug, Default)]
pub struct Grads {
    by_name: BTreeMap<String, Grad>,
}

#[derive(Clone, Debug)]
struct Grad {
    values: Tensor<1>,
    /// By which the values are still to be multiplied.
    factor: f64,
    /// The sum of the values' squares, once it was asked for.
    squares: OnceCell<f64>,
}

impl Grad {
    fn new(values: Tensor<1>) -> Grad {
        Grad { values, factor: 1.0, squares: OnceCell::new() }
    }

    fn scaled(&self) -> Tensor<1> {
        if self.factor == 1.0 { self.values.clone() } else { self.values.clone().mul_scalar(self.factor) }
    }
}

impl Grads {
    /// Goes back from `loss` through the graph, once, and takes the gradients of `model`'s parameters.
    ///
    /// # Panics
    /// The loss depends on nothing that is trained.
    pub fn of(loss: &Tensor<1>, model: &mut impl Named) -> Grads {
        Grads::take(&mut loss.backward(), model)
    }

    /// Takes the gradients of `model`'s parameters out of those of a backward pass, which may have served several models.
    pub fn take(gradients: &mut Gradients, model: &mut impl Named) -> Grads {
        struct Take<'a> {
            gradients: &'a mut Gradients,
            by_name: BTreeMap<String, Grad>,
        }
        impl Visitor for Take<'_> {
            fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
                if !param.is_require_grad() {
                    return;
                }
                if let Some(grad) = param.val().grad_remove(self.gradients) {
                    self.by_name.insert(name.to_owned(), Grad::new(grad.reshape([-1])));
                }
            }
        }
        let mut take = Take { gradients, by_name: BTreeMap::new() };
        model.walk(&mut Names::new(&mut take));
        Grads { by_name: take.by_name }
    }

    /// Adds the gradients of another part of the minibatch, or of the graph.
    pub fn add(&mut self, other: Grads) {
        for (name, grad) in other.by_name {
            let sum = match self.by_name.remove(&name) {
                Some(before) => Grad::new(before.scaled() + grad.scaled()),
                None => grad,
            };
            self.by_name.insert(name, sum);
        }
    }

    pub fn get(&self, name: &str) -> Option<Tensor<1>> {
        self.by_name.get(name).map(Grad::scaled)
    }

    /// A gradient, and the factor by which it is still to be multiplied.
    pub(crate) fn unscaled(&self, name: &str) -> Option<(&Tensor<1>, f64)> {
        self.by_name.get(name).map(|grad| (&grad.values, grad.factor))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The root of the sum of all squares, over the parameters that `which` names.
    pub fn norm(&self, which: impl Fn(&str) -> bool) -> f64 {
        let chosen = || self.by_name.iter().filter(|(name, _)| which(name)).map(|(_, grad)| grad);
        let open: Vec<&Grad> = chosen().filter(|grad| grad.squares.get().is_none()).collect();
        let found = squares(open.iter().map(|grad| grad.values.clone()).collect());
        for (grad, squares) in open.into_iter().zip(found) {
            grad.squares.get_or_init(|| squares);
        }
        let sums = chosen().map(|grad| grad.factor * grad.factor * grad.squares.get().expect("the loop fills all"));
        sums.sum::<f64>().sqrt()
    }

    /// Scales the gradients that `which` names so that their [`Grads::norm`] is at most `max`; returns the norm before. The
    /// factor is applied when the gradients are read.
    ///
    /// As PyTorch has it, the factor is max / (norm + 1e-6), and never above 1.
    pub fn clip(&mut self, max: f64, which: impl Fn(&str) -> bool) -> f64 {
        let norm = self.norm(&which);
        let factor = max / (norm + 1e-6);
        if factor < 1.0 {
            self.by_name.iter_mut().filter(|(name, _)| which(name)).for_each(|(_, grad)| grad.factor *= factor);
        }
        norm
    }

    /// Writes 0 over every NaN and infinity, as upstream does before it clips; returns how many there were.
    pub fn zero_non_finite(&mut self) -> usize {
        self.norm(|_| true);
        let mut count = 0;
        for grad in self.by_name.values_mut() {
            // Where every value is finite, so is the sum of their squares, as long as f32 holds it.
            if grad.squares.get().is_some_and(|squares| squares.is_finite()) {
                continue;
            }
            let device = grad.values.device();
            let mut values = floats(grad.values.clone());
            for value in values.iter_mut().filter(|value| !value.is_finite()) {
                *value = 0.0;
                count += 1;
            }
            let length = values.len();
            grad.values = Tensor::from_data(TensorData::new(values, [length]), &device);
            grad.squares = OnceCell::new();
        }
        count
    }
}

/// All values of a tensor, in memory order of its shape.
pub(crate) fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec().expect("the data were just made f32")
}
