//! Attention and its gradient in f64 and plain loops, from the definition; and seeded inputs.

use std::ops::Range;

use burn::tensor::TensorData;

use super::{Order, Sight};
use crate::ops::Draws;

/// Where q, k and v lie in a case's input, and their shapes.
pub(super) struct Parts {
    pub(super) ranges: [Range<usize>; 3],
    pub(super) shapes: [[usize; 4]; 3],
}

impl Parts {
    pub(super) fn new(case: &[usize]) -> Parts {
        let [b, heads, shared, n, m, d] = [0, 1, 2, 3, 4, 5].map(|i| case[i]);
        let shapes = [[b, heads, n, d], [b, shared, m, d], [b, shared, m, d]];
        let [q, k, v] = shapes.map(|shape| shape.iter().product::<usize>());
        Parts { ranges: [0..q, q..q + k, q + k..q + k + v], shapes }
    }
}

/// All but the marks of real keys.
pub(super) fn sight(case: &[usize]) -> Sight {
    let order = match case[6] {
        0 => Order::Any,
        1 => Order::Causal,
        _ => Order::Frames { queries: case[7], keys: case[8], rest: case[9] },
    };
    Sight { order, real: None, zeros: case[10] }
}

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let mut draws = Draws::new(seed);
    let count = Parts::new(case).ranges[2].end;
    let values: Vec<f32> = (0..count).map(|_| (draws.unit() * 4.0 - 2.0) as f32).collect();
    let (batch, keys) = (case[0], case[4]);
    let mut real = vec![1f32; batch * keys];
    for _ in 0..case[11] {
        let place = draws.bits() as usize % real.len();
        real[place] = 0.0;
    }
    vec![TensorData::new(values, [count]), TensorData::new(real, [batch * keys])]
}

/// One query row: the weights of its keys, of which those out of sight have 0.
struct Row {
    q: usize,
    /// Where the keys, and at the same distance the values, of its head start.
    keys: usize,
    weights: Vec<f64>,
}

fn values(data: &TensorData) -> Vec<f64> {
    data.as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&value| f64::from(value)).collect()
}

fn rows(case: &[usize], inputs: &[TensorData], mut see: impl FnMut(&[f64], Row)) {
    let [b, heads, shared, n, m, d] = [0, 1, 2, 3, 4, 5].map(|i| case[i]);
    let (x, real) = (values(&inputs[0]), values(&inputs[1]));
    let start = Parts::new(case).ranges[1].start;
    let sees = |query: usize, key: usize| match case[6] {
        0 => true,
        1 => key + n <= query + m,
        _ => key < (query / case[7] + 1) * case[8] || key >= case[9],
    };
    for batch in 0..b {
        for head in 0..heads {
            for query in 0..n {
                let q = ((batch * heads + head) * n + query) * d;
                let keys = start + (batch * shared + head / (heads / shared)) * m * d;
                let score = |key: usize| {
                    let products = (0..d).map(|i| x[q + i] * x[keys + key * d + i]);
                    products.sum::<f64>() / (d as f64).sqrt()
                };
                let mut weights: Vec<f64> = (0..m)
                    .map(|key| if sees(query, key) && real[batch * m + key] != 0.0 { score(key).exp() } else { 0.0 })
                    .collect();
                let sum = weights.iter().sum::<f64>() + case[10] as f64;
                weights.iter_mut().for_each(|weight| *weight = if sum == 0.0 { 0.0 } else { *weight / sum });
                see(&x, Row { q, keys, weights });
            }
        }
    }
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let (d, size) = (case[5], Parts::new(case).ranges[2].len());
    let mut result = Vec::new();
    rows(case, inputs, |x, row| {
        let value = |key: usize, i: usize| x[row.keys + size + key * d + i];
        result.extend(
            (0..d).map(|i| row.weights.iter().enumerate().map(|(key, weight)| weight * value(key, i)).sum::<f64>()),
        );
    });
    result
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let (d, size) = (case[5], Parts::new(case).ranges[2].len());
    let scale = (d as f64).sqrt().recip();
    let mut result = vec![0.0; Parts::new(case).ranges[2].end];
    rows(case, inputs, |x, row| {
        let grad = |i: usize| f64::from(weights[row.q + i]);
        let products: Vec<f64> = (0..row.weights.len())
            .map(|key| (0..d).map(|i| grad(i) * x[row.keys + size + key * d + i]).sum())
            .collect();
        let mean: f64 = products.iter().zip(&row.weights).map(|(product, weight)| product * weight).sum();
        for (key, (&weight, product)) in row.weights.iter().zip(&products).enumerate() {
            let slope = weight * (product - mean) * scale;
            let at = row.keys + key * d;
            for i in 0..d {
                result[row.q + i] += slope * x[at + i];
                result[at + i] += slope * x[row.q + i];
                result[at + size + i] += weight * grad(i);
            }
        }
    });
    result
}
