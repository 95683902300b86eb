//! The norm and its gradients in f64 and plain loops; and seeded inputs.

use burn::tensor::TensorData;

use crate::ops::Draws;

pub(super) const EPS: f64 = 1e-3;

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let count = case[1] * (case[0] * case[2] + 2);
    let mut draws = Draws::new(seed);
    let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 1.5) as f32).collect();
    vec![TensorData::new(values, [count])]
}

fn values(inputs: &[TensorData]) -> Vec<f64> {
    inputs[0].as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&value| f64::from(value)).collect()
}

/// Mean and deviation of a frame.
fn stats(frame: &[f64]) -> (f64, f64) {
    let mean = frame.iter().sum::<f64>() / frame.len() as f64;
    let variance = frame.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / frame.len() as f64;
    (mean, (variance + EPS).sqrt())
}

/// What follows the norm, and its slope.
fn then(case: &[usize], n: f64) -> (f64, f64) {
    let open = 1.0 / (1.0 + (-n).exp());
    if case[3] == 1 { (n * open, open + n * open * (1.0 - open)) } else { (n, 1.0) }
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let [frames, channels, positions] = [case[0], case[1], case[2]];
    let (x, size) = (values(inputs), channels * positions);
    let mut y = Vec::new();
    for frame in 0..frames {
        let (mean, deviation) = stats(&x[frame * size..][..size]);
        for i in 0..size {
            let gain = frames * size + i / positions;
            y.push(then(case, (x[frame * size + i] - mean) / deviation * x[gain] + x[gain + channels]).0);
        }
    }
    y
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let [frames, channels, positions] = [case[0], case[1], case[2]];
    let (x, size) = (values(inputs), channels * positions);
    let mut result = vec![0.0; x.len()];
    for frame in 0..frames {
        let (mean, deviation) = stats(&x[frame * size..][..size]);
        let normed: Vec<f64> = (0..size).map(|i| (x[frame * size + i] - mean) / deviation).collect();
        let mut slopes = vec![0.0; size];
        for i in 0..size {
            let gain = frames * size + i / positions;
            let slope = then(case, normed[i] * x[gain] + x[gain + channels]).1;
            let grad = f64::from(weights[frame * size + i]) * slope;
            result[gain] += grad * normed[i];
            result[gain + channels] += grad;
            slopes[i] = grad * x[gain];
        }
        let along = slopes.iter().zip(&normed).map(|(slope, normed)| slope * normed).sum::<f64>() / size as f64;
        let shift = slopes.iter().sum::<f64>() / size as f64;
        for i in 0..size {
            result[frame * size + i] = (slopes[i] - shift - normed[i] * along) / deviation;
        }
    }
    result
}
