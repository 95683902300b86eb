//! The op on the CPU: patches of 16 neighbouring cells are turned at once, in lanes; frames are shared out over threads.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{Form, HaarFront, HaarOps, Sizes, band};
use crate::simd::{LANES, wide};

impl HaarOps for Flex {
    fn haar_cells(x: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        let sizes = Sizes::of_frames(x.shape().dims(), form.patch);
        let job = Job::new(sizes, &taps, form);
        let values = slice(&x);
        let mut cells = vec![0.0; sizes.bands().iter().product()];
        let [times, rows, columns] = sizes.cells;
        let size = job.bands.len() * sizes.colours * rows * columns;
        if size > 0 {
            cells.par_chunks_mut(size).enumerate().for_each(|(index, cells)| {
                to_cells(values, index / times, index % times, &job, cells);
            });
        }
        FloatTensor::<Self>::from_data(TensorData::new(cells, sizes.bands()))
    }

    fn haar_frames(z: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        let z = z.to_contiguous();
        let sizes = Sizes::of_cells(z.shape().dims(), form.patch);
        let job = Job::new(sizes, &taps, form);
        let values = slice(&z);
        let [_, _, frames, height, width] = sizes.frames();
        let mut pixels = vec![0.0; sizes.frames().iter().product()];
        if !pixels.is_empty() {
            // The frames of each cell, of each colour.
            let mut parts = Vec::new();
            for (plane, clip) in pixels.chunks_exact_mut(frames * height * width).enumerate() {
                let (first, rest) = clip.split_at_mut(height * width);
                parts.push((plane, 0, first));
                let rest = rest.chunks_exact_mut(sizes.patch * height * width);
                parts.extend(rest.enumerate().map(|(index, frames)| (plane, index + 1, frames)));
            }
            parts.into_par_iter().for_each(|(plane, time, pixels)| to_frames(values, plane, time, &job, pixels));
        }
        FloatTensor::<Self>::from_data(TensorData::new(pixels, sizes.frames()))
    }
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor is a slice")
}

struct Job {
    sizes: Sizes,
    taps: [f32; 2],
    form: Form,
    /// The sub-band that stands at each place of a patch.
    bands: Vec<usize>,
}

impl Job {
    fn new(sizes: Sizes, taps: &FloatTensor<Flex>, form: Form) -> Job {
        let (taps, p) = (taps.to_contiguous(), form.patch);
        let taps = slice(&taps);
        let bands = (0..p.pow(3)).map(|place| band([place / (p * p), place / p % p, place % p], p)).collect();
        Job { sizes, taps: [taps[0], taps[1]], form, bands }
    }
}

/// Pairs along every axis, from neighbours to what lies further apart, to low and high.
#[inline(always)]
fn turn(patch: &mut [[f32; LANES]], [a, b]: [f32; 2]) {
    let mut step = 1;
    while step < patch.len() {
        for pairs in patch.chunks_exact_mut(2 * step) {
            let (low, high) = pairs.split_at_mut(step);
            for (low, high) in low.iter_mut().zip(high) {
                for (low, high) in low.iter_mut().zip(high) {
                    (*low, *high) = (b * *low + a * *high, a * *low - b * *high);
                }
            }
        }
        step *= 2;
    }
}

wide! {
    /// All sub-bands of the cells of one time.
    fn to_cells(x: &[f32], clip: usize, time: usize, job: &Job, cells: &mut [f32]) {
        let Sizes { colours, cells: [_, rows, columns], patch: p, .. } = job.sizes;
        let [_, _, frames, height, width] = job.sizes.frames();
        let mut patch = vec![[0.0; LANES]; p * p * p];
        for (colour, row) in (0..colours).flat_map(|colour| (0..rows).map(move |row| (colour, row))) {
            for start in (0..columns).step_by(LANES) {
                let count = LANES.min(columns - start);
                for (line, patch) in patch.chunks_exact_mut(p).enumerate() {
                    let (t, y) = (line / p, line % p);
                    let frame = match job.form.front {
                        HaarFront::Copies if time == 0 => 0,
                        HaarFront::Last if time == 0 && t + 1 < p => {
                            patch.fill([0.0; LANES]);
                            continue;
                        }
                        _ => time * p + t + 1 - p,
                    };
                    let at = (((clip * colours + colour) * frames + frame) * height + row * p + y) * width + start * p;
                    let line = &x[at..][..count * p];
                    for (lane, pixels) in line.chunks_exact(p).enumerate() {
                        for (value, &pixel) in patch.iter_mut().zip(pixels) {
                            value[lane] = pixel;
                        }
                    }
                }
                turn(&mut patch, job.taps);
                for (values, &band) in patch.iter().zip(&job.bands) {
                    let at = ((band * colours + colour) * rows + row) * columns + start;
                    for (cell, &value) in cells[at..][..count].iter_mut().zip(values) {
                        *cell = value * job.form.scale;
                    }
                }
            }
        }
    }
}

wide! {
    /// The frames of one colour that the cells of one time make.
    fn to_frames(z: &[f32], plane: usize, time: usize, job: &Job, pixels: &mut [f32]) {
        let Sizes { colours, cells: [times, rows, columns], patch: p, .. } = job.sizes;
        let [.., height, width] = job.sizes.frames();
        let (clip, colour) = (plane / colours, plane % colours);
        let start_of_cells = (clip * times + time) * job.bands.len() * colours * rows * columns;
        let mut patch = vec![[0.0; LANES]; p * p * p];
        for row in 0..rows {
            for start in (0..columns).step_by(LANES) {
                let count = LANES.min(columns - start);
                for (values, &band) in patch.iter_mut().zip(&job.bands) {
                    let at = start_of_cells + ((band * colours + colour) * rows + row) * columns + start;
                    for (value, &cell) in values.iter_mut().zip(&z[at..][..count]) {
                        *value = cell * job.form.scale;
                    }
                }
                turn(&mut patch, job.taps);
                for (line, patch) in patch.chunks_exact(p).enumerate() {
                    let (t, y) = (line / p, line % p);
                    if time == 0 && job.form.front == HaarFront::Last && t + 1 < p {
                        continue;
                    }
                    // The first cell makes one frame.
                    let frame = if time == 0 { 0 } else { t };
                    let at = (frame * height + row * p + y) * width + start * p;
                    for (lane, line) in pixels[at..][..count * p].chunks_exact_mut(p).enumerate() {
                        for (pixel, values) in line.iter_mut().zip(patch) {
                            *pixel += values[lane];
                        }
                    }
                }
            }
        }
    }
}
