//! Linear map with the published layout.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use super::{Init, cost};
use crate::weights::{Named, Names, Visitor};

/// `y = x W^T + b` over the last axis. The weight lies as published: `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    pub fn new(init: &mut Init, inputs: usize, outputs: usize, bias: bool) -> Linear {
        Linear { weight: init.fan_in([outputs, inputs], inputs), bias: bias.then(|| init.fan_in([outputs], inputs)) }
    }

    /// Weights from a normal distribution, without bias.
    pub fn normal(init: &mut Init, inputs: usize, outputs: usize, std: f32) -> Linear {
        let weight =
            if std == 0.0 { init.constant([outputs, inputs], 0.0) } else { init.normal([outputs, inputs], std) };
        Linear { weight, bias: None }
    }

    /// Weights and biases from a normal distribution of deviation `1/sqrt(in)`, cut at three deviations (spec 4.7).
    pub fn truncated(init: &mut Init, inputs: usize, outputs: usize, bias: bool) -> Linear {
        let std = (inputs as f32).sqrt().recip();
        Linear { weight: init.truncated([outputs, inputs], std), bias: bias.then(|| init.truncated([outputs], std)) }
    }

    /// A map that starts as zero.
    pub fn zero(init: &mut Init, inputs: usize, outputs: usize) -> Linear {
        Linear { weight: init.constant([outputs, inputs], 0.0), bias: Some(init.constant([outputs], 0.0)) }
    }

    /// A map that scales the deviation of its inputs by `gain`, and starts without bias.
    pub fn with_gain(init: &mut Init, inputs: usize, outputs: usize, gain: f32) -> Linear {
        Linear {
            weight: init.uniform([outputs, inputs], gain * (3.0 / inputs as f32).sqrt()),
            bias: Some(init.constant([outputs], 0.0)),
        }
    }

    /// `[.., in] -> [.., out]`, in the type of `x`: a weight that is held in fewer bits is widened for this call.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let inputs = shape[D - 1];
        let rows: usize = shape[..D - 1].iter().product();
        let dtype = x.dtype();
        cost::product(inputs, rows * self.weight.dims()[0]);
        let mut y = x.reshape([rows, inputs]).matmul(self.weight_as(dtype).transpose());
        if let Some(bias) = &self.bias {
            y = y + bias.val().cast(dtype).unsqueeze();
        }
        shape[D - 1] = self.weight.dims()[0];
        y.reshape(shape)
    }

    /// The weight `[out, in]` in the type in which it is to be used; it may be held in fewer bits.
    pub fn weight_as(&self, dtype: DType) -> Tensor<2> {
        self.weight.val().cast(dtype)
    }
}

impl Named for Linear {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.matrix("weight", &mut self.weight);
        names.optional("bias", &mut self.bias);
    }
}
