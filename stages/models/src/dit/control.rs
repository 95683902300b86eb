//! The control branch: a short copy of the network that reads a hint and adds to the first blocks' outputs.
//!
//! Source: spec 4.7. Differs: the hint's zero channels are not made; the columns of the map that would meet them are left
//! out.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use super::config::DitConfig;
use super::layers::patches;
use super::network::{Network, Pass};
use crate::nn::{Init, Linear, Tap, recompute};
use crate::weights::{Named, Names, Visitor};

/// Widths between the linear maps of the hint encoder.
const HINT_WIDTHS: [usize; 7] = [16, 16, 32, 32, 96, 96, 256];

/// The branch. Its `final_layer` is stored and has no use.
#[derive(Module, Debug)]
pub struct Control {
    pub(crate) network: Network,
    x_embedder2: Linear,
    input_hint_block: Vec<Linear>,
    zero_blocks: Vec<Linear>,
}

impl Control {
    pub(crate) fn new(init: &mut Init, config: &DitConfig) -> Control {
        let width = config.model_channels;
        let widths: Vec<usize> = [width].into_iter().chain(HINT_WIDTHS).chain([width]).collect();
        Control {
            network: Network::new(init, config, config.control_blocks),
            x_embedder2: Linear::truncated(init, config.patch_values(config.hint_channels + 1), width, false),
            input_hint_block: widths.windows(2).map(|pair| Linear::truncated(init, pair[0], pair[1], true)).collect(),
            zero_blocks: (0..config.control_blocks).map(|_| Linear::zero(init, width, width)).collect(),
        }
    }

    /// What is added after each of the first base blocks: `[B, T, N, D]` each. `x` are the latents with their mask channels,
    /// `hint` `[B, C, T, H, W]`, `padding` the padding mask `[B, 1, T, H, W]`.
    pub(crate) fn residuals(
        &self,
        x: Tensor<5>,
        hint: Tensor<5>,
        padding: Tensor<5>,
        pass: &Pass,
        config: &DitConfig,
        tap: &mut Tap<'_>,
    ) -> Vec<Tensor<4>> {
        let hint = self.encode(hint, padding, pass, config, tap);
        let mut x = self.network.embed(x, config);
        let mut residuals = Vec::with_capacity(self.zero_blocks.len());
        for (index, (block, zero)) in self.network.blocks.iter().zip(&self.zero_blocks).enumerate() {
            x = block.forward(x, pass, tap, &format!("ctrl.blocks.{index}"));
            if index == 0 {
                x = recompute::cut(x + hint.clone());
            }
            let residual = zero.forward(x.clone()).mul_scalar(config.control_weight);
            pass.show(tap, format_args!("x_ctrl.block{index}"), &residual);
            residuals.push(residual);
        }
        residuals
    }

    fn encode(
        &self,
        hint: Tensor<5>,
        padding: Tensor<5>,
        pass: &Pass,
        config: &DitConfig,
        tap: &mut Tap<'_>,
    ) -> Tensor<4> {
        let weight = self.x_embedder2.weight_as(hint.dtype());
        let columns = |start: usize, channels: usize| {
            let used = weight.clone().narrow(1, config.patch_values(start), config.patch_values(channels));
            used.transpose().unsqueeze::<4>()
        };
        let channels = hint.dims()[1];
        let x = patches(hint, config).matmul(columns(0, channels));
        let x = x + patches(padding, config).matmul(columns(config.hint_channels, 1));
        pass.show(tap, format_args!("ctrl.x_embedder2"), &x);
        let last = self.input_hint_block.len() - 1;
        let x = self.input_hint_block.iter().enumerate().fold(x, |x, (index, linear)| {
            let y = linear.forward(x);
            if index == last { y } else { silu(y) }
        });
        tap.see(format_args!("ctrl.input_hint_block"), || {
            let ([b, t, _, d], [h, w]) = (x.dims(), pass.grid);
            x.clone().reshape([b, t, h, w, d]).permute([1, 2, 3, 0, 4])
        });
        x
    }
}

impl Named for Control {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.network.walk(names);
        names.child("x_embedder2.proj.1", &mut self.x_embedder2);
        for (index, linear) in self.input_hint_block.iter_mut().enumerate() {
            names.child(format_args!("input_hint_block.{}", 2 * index), linear);
        }
        for (index, linear) in self.zero_blocks.iter_mut().enumerate() {
            names.child(format_args!("zero_blocks.block{index}"), linear);
        }
    }
}
