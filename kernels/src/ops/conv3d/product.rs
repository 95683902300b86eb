//! Products with the matrix of [`Columns`]: weights times columns, which is a convolution, and gradients times columns,
//! which is the gradient of its weights. Plain slices, threads by rayon.
//!
//! Sums run over blocks of fixed size, and blocks in a fixed order, whatever the threads: results do not depend on them.
//! Nor does an output pixel depend on which others are computed with it.

use std::cell::Cell;

use rayon::prelude::*;

use super::columns::{Columns, Run};
use crate::lanes::{Lanes, Tile, Work, tile, tile_width, with_lanes};

/// Lines of the matrix that are packed at a time: with the widest tile, a panel of 256 lines just fills an L1 cache.
const DEPTH: usize = 256;
/// Panels that one thread packs at a time, so that a weight which it fetches serves all of them.
const PANELS: usize = 4;
/// Multiplications below which waking a second thread costs more than it saves.
const SMALL: usize = 2_000_000;

/// Where results go, and what is added to them.
pub(super) struct Target<'a> {
    /// First value of each output frame: rows of the product are `plane` apart, pixels as the steps say.
    pub(super) frames: Vec<*mut f32>,
    pub(super) plane: usize,
    pub(super) row_step: usize,
    pub(super) column_step: usize,
    /// One value for each row of the product.
    pub(super) bias: Option<&'a [f32]>,
    /// Added to the result of each frame, which has the same shape.
    pub(super) onto: Option<Vec<&'a [f32]>>,
}

// SAFETY: threads write disjoint pixels, as `convolve` hands each of them a range of its own.
unsafe impl Sync for Target<'_> {}

/// `weights [rows, depth]` times the matrix.
///
/// # Safety
/// Pointers of the target are valid for all that the product writes, and no two frames overlap.
pub(super) unsafe fn convolve(weights: &[f32], rows: usize, columns: &Columns<'_>, target: &Target<'_>) {
    let (depth, count) = (columns.depth(), columns.count());
    assert_eq!(weights.len(), rows * depth, "a weight for each row and line");
    let width = tile_width();
    let small = rows * depth * count < SMALL;
    let panels = if small { PANELS } else { PANELS.min(count.div_ceil(width * rayon::current_num_threads())).max(1) };
    let block = |start: usize| {
        let end = count.min(start + panels * width);
        with_lanes(Block { weights, rows, columns, target, pixels: start..end });
    };
    if small {
        (0..count).step_by(panels * width).for_each(block);
    } else {
        (0..count.div_ceil(panels * width)).into_par_iter().for_each(|index| block(index * panels * width));
    }
}

struct Block<'a> {
    weights: &'a [f32],
    rows: usize,
    columns: &'a Columns<'a>,
    target: &'a Target<'a>,
    pixels: std::ops::Range<usize>,
}

impl Work for Block<'_> {
    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Block { weights, rows, columns, target, pixels } = self;
        let runs = columns.runs(pixels.clone(), S::WIDTH);
        let count = pixels.len();
        let panels = count.div_ceil(S::WIDTH);
        let depth = columns.depth();
        let (groups, taps) = (columns.groups(), columns.taps());
        let together = (DEPTH / taps.max(1)).clamp(1, groups.max(1));
        let lines = together * taps;
        let mut scratch = Scratch::take();
        let packed = scratch.values(0, panels * lines * S::WIDTH);
        let sums = scratch.values(1, panels * rows * S::WIDTH);
        for start in (0..groups).step_by(together) {
            let end = groups.min(start + together);
            // SAFETY: `packed` has lines x WIDTH values per panel, `sums` rows x WIDTH; a panel's last columns may be left
            // over from another call, and so are their sums, which nobody reads.
            unsafe {
                columns.pack::<S>(start..end, &runs, packed, lines * S::WIDTH, S::WIDTH);
                for panel in 0..panels {
                    let width = S::WIDTH.min(count - panel * S::WIDTH);
                    for row in (0..rows).step_by(S::ROWS) {
                        let part = Tile {
                            depth: (end - start) * taps,
                            a: weights.as_ptr().add(row * depth + start * taps),
                            a_step: depth,
                            b: packed.add(panel * lines * S::WIDTH),
                            c: sums.add((panel * rows + row) * S::WIDTH),
                            c_step: S::WIDTH,
                            fresh: start == 0,
                        };
                        tile::<S>(part, S::ROWS.min(rows - row), width);
                    }
                }
            }
        }
        for row in 0..rows {
            for run in &runs {
                // SAFETY: the target is valid by the contract of `convolve`.
                unsafe { write::<S>(target, row, run, sums.add((run.panel * rows + row) * S::WIDTH + run.lane)) }
            }
        }
    }
}

/// Sums of one row and run to their places.
///
/// # Safety
/// As [`convolve`].
#[inline(always)]
unsafe fn write<S: Lanes>(target: &Target<'_>, row: usize, run: &Run, sums: *const f32) {
    let bias = target.bias.map_or(0.0, |bias| bias[row]);
    let place = row * target.plane + run.row * target.row_step + run.column * target.column_step;
    // SAFETY: the caller's.
    unsafe {
        let to = target.frames[run.frame].add(place);
        match &target.onto {
            Some(onto) => {
                let onto = &onto[run.frame][place..];
                for at in 0..run.count {
                    let to = to.add(at * target.column_step);
                    *to = *sums.add(at) + bias + onto[at * target.column_step];
                }
            }
            None if target.column_step == 1 => {
                for at in 0..run.count {
                    *to.add(at) = *sums.add(at) + bias;
                }
            }
            None => {
                for at in 0..run.count {
                    *to.add(at * target.column_step) = *sums.add(at) + bias;
                }
            }
        }
    }
}

/// Pixels over which one block of a weight's gradient is summed.
const SUMMED: usize = 256;
/// Blocks for which the gradient is turned at a time.
const TURNED: usize = 8;
/// Lines of the matrix that one thread takes at a time, about.
const LINES: usize = 64;

/// The matrix times a gradient of the output, a list of frames `[rows, pixels]`: `[depth, rows]`, lines `stride` apart.
pub(super) fn weight_gradient(gradient: &[f32], rows: usize, columns: &Columns<'_>) -> (Vec<f32>, usize) {
    let (depth, count) = (columns.depth(), columns.count());
    assert_eq!(gradient.len(), rows * count, "a gradient for each row and pixel");
    let width = tile_width();
    // Whole panels, so that a tile may write all of its columns.
    let stride = rows.next_multiple_of(width);
    let mut sums = vec![0.0; depth * stride];
    if depth == 0 {
        return (sums, stride);
    }
    let mut turned = vec![0.0; stride * SUMMED * TURNED.min(count.div_ceil(SUMMED))];
    let small = rows * depth * count < SMALL;
    let (groups, taps) = (columns.groups(), columns.taps());
    let together = groups.div_ceil(2 * rayon::current_num_threads()).min(LINES.div_ceil(taps));
    for start in (0..count).step_by(SUMMED * TURNED) {
        let end = count.min(start + SUMMED * TURNED);
        let turn = |(block, to): (usize, &mut [f32])| {
            let first = start + block * SUMMED;
            if first < end {
                turn(gradient, rows, columns.frame_count(), first..end.min(first + SUMMED), width, to);
            }
        };
        if small {
            turned.chunks_mut(stride * SUMMED).enumerate().for_each(turn);
        } else {
            turned.par_chunks_mut(stride * SUMMED).enumerate().for_each(turn);
        }
        let add = |(part, sums): (usize, &mut [f32])| {
            let groups = part * together..groups.min((part + 1) * together);
            with_lanes(Lines { columns, groups, pixels: start..end, turned: &turned, rows, stride, sums });
        };
        if small {
            sums.chunks_mut(together * taps * stride).enumerate().for_each(add);
        } else {
            sums.par_chunks_mut(together * taps * stride).enumerate().for_each(add);
        }
    }
    (sums, stride)
}

/// Rows of pixels to panels of lanes: `to[panel][pixel][lane]` is the gradient of row panel x width + lane at a pixel.
fn turn(gradient: &[f32], rows: usize, plane: usize, pixels: std::ops::Range<usize>, width: usize, to: &mut [f32]) {
    for (panel, to) in to.chunks_mut(width * SUMMED).enumerate() {
        for row in panel * width..rows.min((panel + 1) * width) {
            let mut pixel = pixels.start;
            while pixel < pixels.end {
                let (frame, place) = (pixel / plane, pixel % plane);
                let count = (plane - place).min(pixels.end - pixel);
                let from = &gradient[(frame * rows + row) * plane + place..][..count];
                let to = to[(pixel - pixels.start) * width + row % width..].iter_mut().step_by(width);
                to.zip(from).for_each(|(to, from)| *to = *from);
                pixel += count;
            }
        }
    }
}

struct Lines<'a> {
    columns: &'a Columns<'a>,
    groups: std::ops::Range<usize>,
    pixels: std::ops::Range<usize>,
    turned: &'a [f32],
    rows: usize,
    stride: usize,
    sums: &'a mut [f32],
}

impl Work for Lines<'_> {
    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Lines { columns, groups, pixels, turned, rows, stride, sums } = self;
        let count = groups.len() * columns.taps();
        let mut scratch = Scratch::take();
        let packed = scratch.values(0, count * SUMMED);
        for (block, start) in pixels.clone().step_by(SUMMED).enumerate() {
            let part = start..pixels.end.min(start + SUMMED);
            let runs = columns.runs(part.clone(), SUMMED);
            // SAFETY: `packed` has SUMMED values per line; a block of `turned` has stride x SUMMED, a panel of it
            // WIDTH x SUMMED; `sums` has `stride`, whole panels, per line.
            unsafe {
                columns.pack::<S>(groups.clone(), &runs, packed, 0, SUMMED);
                for panel in 0..stride / S::WIDTH {
                    let width = S::WIDTH.min(rows - panel * S::WIDTH);
                    for line in (0..count).step_by(S::ROWS) {
                        let product = Tile {
                            depth: part.len(),
                            a: packed.add(line * SUMMED),
                            a_step: SUMMED,
                            b: turned.as_ptr().add((block * stride + panel * S::WIDTH) * SUMMED),
                            c: sums.as_mut_ptr().add(line * stride + panel * S::WIDTH),
                            c_step: stride,
                            fresh: false,
                        };
                        tile::<S>(product, S::ROWS.min(count - line), width);
                    }
                }
            }
        }
    }
}

/// Two buffers that a thread keeps from call to call. What they hold is left over.
struct Scratch([Vec<f32>; 2]);

thread_local! {
    static SCRATCH: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

impl Scratch {
    fn take() -> Scratch {
        Scratch(SCRATCH.take())
    }

    /// Buffer `index` (0 or 1) with `count` values at least, from the start of a cache line, so that no vector crosses one.
    fn values(&mut self, index: usize, count: usize) -> *mut f32 {
        let values = &mut self.0[index];
        if values.len() < count + LINE {
            values.resize(count + LINE, 0.0);
        }
        let start = values.as_ptr().align_offset(4 * LINE).min(LINE);
        values[start..].as_mut_ptr()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// Values in a cache line.
const LINE: usize = 16;
