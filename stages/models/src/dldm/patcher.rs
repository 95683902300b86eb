//! 3D patches: pixels of `p` frames x `p` rows x `p` columns become channels of one cell, by Haar wavelets or as they are.
//!
//! Shapes: frames `[B, 3, 1 + p m, H, W]` -> cells, frames first, `[B, m + 1, 3 p^3, H/p, W/p]`; and back.
//! The first frame is repeated `p` times in front, so that it fills a cell alone.
//! Source: Cosmos tokenizer (patcher of video). Channels of Haar: coarsest sub-band, …, finest sub-band, colour; a
//! sub-band's letters are time, height, width, low before high. Of rearrangement: colour, time, height, width.
//! Differs: all levels at once, in one pass over the pixels, instead of a cascade of convolutions.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use vw2_kernels::{haar_cells, haar_frames};

use super::config::PatchMethod;
use crate::nn::Init;
use crate::weights::{Names, Note, Visitor};

/// The patcher's stored taps; bf16 checkpoints hold rounded ones, which are used as they are.
#[derive(Module, Debug)]
pub struct Patcher {
    wavelets: Param<Tensor<1>>,
    patch: usize,
    #[module(skip)]
    method: PatchMethod,
}

impl Patcher {
    pub fn new(init: &mut Init, patch: usize, method: PatchMethod) -> Patcher {
        let tap = match method {
            PatchMethod::Haar => std::f32::consts::FRAC_1_SQRT_2,
            PatchMethod::Rearrange => 1.0,
        };
        Patcher { wavelets: init.buffer([2], vec![tap; 2]), patch, method }
    }

    /// `[B, 3, 1 + p m, H, W] -> [B, m + 1, 3 p^3, H/p, W/p]`.
    pub fn patch(&self, x: Tensor<5>) -> Tensor<5> {
        let p = self.patch;
        if self.method == PatchMethod::Haar {
            return haar_cells(x, self.wavelets.val(), p);
        }
        let first = x.clone().narrow(2, 0, 1).repeat_dim(2, p - 1);
        let x = if p > 1 { Tensor::cat(vec![first, x], 2) } else { x };
        let [b, colours, t, h, w] = x.dims();
        let (t, h, w) = (t / p, h / p, w / p);
        let cells = x.reshape([b, colours, t, p, h, p, w, p]).permute([0, 2, 1, 3, 5, 7, 4, 6]);
        cells.reshape([b, t, colours * p.pow(3), h, w])
    }

    /// The inverse of [`Patcher::patch`].
    pub fn unpatch(&self, x: Tensor<5>) -> Tensor<5> {
        let p = self.patch;
        if self.method == PatchMethod::Haar {
            return haar_frames(x, self.wavelets.val(), p);
        }
        let [b, t, c, h, w] = x.dims();
        let colours = c / p.pow(3);
        let pixels = x.reshape([b, t, colours, p, p, p, h, w]).permute([0, 2, 1, 3, 6, 4, 7, 5]);
        pixels.reshape([b, colours, t * p, h * p, w * p]).narrow(2, p - 1, t * p - (p - 1))
    }

    /// Lists the encoder's buffers, or the decoder's, which lack the patch size.
    pub(super) fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>, with_size: bool) {
        names.param("wavelets", &mut self.wavelets);
        names.note("_arange", &Note::I64(vec![0, 1]));
        if with_size {
            names.note("patch_size_buffer", &Note::I32(vec![self.patch as i32]));
        }
    }
}
