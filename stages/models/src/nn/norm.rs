//! Norms over the last axis.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::Init;
use crate::weights::{Named, Names, Visitor};

/// Mean 0 and deviation 1 over the last axis: `[.., D] -> [.., D]`.
pub fn standardise<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let x = x.clone() - x.mean_dim(D - 1);
    let variance = x.clone().square().mean_dim(D - 1);
    x / (variance + eps).sqrt()
}

/// Layer norm over the last axis, affine, eps 1e-5.
#[derive(Module, Debug)]
pub struct LayerNorm {
    pub weight: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
}

impl LayerNorm {
    pub fn new(init: &mut Init, width: usize) -> LayerNorm {
        LayerNorm { weight: init.constant([width], 1.0), bias: init.constant([width], 0.0) }
    }

    /// `[.., D] -> [.., D]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        standardise(x, 1e-5) * self.weight.val().unsqueeze() + self.bias.val().unsqueeze()
    }
}

impl Named for LayerNorm {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
        names.param("bias", &mut self.bias);
    }
}

/// x over the root of its mean square, times a gain; over the last axis.
#[derive(Module, Debug)]
pub struct RmsNorm {
    pub weight: Param<Tensor<1>>, // [D]
    pub eps: f64,
}

impl RmsNorm {
    pub fn new(init: &mut Init, width: usize, eps: f64) -> RmsNorm {
        RmsNorm { weight: init.constant([width], 1.0), eps }
    }

    /// `[.., D] -> [.., D]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let scale = x.clone().square().mean_dim(D - 1).add_scalar(self.eps).sqrt().recip();
        x * scale * self.weight.val().unsqueeze()
    }
}

impl Named for RmsNorm {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
    }
}
