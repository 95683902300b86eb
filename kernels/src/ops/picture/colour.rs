//! YUV to RGB in whole numbers.
//!
//! Subsampled pictures follow libswscale's default conversion bit for bit, since that is what trained models have seen
//! through ffmpeg, PyAV or decord: coefficients of 13 bits, every term cut to a whole level by itself, on average 1.2
//! levels (limited range) below exact arithmetic. Full-size chroma and samples of 10 bits, for which libswscale rounds, are
//! rounded here, once.

use super::{Layout, Matrix, Picture, Range};

/// Bits after the point of a coefficient.
const BITS: u32 = 16;

/// r = luma + rv V, g = luma + gu U + gv V, b = luma + bu U; luma = y (Y - offset), U and V less the neutral sample.
/// Coefficients are x 2^16, and sums are levels x 2^`drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Coefficients {
    pub y: i32,
    pub rv: i32,
    pub gu: i32,
    pub gv: i32,
    pub bu: i32,
    /// Added to every sum: the offset of luma, and one half where the sum is rounded.
    pub base: i32,
    /// Bits of a chroma term that count: the others are cut.
    pub mask: i32,
    /// The sample of no colour.
    pub neutral: i32,
    pub drop: u32,
}

impl Coefficients {
    pub(super) fn new(picture: &Picture) -> Coefficients {
        let (kr, kb) = match picture.matrix {
            Matrix::Bt601 => (0.299, 0.114),
            Matrix::Bt709 => (0.2126, 0.0722),
            Matrix::Bt2020 => (0.2627, 0.0593),
        };
        let kg = 1.0 - kr - kb;
        let (offset, luma, chroma) = match picture.range {
            Range::Limited => (16, 255.0 / 219.0, 255.0 / 224.0),
            Range::Full => (0, 1.0, 1.0),
        };
        let deeper = picture.layout.sample_bits() - 8;
        let rounded = picture.layout == Layout::I444 || deeper > 0;
        let fixed = |value: f64| {
            let bits = if rounded { BITS } else { 13 };
            ((value * f64::from(1 << bits)).round() as i32) << (BITS - bits)
        };
        let y = fixed(luma);
        Coefficients {
            y,
            rv: fixed(2.0 * (1.0 - kr) * chroma),
            gu: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            gv: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            bu: fixed(2.0 * (1.0 - kb) * chroma),
            base: if rounded { 1 << (BITS + deeper - 1) } else { 0 } - y * (offset << deeper),
            mask: if rounded { -1 } else { -1 << BITS },
            neutral: 128 << deeper,
            drop: BITS + deeper,
        }
    }

    /// What a chroma sample adds to r, g and b, with the base.
    #[inline(always)]
    fn terms(&self, u: u16, v: u16) -> [i32; 3] {
        let (u, v) = (i32::from(u) - self.neutral, i32::from(v) - self.neutral);
        let cut = |term: i32| term & self.mask;
        [self.base + cut(self.rv * v), self.base + cut(self.gu * u) + cut(self.gv * v), self.base + cut(self.bu * u)]
    }
}

/// What chroma adds to r, g and b of each pixel of a row.
pub(super) struct Chroma {
    pub r: Vec<i32>,
    pub g: Vec<i32>,
    pub b: Vec<i32>,
}

impl Chroma {
    pub(super) fn new(width: usize) -> Chroma {
        // One more than an odd width, because samples are written in pairs.
        let row = || vec![0; width + 1];
        Chroma { r: row(), g: row(), b: row() }
    }

    /// Fills the row from `count` chroma samples `uv(i)`; each stands for `step` (1 or 2) pixels.
    #[inline(always)]
    pub(super) fn fill(&mut self, k: &Coefficients, count: usize, step: usize, uv: impl Fn(usize) -> (u16, u16)) {
        if step == 1 {
            let rows = self.r.iter_mut().zip(&mut self.g).zip(&mut self.b);
            for (i, ((r, g), b)) in rows.enumerate().take(count) {
                let (u, v) = uv(i);
                [*r, *g, *b] = k.terms(u, v);
            }
            return;
        }
        let pairs = self.r.chunks_exact_mut(2).zip(self.g.chunks_exact_mut(2)).zip(self.b.chunks_exact_mut(2));
        for (i, ((r, g), b)) in pairs.enumerate().take(count) {
            let (u, v) = uv(i);
            let [tr, tg, tb] = k.terms(u, v);
            r.fill(tr);
            g.fill(tg);
            b.fill(tb);
        }
    }
}

/// One plane of RGB: luma and what chroma adds to it, clamped to a level.
#[inline(always)]
pub(super) fn convert<T: Copy + Into<i32>>(k: &Coefficients, luma: &[T], add: &[i32], out: &mut [u8]) {
    for ((out, &luma), &add) in out.iter_mut().zip(luma).zip(add) {
        let value = k.y.wrapping_mul(luma.into()).wrapping_add(add).max(0) >> k.drop;
        *out = value.min(255) as u8;
    }
}
