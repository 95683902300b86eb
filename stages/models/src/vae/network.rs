//! Encoder and decoder of the VAE: their lists of layers. Frames first: `[B, T, C, H, W]`.

use burn::module::Module;
use burn::tensor::Tensor;

use super::VaeConfig;
use super::layers::{Down, Head, Middle, Residual, Up};
use super::stream::{Stream, causal};
use crate::nn::{CausalConv3d, Init, Tap, recompute};
use crate::weights::{Named, Names, Visitor};

#[derive(Module, Debug)]
pub(super) struct Encoder {
    conv1: CausalConv3d,
    downsamples: Vec<Layer>,
    middle: Middle,
    head: Head,
}

impl Encoder {
    pub(super) fn new(init: &mut Init, config: &VaeConfig) -> Encoder {
        let mut width = config.dim;
        let conv1 = CausalConv3d::new(init, 3, width, [3; 3]);
        let mut downsamples = Vec::new();
        for (level, mult) in config.dim_mult.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                downsamples.push(Layer::Residual(Residual::new(init, width, config.dim * mult)));
                width = config.dim * mult;
            }
            if let Some(time) = config.temporal_downsample.get(level) {
                downsamples.push(Layer::Down(Down::new(init, width, *time)));
            }
        }
        let middle = Middle::new(init, width);
        Encoder { conv1, downsamples, middle, head: Head::new(init, width, 2 * config.z_dim) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream, tap: &mut Tap<'_>) -> Tensor<5> {
        stream.rewind();
        let mut x = causal(&self.conv1, x, stream, None);
        tap.frames(format_args!("encoder.conv1"), &x);
        for (index, layer) in self.downsamples.iter().enumerate() {
            x = layer.forward(x, stream);
            tap.frames(format_args!("encoder.downsamples.{index}"), &x);
        }
        x = self.middle.forward(x, stream, "encoder", tap);
        x = self.head.forward(x, stream);
        tap.frames(format_args!("encoder"), &x);
        x
    }
}

impl Named for Encoder {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("conv1", &mut self.conv1);
        names.children("downsamples", &mut self.downsamples);
        names.child("middle", &mut self.middle);
        names.child("head", &mut self.head);
    }
}

#[derive(Module, Debug)]
pub(super) struct Decoder {
    conv1: CausalConv3d,
    middle: Middle,
    upsamples: Vec<Layer>,
    head: Head,
}

impl Decoder {
    pub(super) fn new(init: &mut Init, config: &VaeConfig) -> Decoder {
        let widths: Vec<usize> = config.dim_mult.iter().rev().map(|mult| config.dim * mult).collect();
        let mut width = widths[0];
        let conv1 = CausalConv3d::new(init, config.z_dim, width, [3; 3]);
        let middle = Middle::new(init, width);
        let mut upsamples = Vec::new();
        for (level, level_width) in widths.iter().enumerate() {
            for _ in 0..config.num_res_blocks + 1 {
                upsamples.push(Layer::Residual(Residual::new(init, width, *level_width)));
                width = *level_width;
            }
            if let Some(time) = config.temporal_downsample.iter().rev().nth(level) {
                upsamples.push(Layer::Up(Up::new(init, width, *time)));
                width /= 2;
            }
        }
        Decoder { conv1, middle, upsamples, head: Head::new(init, width, 3) }
    }

    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream, tap: &mut Tap<'_>) -> Tensor<5> {
        stream.rewind();
        let mut x = causal(&self.conv1, x, stream, None);
        tap.frames(format_args!("decoder.conv1"), &x);
        x = self.middle.forward(x, stream, "decoder", tap);
        for (index, layer) in self.upsamples.iter().enumerate() {
            x = layer.forward(x, stream);
            tap.frames(format_args!("decoder.upsamples.{index}"), &x);
        }
        x = self.head.forward(x, stream);
        tap.frames(format_args!("decoder"), &x);
        x
    }
}

impl Named for Decoder {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("conv1", &mut self.conv1);
        names.child("middle", &mut self.middle);
        names.children("upsamples", &mut self.upsamples);
        names.child("head", &mut self.head);
    }
}

/// One numbered entry of the encoder's or the decoder's list.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
enum Layer {
    Residual(Residual),
    Down(Down),
    Up(Up),
}

impl Layer {
    pub(super) fn forward(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        if recompute::is_on() && stream.is_once() {
            return recompute::block(self, x, |layer, x| layer.compute(x, &mut Stream::once()));
        }
        self.compute(x, stream)
    }

    fn compute(&self, x: Tensor<5>, stream: &mut Stream) -> Tensor<5> {
        match self {
            Layer::Residual(layer) => layer.forward(x, stream),
            Layer::Down(layer) => layer.forward(x, stream),
            Layer::Up(layer) => layer.forward(x, stream),
        }
    }
}

impl Named for Layer {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        match self {
            Layer::Residual(layer) => layer.walk(names),
            Layer::Down(layer) => layer.walk(names),
            Layer::Up(layer) => layer.walk(names),
        }
    }
}
