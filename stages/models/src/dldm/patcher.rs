//! 3D patches: pixels of `p` frames x `p` rows x `p` columns become channels of one cell, by Haar wavelets or as they are.
//!
//! Shapes: frames `[B, 3, 1 + p m, H, W]` -> cells, frames first, `[B, m + 1, 3 p^3, H/p, W/p]`; and back.
//! The first frame is repeated `p` times in front, so that it fills a cell alone.
//! Source: Cosmos tokenizer (patcher of video). Channels of Haar: coarsest sub-band, …, finest sub-band, colour; a
//! sub-band's letters are time, height, width, low before high. Of rearrangement: colour, time, height, width.
//! Differs: all levels at once, as one orthogonal matrix on the patch's pixels instead of a cascade of convolutions.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

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
        let first = x.clone().narrow(2, 0, 1).repeat_dim(2, p - 1);
        let x = if p > 1 { Tensor::cat(vec![first, x], 2) } else { x };
        let [b, colours, t, h, w] = x.dims();
        let (t, h, w) = (t / p, h / p, w / p);
        let x = x.reshape([b, colours, t, p, h, p, w, p]);
        let cells = match self.method {
            PatchMethod::Rearrange => x.permute([0, 2, 1, 3, 5, 7, 4, 6]),
            PatchMethod::Haar => {
                let rows = x.permute([0, 2, 4, 6, 1, 3, 5, 7]).reshape([b * t * h * w * colours, p.pow(3)]);
                let bands = rows.matmul(self.matrix().transpose());
                bands.reshape([b, t, h, w, colours, p, p, p]).permute([0, 1, 5, 6, 7, 4, 2, 3])
            }
        };
        cells.reshape([b, t, colours * p.pow(3), h, w])
    }

    /// The inverse of [`Patcher::patch`].
    pub fn unpatch(&self, x: Tensor<5>) -> Tensor<5> {
        let p = self.patch;
        let [b, t, c, h, w] = x.dims();
        let colours = c / p.pow(3);
        let pixels = match self.method {
            PatchMethod::Rearrange => x.reshape([b, t, colours, p, p, p, h, w]).permute([0, 2, 1, 3, 6, 4, 7, 5]),
            PatchMethod::Haar => {
                let bands = x.reshape([b, t, p.pow(3), colours, h, w]).permute([0, 1, 4, 5, 3, 2]);
                // The matrix divides by 2 sqrt(2) at each level; its inverse multiplies by as much.
                let scale = 8f64.powi(p.ilog2() as i32);
                let rows = bands.reshape([b * t * h * w * colours, p.pow(3)]).matmul(self.matrix()) * scale;
                rows.reshape([b, t, h, w, colours, p, p, p]).permute([0, 4, 1, 5, 2, 6, 3, 7])
            }
        };
        pixels.reshape([b, colours, t * p, h * p, w * p]).narrow(2, p - 1, t * p - (p - 1))
    }

    /// Sub-bands from a patch's pixels, `[p^3 bands, p^3 pixels]`.
    fn matrix(&self) -> Tensor<2> {
        let [a, b] = [0, 1].map(|index| self.wavelets.val().narrow(0, index, 1));
        // Rows: low, high. Columns: first and second pixel of a pair. As stored, the low taps run backwards.
        let pair = Tensor::cat(vec![b.clone(), a.clone(), a, -b], 0);
        let [t, h, w] = [[2, 1, 1, 2, 1, 1], [1, 2, 1, 1, 2, 1], [1, 1, 2, 1, 1, 2]];
        let cube = pair.clone().reshape(t) * pair.clone().reshape(h) * pair.reshape(w) / 8f64.sqrt();
        let mut bands: Tensor<4> = cube.clone().reshape([8, 2, 2, 2]);
        let mut edge = 2;
        while edge < self.patch {
            // The next level works on the low and high bands of pairs of what this level made.
            let next = cube.clone().reshape([8, 1, 2, 1, 2, 1, 2, 1])
                * bands.reshape([1, edge.pow(3), 1, edge, 1, edge, 1, edge]);
            edge *= 2;
            bands = next.reshape([edge.pow(3), edge, edge, edge]);
        }
        bands.reshape([self.patch.pow(3), self.patch.pow(3)])
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
