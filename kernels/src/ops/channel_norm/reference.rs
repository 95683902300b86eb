//! The norm and its gradients in f64 and plain loops; and seeded inputs.

use burn::tensor::TensorData;

use crate::ops::Draws;

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let count = case[1] * (case[0] * case[2] + 1);
    let mut draws = Draws::new(seed);
    // No length near 0, where gradients have no bound.
    let value =
        |draws: &mut Draws| (draws.unit() * 2.0 + 0.5) * if draws.bits().is_multiple_of(2) { 1.0 } else { -1.0 };
    let values: Vec<f32> = (0..count).map(|_| value(&mut draws) as f32).collect();
    vec![TensorData::new(values, [count])]
}

fn values(inputs: &[TensorData]) -> Vec<f64> {
    inputs[0].as_slice::<f32>().expect("`inputs` makes f32").iter().map(|&value| f64::from(value)).collect()
}

/// What follows the norm, and its slope.
fn then(case: &[usize], n: f64) -> (f64, f64) {
    let open = 1.0 / (1.0 + (-n).exp());
    if case[3] == 1 { (n * open, open + n * open * (1.0 - open)) } else { (n, 1.0) }
}

/// Sees where the values of each position lie, and their length.
fn positions(case: &[usize], x: &[f64], mut see: impl FnMut(Vec<usize>, f64)) {
    let [frames, channels, positions] = [case[0], case[1], case[2]];
    for frame in 0..frames {
        for position in 0..positions {
            let places: Vec<usize> = (0..channels).map(|c| (frame * channels + c) * positions + position).collect();
            let length = places.iter().map(|&at| x[at] * x[at]).sum::<f64>().sqrt().max(1e-12);
            see(places, length);
        }
    }
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let (x, count) = (values(inputs), case[..3].iter().product::<usize>());
    let (root, mut y) = ((case[1] as f64).sqrt(), vec![0.0; count]);
    positions(case, &x, |places, length| {
        for (channel, at) in places.into_iter().enumerate() {
            y[at] = then(case, x[at] / length * root * x[count + channel]).0;
        }
    });
    y
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let (x, count) = (values(inputs), case[..3].iter().product::<usize>());
    let (root, mut result) = ((case[1] as f64).sqrt(), vec![0.0; x.len()]);
    positions(case, &x, |places, length| {
        let normed = |at: usize| x[at] / length * root;
        let mut along = 0.0;
        for (channel, &at) in places.iter().enumerate() {
            let grad = f64::from(weights[at]) * then(case, normed(at) * x[count + channel]).1;
            result[count + channel] += grad * normed(at);
            result[at] = grad * x[count + channel] * root; // of the direction x / length
            along += result[at] * x[at] / length;
        }
        for at in places {
            result[at] = (result[at] - along * x[at] / length) / length;
        }
    });
    result
}
