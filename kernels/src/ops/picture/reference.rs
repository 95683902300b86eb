//! The same by plain loops in f64: every output pixel on its own, filter weights from their definition.

use burn::tensor::TensorData;

use super::{Filter, Job, Layout, Matrix, Picture, Range, Resize, Rounding, Taps, words};
use crate::ops::Draws;

pub(super) fn job(case: &[usize]) -> Job {
    let picture = Picture {
        layout: [Layout::I420, Layout::I422, Layout::I444, Layout::Nv12, Layout::Rgb, Layout::I010, Layout::P010]
            [case[5]],
        matrix: [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020][case[6]],
        range: [Range::Limited, Range::Full][case[7]],
        width: case[2],
        height: case[1],
    };
    let filter = [Filter::Antialias, Filter::Bilinear][case[8]];
    let resize = Resize { height: case[3], width: case[4], filter, rounding: Rounding::Truncate };
    Job { picture, resize, frames: case[0] }
}

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let job = job(case);
    let mut draws = Draws::new(seed);
    let bytes: Vec<u8> = (0..job.frames * job.picture.frame_bytes()).map(|_| draws.bits() as u8).collect();
    let (frames, taps) = (words(&bytes), Taps::new(&job.picture, &job.resize).into_table());
    [frames, taps]
        .map(|words| {
            let count = words.len();
            TensorData::new(words, [count])
        })
        .into()
}

/// RGB of one pixel, in 8 bits: rounded once, or cut term by term where chroma is subsampled.
pub(super) fn pixel(frame: &[u8], picture: &Picture, x: usize, y: usize) -> [f64; 3] {
    let (w, h) = (picture.width, picture.height);
    let (cw, ch) = (picture.chroma_width(), picture.chroma_height());
    let (cx, cy) = (if cw == w { x } else { x / 2 }, if ch == h { y } else { y / 2 });
    let at = |i: usize| match picture.layout {
        Layout::I010 | Layout::P010 => {
            let value = f64::from(frame[2 * i]) + 256.0 * f64::from(frame[2 * i + 1]);
            let value = if picture.layout == Layout::P010 { (value / 64.0).floor() } else { value };
            value.min(1023.0) / 4.0
        }
        _ => f64::from(frame[i]),
    };
    let (u, v) = match picture.layout {
        Layout::Rgb => return [0, 1, 2].map(|c| at((y * w + x) * 3 + c)),
        Layout::Nv12 | Layout::P010 => (at(w * h + (cy * cw + cx) * 2), at(w * h + (cy * cw + cx) * 2 + 1)),
        _ => (at(w * h + cy * cw + cx), at(w * h + cw * ch + cy * cw + cx)),
    };
    let (kr, kb) = match picture.matrix {
        Matrix::Bt601 => (0.299, 0.114),
        Matrix::Bt709 => (0.2126, 0.0722),
        Matrix::Bt2020 => (0.2627, 0.0593),
    };
    let (luma, black, chroma) = match picture.range {
        Range::Limited => (255.0 / 219.0, 16.0, 255.0 / 224.0),
        Range::Full => (1.0, 0.0, 1.0),
    };
    let (rv, bu) = (2.0 * (1.0 - kr) * chroma, 2.0 * (1.0 - kb) * chroma);
    let (gu, gv) = (-kb * bu / (1.0 - kr - kb), -kr * rv / (1.0 - kr - kb));
    let (l, u, v) = (at(y * w + x) - black, u - 128.0, v - 128.0);
    let rgb = if matches!(picture.layout, Layout::I444 | Layout::I010 | Layout::P010) {
        [luma * l + rv * v, luma * l + gu * u + gv * v, luma * l + bu * u].map(f64::round)
    } else {
        let cut = |scale: f64, sample: f64| ((scale * 8192.0).round() * sample / 8192.0).floor();
        let l = cut(luma, l);
        [l + cut(rv, v), l + cut(gu, u) + cut(gv, v), l + cut(bu, u)]
    };
    rgb.map(|level| level.clamp(0.0, 255.0))
}

/// Weight of source pixel `i` of `from` in output pixel `o` of `to`, before the weights are made to sum to 1.
pub(super) fn weight(i: usize, o: usize, from: usize, to: usize, filter: Filter) -> f64 {
    let scale = from as f64 / to as f64;
    let centre = (o as f64 + 0.5) * scale - 0.5;
    match filter {
        Filter::Antialias => (1.0 - (i as f64 - centre).abs() / scale.max(1.0)).max(0.0),
        Filter::Bilinear => (1.0 - (i as f64 - centre.clamp(0.0, from as f64 - 1.0)).abs()).max(0.0),
    }
}

/// Values before they become levels, [T, 3, H, W].
pub(super) fn values(frames: &[u8], job: &Job) -> Vec<f64> {
    let (picture, resize) = (&job.picture, &job.resize);
    let weights = |o: usize, from: usize, to: usize| {
        let weights: Vec<f64> = (0..from).map(|i| weight(i, o, from, to, resize.filter)).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect::<Vec<_>>()
    };
    let mut out = Vec::new();
    for frame in frames.chunks(picture.frame_bytes()).take(job.frames) {
        for channel in 0..3 {
            for oy in 0..resize.height {
                let rows = weights(oy, picture.height, resize.height);
                for ox in 0..resize.width {
                    let columns = weights(ox, picture.width, resize.width);
                    let mut sum = 0.0;
                    for (y, wy) in rows.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                        for (x, wx) in columns.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                            sum += wy * wx * pixel(frame, picture, x, y)[channel];
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

pub(super) fn normalised(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let words = inputs[0].as_slice::<u32>().expect("`inputs` makes u32");
    let values = values(bytemuck::cast_slice(words), &job(case));
    // A sum that should be whole may lie a hair below it.
    values.into_iter().map(|value| (value + 1e-9).floor() / 127.5 - 1.0).collect()
}
