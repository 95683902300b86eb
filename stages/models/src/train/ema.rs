//! Power moving average of a model's parameters: a second set of weights that follows the trained ones.
//!
//! After step n (from 1): average <- beta average + (1 - beta) weights, beta(n) = (1 - 1/(n+1))^(g+1). The exponent g is the
//! largest real root of g^3 + 7 g^2 + (16 - 1/rate^2) g + (12 - 1/rate^2), so that the average reaches back over a share of
//! about `rate` of the steps so far, however many these are.
//! Source: Karras et al. 2024, arXiv 2312.02696, as upstream has it (spec 7.6).

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;

use super::optim::replace;
use crate::weights::{Named, Names, Visitor};

/// The exponent g for a rate in (0, 0.28]; larger rates have no root above 0.
pub fn exponent(rate: f64) -> f64 {
    let inverse = rate.powi(-2);
    let value = |g: f64| g.powi(3) + 7.0 * g.powi(2) + (16.0 - inverse) * g + (12.0 - inverse);
    // The cubic is below 0 at 0, and above it at the other end: g^3 outweighs g / rate^2 there.
    let (mut low, mut high) = (0.0, 2.0 + inverse.sqrt());
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if value(middle) > 0.0 { high = middle } else { low = middle }
    }
    0.5 * (low + high)
}

/// What stays of the average in step `step`, counted from 1.
pub fn beta(exponent: f64, step: u64) -> f64 {
    (1.0 - 1.0 / (step as f64 + 1.0)).powf(exponent + 1.0)
}

/// Moves `average` towards `model`, which has the same parameters; `average` has no graph.
pub fn follow(average: &mut impl Named, model: &mut impl Named, beta: f64) {
    struct Read(BTreeMap<String, Tensor<1>>);
    impl Visitor for Read {
        fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.insert(name.to_owned(), param.val().inner().reshape([-1]));
            }
        }
    }
    struct Mix {
        values: BTreeMap<String, Tensor<1>>,
        beta: f64,
    }
    impl Visitor for Mix {
        fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
            let Some(value) = self.values.remove(name) else { return };
            let old = param.val().inner();
            let value = value.reshape(old.dims());
            replace(param, old.mul_scalar(self.beta) + value.mul_scalar(1.0 - self.beta));
        }
    }
    let mut read = Read(BTreeMap::new());
    model.walk(&mut Names::new(&mut read));
    average.walk(&mut Names::new(&mut Mix { values: read.0, beta }));
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::nn::{Init, Linear};
    use crate::train::floats;

    #[test]
    fn the_exponent_is_a_root() {
        for (rate, wanted) in [(0.1, 6.937), (0.05, 16.973)] {
            let g = exponent(rate);
            let inverse: f64 = 1.0 / (rate * rate);
            let value = g.powi(3) + 7.0 * g * g + (16.0 - inverse) * g + 12.0 - inverse;
            assert!(value.abs() < 1e-6 && (g - wanted).abs() < 1e-2, "{rate}: {g}, where the cubic is {value}");
        }
    }

    #[test]
    fn the_average_is_worked_out_by_hand() {
        let device = Device::flex().autodiff();
        let make = |seed| Linear::new(&mut Init::new(&device, seed), 1, 1, false);
        let (mut model, mut average) = (make(1), make(2).valid());
        let value = |linear: &Linear| floats(linear.weight.val())[0];
        let (a, b) = (value(&average), value(&model));
        follow(&mut average, &mut model, 0.75);
        assert!((value(&average) - (0.75 * a + 0.25 * b)).abs() < 1e-6);
        assert!((beta(6.0, 1) - 0.5f64.powi(7)).abs() < 1e-12, "the first steps forget the start");
    }
}
