//! Norms and their gradients in f64 and plain loops; and seeded inputs.

use burn::tensor::TensorData;

use crate::ops::Draws;

pub(super) const EPS: f64 = 1e-3;

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let count = case[0] * (case[1] + 2) * case[2];
    let mut draws = Draws::new(seed);
    let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 1.5) as f32).collect();
    vec![TensorData::new(values, [count])]
}

/// A row's place among the rows, where its gain and its bias start, its mean and its deviation.
struct Row {
    start: usize,
    gain: usize,
    bias: usize,
    mean: f64,
    deviation: f64,
}

fn rows(case: &[usize], inputs: &[TensorData], mut see: impl FnMut(&[f64], Row)) {
    let [groups, rows, width] = [case[0], case[1], case[2]];
    let values = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
    let x: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
    for row in 0..groups * rows {
        let start = row * width;
        let gain = (groups * rows + row / rows) * width;
        let row = &x[start..][..width];
        let mean = if case[3] == 1 { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
        see(&x, Row { start, gain, bias: gain + groups * width, mean, deviation: (variance + EPS).sqrt() });
    }
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let mut y = Vec::new();
    rows(case, inputs, |x, row| {
        y.extend((0..case[2]).map(|i| {
            let bias = if case[3] == 1 { x[row.bias + i] } else { 0.0 };
            (x[row.start + i] - row.mean) / row.deviation * x[row.gain + i] + bias
        }));
    });
    y
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let (width, centred) = (case[2], case[3] == 1);
    let mut result = vec![0.0; case[0] * (case[1] + 2) * width];
    rows(case, inputs, |x, row| {
        let grad = |i: usize| f64::from(weights[row.start + i]);
        let normed = |i: usize| (x[row.start + i] - row.mean) / row.deviation;
        let slope = |i: usize| grad(i) * x[row.gain + i];
        let along = (0..width).map(|i| slope(i) * normed(i)).sum::<f64>() / width as f64;
        let shift = if centred { (0..width).map(slope).sum::<f64>() / width as f64 } else { 0.0 };
        for i in 0..width {
            result[row.start + i] = (slope(i) - shift - normed(i) * along) / row.deviation;
            result[row.gain + i] += grad(i) * normed(i);
            result[row.bias + i] += if centred { grad(i) } else { 0.0 };
        }
    });
    result
}
