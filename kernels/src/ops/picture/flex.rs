//! The op on the CPU: rows are converted once, summed over columns' taps, then over rows' taps.
//!
//! Inner loops say `wrapping_`: their sums fit 32 bits by the choice of bits in `taps`, and without the overflow checks of
//! a development build they run eight lanes wide.

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::colour::{Chroma, Coefficients, convert};
use super::taps::{Axis, BETWEEN_BITS, COLUMN_BITS, ROW_BITS, Taps};
use super::{Job, Layout, Picture, PictureOps, Rounding};

impl PictureOps for Flex {
    fn picture(frames: IntTensor<Self>, taps: IntTensor<Self>, job: Job) -> FloatTensor<Self> {
        let (frames, taps) = (frames.to_contiguous(), taps.to_contiguous());
        let words = frames.as_slice::<u32>().expect("`words` makes u32");
        let table = taps.as_slice::<u32>().expect("`into_table` makes u32");
        let taps = Taps::from_table(table, &job.picture, &job.resize);
        let bytes = &bytemuck::cast_slice(words)[..job.frames * job.picture.frame_bytes()];

        let (h, w) = (job.resize.height, job.resize.width);
        let mut levels = vec![0; job.frames * 3 * h * w];
        self::levels(bytes, &job, &taps, &mut levels);
        let table = level_values();
        let mut values = vec![0.0; levels.len()];
        values.par_chunks_mut(3 * h * w).zip(levels.par_chunks(3 * h * w)).for_each(|(values, levels)| {
            for (channel, values) in values.chunks_exact_mut(h * w).enumerate() {
                for (value, level) in values.iter_mut().zip(levels[channel..].iter().step_by(3)) {
                    *value = table[usize::from(*level)];
                }
            }
        });
        FloatTensor::<Self>::from_data(TensorData::new(values, [job.frames, 3, h, w]))
    }
}

/// v / 127.5 - 1 of each level.
pub(super) fn level_values() -> [f32; 256] {
    std::array::from_fn(|level| level as f32 / 127.5 - 1.0)
}

/// Frames to levels [T, H, W, 3].
pub(super) fn levels(frames: &[u8], job: &Job, taps: &Taps, levels: &mut [u8]) {
    let source = frames.par_chunks_exact(job.picture.frame_bytes());
    let out = levels.par_chunks_exact_mut(3 * job.resize.height * job.resize.width);
    source.zip(out).for_each_init(
        || Scratch::new(&job.picture, taps),
        |scratch, (frame, out)| {
            resize_frame(frame, job, taps, scratch, out);
        },
    );
}

/// What one thread needs beside a frame.
struct Scratch {
    /// The last `rows.count` converted rows, each three planes of a row; source row y is in slot y mod count.
    ring: Vec<u8>,
    chroma: Chroma,
    /// Luma of a row, where it has more than 8 bits.
    luma: Vec<u16>,
    /// Sums over the taps of a column: three planes of a row.
    sums: Vec<u32>,
    /// The same with [`BETWEEN_BITS`] below a level.
    between: Vec<u16>,
}

impl Scratch {
    fn new(picture: &Picture, taps: &Taps) -> Scratch {
        let row = 3 * picture.width;
        Scratch {
            ring: vec![0; row * taps.rows.count],
            chroma: Chroma::new(picture.width),
            luma: vec![0; picture.width],
            sums: vec![0; row],
            between: vec![0; row],
        }
    }
}

fn resize_frame(frame: &[u8], job: &Job, taps: &Taps, scratch: &mut Scratch, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above has checked that the machine has AVX2.
        return unsafe { resize_frame_avx2(frame, job, taps, scratch, out) };
    }
    resize_frame_body(frame, job, taps, scratch, out);
}

/// The same code, compiled for eight lanes instead of four. Whole numbers: the result cannot differ.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn resize_frame_avx2(frame: &[u8], job: &Job, taps: &Taps, scratch: &mut Scratch, out: &mut [u8]) {
    resize_frame_body(frame, job, taps, scratch, out);
}

#[inline(always)]
fn resize_frame_body(frame: &[u8], job: &Job, taps: &Taps, scratch: &mut Scratch, out: &mut [u8]) {
    let k = Coefficients::new(&job.picture);
    let slots = taps.rows.count;
    let row = 3 * job.picture.width;
    let mut converted = 0;
    let mut chroma_row = usize::MAX;
    for (oy, out) in out.chunks_exact_mut(3 * job.resize.width).enumerate() {
        let start = taps.rows.starts[oy] as usize;
        // Rows between two windows, which the plain bilinear filter leaves out, are never converted.
        for y in converted.max(start)..start + slots {
            let slot = y % slots * row;
            let Scratch { ring, chroma, luma, .. } = &mut *scratch;
            convert_row(frame, &job.picture, &k, y, &mut chroma_row, chroma, luma, &mut ring[slot..slot + row]);
        }
        converted = start + slots;
        scratch.sums.fill(0);
        for (tap, &weight) in taps.rows.weights[oy * slots..(oy + 1) * slots].iter().enumerate() {
            let slot = (start + tap) % slots * row;
            for (sum, &level) in scratch.sums.iter_mut().zip(&scratch.ring[slot..slot + row]) {
                *sum = sum.wrapping_add(weight.wrapping_mul(u32::from(level)));
            }
        }
        const DROP: u32 = ROW_BITS - BETWEEN_BITS;
        for (between, &sum) in scratch.between.iter_mut().zip(&scratch.sums) {
            *between = (sum.wrapping_add(1 << (DROP - 1)) >> DROP) as u16;
        }
        sum_rows(&taps.columns, &scratch.between, job.resize.rounding, out);
    }
}

/// Row `y` of the frame as three planes.
#[inline(always)]
fn convert_row(
    frame: &[u8],
    picture: &Picture,
    k: &Coefficients,
    y: usize,
    chroma_row: &mut usize,
    chroma: &mut Chroma,
    deep_luma: &mut [u16],
    planes: &mut [u8],
) {
    let w = picture.width;
    let (r, rest) = planes.split_at_mut(w);
    let (g, b) = rest.split_at_mut(w);
    if picture.layout == Layout::Rgb {
        let pixels = frame[y * 3 * w..(y + 1) * 3 * w].chunks_exact(3);
        for (((pixel, r), g), b) in pixels.zip(r).zip(g).zip(b) {
            (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
        }
        return;
    }
    let (cw, ch) = (picture.chroma_width(), picture.chroma_height());
    let cy = if ch == picture.height { y } else { y / 2 };
    let step = if cw == w { 1 } else { 2 };
    let unused = picture.layout.unused_bits();
    let deep = |at: usize, unused: u32| (u16::from_le_bytes([frame[2 * at], frame[2 * at + 1]]) >> unused).min(1023);
    if *chroma_row != cy {
        *chroma_row = cy;
        let base = w * picture.height;
        // Places of a sample's U and V in the planes of chroma.
        let at = |i: usize| match picture.layout.is_paired() {
            true => (base + 2 * (cy * cw + i), base + 2 * (cy * cw + i) + 1),
            false => (base + cy * cw + i, base + (ch + cy) * cw + i),
        };
        match unused {
            None => chroma.fill(k, cw, step, |i| (frame[at(i).0].into(), frame[at(i).1].into())),
            Some(unused) => chroma.fill(k, cw, step, |i| (deep(at(i).0, unused), deep(at(i).1, unused))),
        }
    }
    let planes = [(&chroma.r, r), (&chroma.g, g), (&chroma.b, b)];
    match unused {
        None => planes.into_iter().for_each(|(add, out)| convert(k, &frame[y * w..(y + 1) * w], add, out)),
        Some(unused) => {
            deep_luma.iter_mut().enumerate().for_each(|(x, to)| *to = deep(y * w + x, unused));
            planes.into_iter().for_each(|(add, out)| convert(k, deep_luma, add, out));
        }
    }
}

/// Three planes of sums to one row of pixels.
#[inline(always)]
fn sum_rows(axis: &Axis, between: &[u16], rounding: Rounding, out: &mut [u8]) {
    const DROP: u32 = COLUMN_BITS + BETWEEN_BITS;
    let half = if rounding == Rounding::Nearest { 1 << (DROP - 1) } else { 0 };
    let width = between.len() / 3;
    let (r, rest) = between.split_at(width);
    let (g, b) = rest.split_at(width);
    let pixels = out.chunks_exact_mut(3).zip(&axis.starts).zip(axis.weights.chunks_exact(axis.count));
    for ((pixel, &start), weights) in pixels {
        let window = start as usize..start as usize + axis.count;
        let sum = |plane: &[u16]| -> u32 {
            let terms = plane[window.clone()].iter().zip(weights);
            terms.fold(0, |sum, (&value, &weight)| sum.wrapping_add(u32::from(value).wrapping_mul(weight)))
        };
        // The largest sum is 255 x 2^24, and half a level more still fits 32 bits.
        let level = |sum: u32| (sum.wrapping_add(half) >> DROP) as u8;
        (pixel[0], pixel[1], pixel[2]) = (level(sum(r)), level(sum(g)), level(sum(b)));
    }
}
