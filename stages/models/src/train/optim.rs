//! AdamW with decoupled decay on every parameter that has a gradient.
//!
//! Source: Loshchilov and Hutter 2019, arXiv 1711.05101; the order of operations is that of PyTorch's CPU path, so that
//! runs of both can be compared step by step.
//! Differs from Burn's: moments are keyed by published names and can be read and saved; parameters may have rules of their
//! own; weights may be held as bf16 beside f32 masters, which are what is updated.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use vw2_kernels::{AdamWStep, Stepped, adamw};

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

/// How one parameter is updated in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    pub rate: f64,
    pub weight_decay: f64,
}

/// The optimizer of one model.
#[derive(Clone, Debug)]
pub struct AdamW {
    pub config: AdamWConfig,
    pub(crate) steps: u64,
    pub(crate) moments: BTreeMap<String, Moments>,
    /// The f32 values of parameters that the model holds rounded to bf16, flat.
    pub(crate) masters: BTreeMap<String, Tensor<1>>,
}

impl AdamW {
    pub fn new(config: AdamWConfig) -> AdamW {
        AdamW { config, steps: 0, moments: BTreeMap::new(), masters: BTreeMap::new() }
    }

    /// From now on, `model` holds what it trains rounded to bf16, and the optimizer the f32 values that it updates: a step
    /// that is too small for 8 significant bits is not lost (spec 7.4). The model's arithmetic stays f32.
    pub fn hold_bf16(&mut self, model: &mut impl Named) {
        model.walk(&mut Names::new(&mut Round { masters: &mut self.masters }));
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
        let weight_decay = self.config.weight_decay;
        self.step_each(model, grads, |_| Some(Rule { rate, weight_decay }));
    }

    /// As [`AdamW::step`], by the rule of each name; one without a rule is left as it is.
    pub fn step_each(&mut self, model: &mut impl Named, grads: &Grads, rule: impl Fn(&str) -> Option<Rule>) {
        model.walk(&mut Names::new(&mut Update { optimizer: self, grads, rule }));
        self.steps += 1;
    }
}

struct Update<'a, R> {
    optimizer: &'a mut AdamW,
    grads: &'a Grads,
    rule: R,
}

impl<R: Fn(&str) -> Option<Rule>> Visitor for Update<'_, R> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        let Some((grad, clip)) = self.grads.unscaled(name) else { return };
        let Some(Rule { rate, weight_decay }) = (self.rule)(name) else { return };
        let AdamWConfig { beta1, beta2, eps, .. } = self.optimizer.config;
        let moments = self.optimizer.moments.remove(name);
        let Moments { first, second, updates } =
            moments.unwrap_or_else(|| Moments { first: grad.zeros_like(), second: grad.zeros_like(), updates: 0 });
        let updates = updates + 1;

        let old = param.val().inner();
        let shape = old.dims();
        // What has one owner is updated where it lies.
        replace(param, Tensor::empty([0; D], &old.device()));
        let master = self.optimizer.masters.remove(name);
        let held = master.is_some();
        let before = Stepped { parameter: master.unwrap_or_else(|| old.reshape([-1])), first, second };
        let step = AdamWStep { clip, rate, beta1, beta2, eps, weight_decay, updates };
        let Stepped { parameter, first, second } = adamw(before, grad.clone(), &step);
        if held {
            replace(param, rounded(parameter.clone().reshape(shape)));
            self.optimizer.masters.insert(name.to_owned(), parameter);
        } else {
            replace(param, parameter.reshape(shape));
        }
        self.optimizer.moments.insert(name.to_owned(), Moments { first, second, updates });
    }
}

struct Round<'a> {
    masters: &'a mut BTreeMap<String, Tensor<1>>,
}

impl Visitor for Round<'_> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        if param.is_require_grad() {
            let value = param.val().inner();
            self.masters.insert(name.to_owned(), value.clone().reshape([-1]));
            replace(param, rounded(value));
        }
    }
}

/// The nearest values that bf16 has, as f32.
fn rounded<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(DType::BF16).cast(DType::F32)
}

/// Gives a parameter a value without a history. It stays trained or not, and on autodiff or not.
pub(crate) fn replace<const D: usize>(param: &mut Param<Tensor<D>>, value: Tensor<D>) {
    let old = param.val();
    let value = match old.gradient_checkpointing_strategy() {
        Some(strategy) => Tensor::from_inner(value).with_gradient_checkpointing_strategy(strategy),
        None => value,
    };
    *param = Param::initialized(param.id, value.set_require_grad(old.is_require_grad()));
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

    #[test]
    fn a_rule_holds_for_its_parameter_only() {
        let device = Device::flex().autodiff();
        let mut linear = Linear::new(&mut Init::new(&device, 1), 2, 1, true);
        let start = values(&linear);
        let loss = linear.weight.val().sum() + linear.bias.as_ref().unwrap().val().sum();
        let grads = Grads::of(&loss, &mut linear);
        let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() });
        let rule = |name: &str| (name == "bias").then_some(Rule { rate: 0.5, weight_decay: 1.0 });
        optimizer.step_each(&mut linear, &grads, rule);
        assert_eq!(values(&linear).0, start.0);
        assert!((values(&linear).1[0] - (start.1[0] * 0.5 - 0.5)).abs() < 1e-6);
        assert_eq!(optimizer.moments().len(), 1, "what is not updated has no moments");
    }

    #[test]
    fn steps_too_small_for_bf16_add_up_in_the_masters() {
        let device = Device::flex().autodiff();
        let make = || Linear::new(&mut Init::new(&device, 1), 2, 1, false);
        let config = AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() };
        let train = |linear: &mut Linear, optimizer: &mut AdamW| {
            for _ in 0..64 {
                let grads = Grads::of(&linear.weight.val().sum(), linear);
                optimizer.step(linear, &grads, 1e-4); // less than half of bf16's distance between neighbours above 0.06
            }
        };
        let (mut exact, mut held) = (make(), make());
        let start = floats(exact.weight.val());
        assert!(start.iter().all(|value| value.abs() > 0.07), "{start:?}");
        train(&mut exact, &mut AdamW::new(config.clone()));
        let mut optimizer = AdamW::new(config);
        optimizer.hold_bf16(&mut held);
        train(&mut held, &mut optimizer);
        for (held, exact) in floats(held.weight.val()).into_iter().zip(floats(exact.weight.val())) {
            assert_eq!(held, half::bf16::from_f32(held).to_f32());
            assert!((held - exact).abs() <= exact.abs() / 256.0, "{held}, not {exact}");
        }
        assert!(held.weight.is_require_grad());
    }
}
