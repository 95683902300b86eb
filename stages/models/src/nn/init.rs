//! Initial values of parameters, drawn on the host from a seed: equal on every device.
//!
//! Values are drawn when they are first used, so that a model which is loaded from a file never draws any.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Makes the parameters of one model, one after the other.
#[derive(Debug)]
pub struct Init {
    device: Device,
    seed: u64,
    count: u64,
}

impl Init {
    pub fn new(device: &Device, seed: u64) -> Init {
        Init { device: device.clone(), seed, count: 0 }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Uniform in `-bound..bound`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        self.drawn(shape, move |rng| bound * (2.0 * rng.random::<f32>() - 1.0))
    }

    /// PyTorch's default for weights and biases of linear maps and convolutions: uniform within `1/sqrt(fan_in)`.
    pub fn fan_in<const D: usize>(&mut self, shape: [usize; D], fan_in: usize) -> Param<Tensor<D>> {
        self.uniform(shape, (fan_in as f32).sqrt().recip())
    }

    /// Normal with mean 0.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Param<Tensor<D>> {
        self.drawn(shape, move |rng| std * standard_normal(rng))
    }

    /// Normal with mean 0; values beyond three deviations are drawn again.
    pub fn truncated<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Param<Tensor<D>> {
        self.drawn(shape, move |rng| {
            loop {
                let value = standard_normal(rng);
                if value.abs() <= 3.0 {
                    return std * value;
                }
            }
        })
    }

    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.values(shape, true, move || vec![value; shape.iter().product()])
    }

    /// A buffer: stored with the weights, but not trained.
    pub fn buffer<const D: usize>(&mut self, shape: [usize; D], values: Vec<f32>) -> Param<Tensor<D>> {
        self.values(shape, false, move || values)
    }

    fn drawn<const D: usize>(
        &mut self,
        shape: [usize; D],
        draw: impl Fn(&mut StdRng) -> f32 + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        // Each parameter has its own stream, so that the order of first use does not matter.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.count.to_le_bytes());
        let mut rng = StdRng::from_seed(key);
        self.values(shape, true, move || (0..shape.iter().product()).map(|_| draw(&mut rng)).collect())
    }

    fn values<const D: usize>(
        &mut self,
        shape: [usize; D],
        train: bool,
        values: impl FnOnce() -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        self.count += 1;
        let init = move |device: &Device, train: bool| {
            Tensor::from_data(TensorData::new(values(), shape), device).set_require_grad(train)
        };
        Param::uninitialized(ParamId::new(), init, self.device.clone(), train, shape.into())
    }
}

fn standard_normal(rng: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    (radius * angle.cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(param: &Param<Tensor<1>>) -> Vec<f32> {
        param.val().into_data().try_into_vec().unwrap()
    }

    #[test]
    fn values_depend_on_the_seed_and_the_place_but_not_on_the_order_of_use() {
        let make = |seed| {
            let mut init = Init::new(&Device::flex(), seed);
            [init.fan_in::<1>([100], 4), init.normal([100], 1.0)]
        };
        let (a, b, other) = (make(1), make(1), make(2));
        let (late, early) = (values(&a[1]), values(&a[0]));
        assert_eq!([&early, &late], [&values(&b[0]), &values(&b[1])]);
        assert_ne!(early, values(&other[0]));
        assert!(early.iter().all(|value| value.abs() <= 0.5) && early.iter().any(|value| value.abs() > 0.25));
    }

    #[test]
    fn normal_values_have_their_deviation() {
        let drawn = values(&Init::new(&Device::flex(), 3).normal([10_000], 2.0));
        let mean = drawn.iter().sum::<f32>() / 1e4;
        let variance = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.1 && (variance.sqrt() - 2.0).abs() < 0.1, "{mean} {variance}");
    }
}
