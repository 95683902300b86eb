//! AdamW with decoupled decay on every parameter that has a gradient.
//!
//! Source: Loshchilov and Hutter 2019, arXiv 1711.05101; the order of operations is that of PyTorch's CPU path, so that
//! runs of both can be compared step by step.
//! Differs from Burn's: moments are keyed by published names and can be read and saved.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Grads;
use crate::weights::{Named, Names, Visitor};

/// All but the learning rate, which each step is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// The released dLDM's (spec 7.4).
    fn default() -> AdamWConfig {
        AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Running means of one parameter's gradient and of its square, flat, and how often they were updated.
#[derive(Clone, Debug)]
pub struct Moments {
    pub first: Tensor<1>,
    pub second: Tensor<1>,
    pub updates: u64,
}

/// The optimizer of one model.
#[derive(Clone, Debug)]
pub struct AdamW {
    pub config: AdamWConfig,
    pub(crate) steps: u64,
    pub(crate) moments: BTreeMap<String, Moments>,
}

impl AdamW {
    pub fn new(config: AdamWConfig) -> AdamW {
        AdamW { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments of each parameter that has had a gradient.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// One update with learning rate `rate`. Parameters without a gradient are left as they are, decay included.
    pub fn step(&mut self, model: &mut impl Named, grads: &Grads, rate: f64) {
        model.walk(&mut Names::new(&mut Update { optimizer: self, grads, rate }));
        self.steps += 1;
    }
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    grads: &'a Grads,
    rate: f64,
}

impl Visitor for Update<'_> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        let Some(grad) = self.grads.get(name) else { return };
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.optimizer.config;
        let grad = grad.clone();
        let entry = self.optimizer.moments.entry(name.to_owned());
        let moments =
            entry.or_insert_with(|| Moments { first: grad.zeros_like(), second: grad.zeros_like(), updates: 0 });
        moments.updates += 1;
        moments.first = moments.first.clone() + (grad.clone() - moments.first.clone()).mul_scalar(1.0 - beta1);
        moments.second = moments.second.clone().mul_scalar(beta2) + grad.square().mul_scalar(1.0 - beta2);

        let updates = moments.updates as f64;
        let step = self.rate / (1.0 - beta1.powf(updates));
        let root = (1.0 - beta2.powf(updates)).sqrt();
        let scale = moments.second.clone().sqrt().div_scalar(root).add_scalar(eps);
        let change = (moments.first.clone() / scale).mul_scalar(step);

        let old = param.val();
        let shape = old.dims();
        let (trains, strategy) = (old.is_require_grad(), old.gradient_checkpointing_strategy());
        let new = old.inner().mul_scalar(1.0 - self.rate * weight_decay) - change.reshape(shape);
        let mut new = Tensor::from_inner(new);
        if let Some(strategy) = strategy {
            new = new.with_gradient_checkpointing_strategy(strategy);
        }
        *param = Param::initialized(param.id, new.set_require_grad(trains));
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::nn::{Init, Linear};
    use crate::train::floats;

    fn values(linear: &Linear) -> (Vec<f32>, Vec<f32>) {
        (floats(linear.weight.val()), floats(linear.bias.as_ref().unwrap().val()))
    }

    #[test]
    fn steps_are_those_worked_out_by_hand() {
        let device = Device::flex().autodiff();
        let mut linear = Linear::new(&mut Init::new(&device, 1), 2, 1, true);
        let start = values(&linear);
        let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        let mut optimizer = AdamW::new(config);
        let step = |linear: &mut Linear, optimizer: &mut AdamW, slope: [f32; 2]| {
            // The loss is slope . weight: it does not depend on the bias.
            let slope = Tensor::<2>::from_data(TensorData::new(slope.to_vec(), [1, 2]), &Device::flex().autodiff());
            let loss = (linear.weight.val() * slope).sum();
            let grads = Grads::of(&loss, linear);
            optimizer.step(linear, &grads, 0.5);
        };
        step(&mut linear, &mut optimizer, [2.0, -3.0]);
        // The first update is the gradient's sign, whatever its size; decay comes before it.
        let wanted = [start.0[0] * 0.95 - 0.5, start.0[1] * 0.95 + 0.5];
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&values(&linear).0, &wanted), "{:?}, not {wanted:?}", values(&linear).0);
        assert_eq!(values(&linear).1, start.1, "the bias had no gradient");

        step(&mut linear, &mut optimizer, [2.0, -1.0]);
        let moment = &optimizer.moments()["weight"];
        assert!(close(&floats(moment.first.clone()), &[0.38, -0.37]));
        assert!(close(&floats(moment.second.clone()), &[0.0796, 0.0991]));
        assert_eq!((optimizer.moments().len(), moment.updates, optimizer.steps()), (1, 2, 2));
        let second = wanted[1] * 0.95 + 0.5 * (0.37 / 0.19) / (0.0991f32 / 0.0199).sqrt();
        assert!((values(&linear).0[1] - second).abs() < 1e-6);
    }
}
