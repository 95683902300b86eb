//! Norms over the last axis.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use vw2_kernels::{layer_norm, rms_norm};

use super::Init;
use crate::weights::{Named, Names, Visitor};

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
        layer_norm(x, self.weight.val(), self.bias.val(), 1e-5)
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
        rms_norm(x, self.weight.val(), self.eps)
    }
}

impl Named for RmsNorm {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.param("weight", &mut self.weight);
    }
}
