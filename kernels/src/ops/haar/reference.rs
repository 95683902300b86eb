//! The wavelets in f64 and plain loops, band by band; and seeded inputs.

use burn::tensor::TensorData;

use super::Sizes;
use crate::ops::Draws;

pub(super) fn sizes(case: &[usize]) -> Sizes {
    Sizes { clips: case[0], colours: case[1], cells: [case[2], case[3], case[4]], patch: case[5] }
}

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let sizes = sizes(case);
    let shape = if case[6] == 1 { sizes.bands() } else { sizes.frames() };
    let count = shape.iter().product();
    let mut draws = Draws::new(seed);
    let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 2.0) as f32).collect();
    // Unlike taps tell which is which.
    vec![TensorData::new(values, [count]), TensorData::new(vec![0.6f32, 0.8], [2])]
}

fn values(inputs: &[TensorData], index: usize) -> Vec<f64> {
    inputs[index].as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&value| f64::from(value)).collect()
}

/// Sees every pair of a pixel and a band of one cell that both exist: where they lie, and the weight between them. `copies`
/// says whether the first frame fills its cell, or stands last in it.
fn pairs(sizes: Sizes, taps: &[f64], copies: bool, mut see: impl FnMut(usize, usize, f64)) {
    let Sizes { clips, colours, cells: [times, rows, columns], patch } = sizes;
    let [.., frames, height, width] = sizes.frames();
    let levels = patch.ilog2();
    let factor = |pixel: usize, band: usize| match (band, pixel) {
        (0, 0) => taps[1],
        (0, _) | (_, 0) => taps[0],
        _ => -taps[1],
    };
    for index in 0..clips * colours * times * rows * columns {
        let (column, row, time) = (index % columns, index / columns % rows, index / (columns * rows) % times);
        let (colour, clip) = (index / (columns * rows * times) % colours, index / (columns * rows * times * colours));
        for pixel in 0..patch.pow(3) {
            let (t, y, x) = (pixel / (patch * patch), pixel / patch % patch, pixel % patch);
            let frame = match (time, copies) {
                (0, true) => 0,
                (0, false) if t + 1 < patch => continue,
                _ => (time * patch + t + 1) - patch,
            };
            let at = (((clip * colours + colour) * frames + frame) * height + row * patch + y) * width;
            let at = at + column * patch + x;
            for band in 0..patch.pow(3) {
                let mut weight = 1.0;
                for level in 0..levels {
                    let letters = band >> (3 * level) & 7;
                    weight *= factor(t >> level & 1, letters >> 2);
                    weight *= factor(y >> level & 1, letters >> 1 & 1);
                    weight *= factor(x >> level & 1, letters & 1);
                }
                let channel = band * colours + colour;
                let cell = ((clip * times + time) * patch.pow(3) * colours + channel) * rows * columns;
                see(at, cell + row * columns + column, weight);
            }
        }
    }
}

/// The direction of the case, or its transpose.
fn moved(case: &[usize], inputs: &[TensorData], x: &[f64], transposed: bool) -> Vec<f64> {
    let (sizes, back) = (sizes(case), case[6] == 1);
    let root = 8f64.powi(sizes.patch.ilog2() as i32).sqrt();
    let scale = if back { root } else { 1.0 / root };
    let to_frames = back != transposed;
    let shape = if to_frames { sizes.frames() } else { sizes.bands() };
    let mut result = vec![0.0; shape.iter().product()];
    pairs(sizes, &values(inputs, 1), !back, |pixel, band, weight| {
        let (from, to) = if to_frames { (band, pixel) } else { (pixel, band) };
        result[to] += scale * weight * x[from];
    });
    result
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    moved(case, inputs, &values(inputs, 0), false)
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
    moved(case, inputs, &weights, true)
}
