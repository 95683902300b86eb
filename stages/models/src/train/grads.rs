//! The gradients of one step, by published name, and their global norm.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor, TensorData};

use crate::weights::{Named, Names, Visitor};

/// A flat gradient for each parameter that the loss depends on. Others have none, and stay untouched by the optimizer.
#[derive(Clone, Debug, Default)]
pub struct Grads {
    by_name: BTreeMap<String, Tensor<1>>,
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
            by_name: BTreeMap<String, Tensor<1>>,
        }
        impl Visitor for Take<'_> {
            fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
                if !param.is_require_grad() {
                    return;
                }
                if let Some(grad) = param.val().grad_remove(self.gradients) {
                    self.by_name.insert(name.to_owned(), grad.reshape([-1]));
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
                Some(before) => before + grad,
                None => grad,
            };
            self.by_name.insert(name, sum);
        }
    }

    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.by_name.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The root of the sum of all squares, over the parameters that `which` names. f32 sums per parameter, f64 over them.
    pub fn norm(&self, which: impl Fn(&str) -> bool) -> f64 {
        let squares =
            self.by_name.iter().filter(|(name, _)| which(name)).map(|(_, grad)| scalar(grad.clone().square().sum()));
        squares.sum::<f64>().sqrt()
    }

    /// Scales the gradients that `which` names so that their [`Grads::norm`] is at most `max`; returns the norm before.
    ///
    /// As PyTorch has it, the factor is max / (norm + 1e-6), and never above 1.
    pub fn clip(&mut self, max: f64, which: impl Fn(&str) -> bool) -> f64 {
        let norm = self.norm(&which);
        let factor = max / (norm + 1e-6);
        if factor < 1.0 {
            for (_, grad) in self.by_name.iter_mut().filter(|(name, _)| which(name)) {
                *grad = grad.clone().mul_scalar(factor);
            }
        }
        norm
    }

    /// Writes 0 over every NaN and infinity, as upstream does before it clips; returns how many there were.
    pub fn zero_non_finite(&mut self) -> usize {
        let mut count = 0;
        for grad in self.by_name.values_mut() {
            // A difference with itself is 0, or NaN where the value is not finite.
            if scalar((grad.clone() - grad.clone()).sum()) == 0.0 {
                continue;
            }
            let device = grad.device();
            let mut values = floats(grad.clone());
            for value in values.iter_mut().filter(|value| !value.is_finite()) {
                *value = 0.0;
                count += 1;
            }
            let length = values.len();
            *grad = Tensor::from_data(TensorData::new(values, [length]), &device);
        }
        count
    }
}

/// The value of a tensor of one element.
pub(crate) fn scalar(x: Tensor<1>) -> f64 {
    f64::from(floats(x)[0])
}

/// All values of a tensor, in memory order of its shape.
pub(crate) fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec().expect("the data were just made f32")
}
