//! Figures of merit, on the host in f64: PSNR, SSIM, code usage.
//!
//! Clips f32 [B, C, T, H, W] in [-1, 1] are judged as 8-bit frames: values are rounded to 0..=255 first.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::floats;
use crate::{Error, Result};

/// Side of the window over which SSIM takes its means.
const WINDOW: usize = 7;

/// Peak signal-to-noise ratio in dB: mean over frames. Equal frames give infinity.
///
/// # Errors
/// Clips of different shapes.
pub fn psnr(x: Tensor<5>, y: Tensor<5>) -> Result<f64> {
    let [clips, channels, frames, h, w] = same(&x, &y)?;
    let (x, y) = (eight_bit(x), eight_bit(y));
    let plane = h * w;
    let mut sum = 0.0;
    for clip in 0..clips {
        for frame in 0..frames {
            let planes = (0..channels).map(|channel| ((clip * channels + channel) * frames + frame) * plane);
            let squares = planes.map(|at| {
                let pairs = x[at..at + plane].iter().zip(&y[at..at + plane]);
                pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
            });
            let error = squares.sum::<f64>() / (channels * plane) as f64;
            sum += 10.0 * (255.0f64.powi(2) / error).log10();
        }
    }
    Ok(sum / (clips * frames) as f64)
}

/// Structural similarity of Wang et al. 2004, as scikit-image has it: uniform window of 7 x 7 with sample covariance, data
/// range 255, a border of 3 left out; mean over positions, channels, frames.
///
/// # Errors
/// Clips of different shapes, or frames smaller than the window.
pub fn ssim(x: Tensor<5>, y: Tensor<5>) -> Result<f64> {
    let [_, _, _, h, w] = same(&x, &y)?;
    if h < WINDOW || w < WINDOW {
        return Err(Error::Input(format!("SSIM wants frames of at least {WINDOW} x {WINDOW} pixels, not {h} x {w}")));
    }
    let (x, y) = (eight_bit(x), eight_bit(y));
    let planes = x.chunks_exact(h * w).zip(y.chunks_exact(h * w));
    let count = planes.len() as f64;
    Ok(planes.map(|(x, y)| plane_ssim(x, y, w)).sum::<f64>() / count)
}

fn plane_ssim(x: &[f64], y: &[f64], w: usize) -> f64 {
    let (c1, c2) = ((0.01 * 255.0f64).powi(2), (0.03 * 255.0f64).powi(2));
    let n = (WINDOW * WINDOW) as f64;
    let means = |f: fn(f64, f64) -> f64| {
        let values: Vec<f64> = x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect();
        window_sums(&values, w).into_iter().map(move |sum| sum / n)
    };
    let firsts = means(|x, _| x).zip(means(|_, y| y));
    let seconds = means(|x, _| x * x).zip(means(|_, y| y * y)).zip(means(|x, y| x * y));
    let (mut sum, mut count) = (0.0, 0);
    for ((mx, my), ((xx, yy), xy)) in firsts.zip(seconds) {
        let sample = n / (n - 1.0);
        let (vx, vy, cov) = (sample * (xx - mx * mx), sample * (yy - my * my), sample * (xy - mx * my));
        sum += (2.0 * mx * my + c1) * (2.0 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2));
        count += 1;
    }
    sum / f64::from(count)
}

/// Sums over each window that lies within the plane. Values are whole numbers, so the sums are exact.
fn window_sums(values: &[f64], w: usize) -> Vec<f64> {
    let across: Vec<f64> = values.chunks_exact(w).flat_map(|row| row.windows(WINDOW).map(|r| r.iter().sum())).collect();
    let width = w + 1 - WINDOW;
    let rows: Vec<&[f64]> = across.chunks_exact(width).collect();
    rows.windows(WINDOW).flat_map(|rows| (0..width).map(|i| rows.iter().map(|row| row[i]).sum())).collect()
}

/// Exponential of the entropy of code usage: 1 where one code is used, K where all are used alike.
///
/// Upstream's logarithm is of p + 2^-23, which lowers the figure by some 5e-6 of it; kept for equal logs.
pub fn perplexity(codes: &[u32]) -> f64 {
    let mut counts = BTreeMap::new();
    for code in codes {
        *counts.entry(code).or_insert(0u64) += 1;
    }
    let shares = counts.values().map(|&count| count as f64 / codes.len() as f64);
    shares.map(|p| -p * (p + f64::from(f32::EPSILON)).ln()).sum::<f64>().exp()
}

fn same(x: &Tensor<5>, y: &Tensor<5>) -> Result<[usize; 5]> {
    if x.dims() == y.dims() {
        Ok(x.dims())
    } else {
        Err(Error::Input(format!("clips to compare must have one shape, not {:?} and {:?}", x.dims(), y.dims())))
    }
}

fn eight_bit(x: Tensor<5>) -> Vec<f64> {
    floats(x).into_iter().map(|v| ((f64::from(v) + 1.0) * 127.5).clamp(0.0, 255.0).round()).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn clip(h: usize) -> Tensor<5> {
        let device = Device::flex();
        device.seed(4);
        Tensor::random([1, 3, 2, h, 9], Distribution::Uniform(-1.0, 1.0), &device)
    }

    #[test]
    fn a_clip_is_like_itself() {
        let x = clip(8);
        assert_eq!(psnr(x.clone(), x.clone()).unwrap(), f64::INFINITY);
        assert!((ssim(x.clone(), x.clone()).unwrap() - 1.0).abs() < 1e-12);
        assert!(ssim(x.clone(), -x).unwrap() < 0.0);
    }

    #[test]
    fn one_level_of_error_is_48_decibels() {
        let x = clip(8).clamp(-1.0, 0.9);
        let error = psnr(x.clone(), x.add_scalar(2.0 / 255.0)).unwrap();
        assert!((error - 20.0 * 255f64.log10()).abs() < 1e-3, "{error}");
    }

    #[test]
    fn clips_that_cannot_be_compared_are_errors() {
        assert!(psnr(clip(8), clip(9)).unwrap_err().to_string().contains("[1, 3, 2, 8, 9]"));
        assert!(ssim(clip(6), clip(6)).unwrap_err().to_string().contains("6 x 9"));
    }

    #[test]
    fn perplexity_counts_the_codes_in_use() {
        for (codes, wanted) in [(vec![5; 9], 1.0), ((0..8).collect(), 8.0), (vec![1, 1, 2, 2], 2.0)] {
            assert!((perplexity(&codes) - wanted).abs() < 1e-5);
        }
    }
}
