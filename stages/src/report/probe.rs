//! What codes tell of true motion: a linear map from the codes of a pair of latent frames to how far things moved meanwhile.
//!
//! Features of a pair: the grid places of its codes, one number per query and axis. Target: the difference of recorded
//! states over the pair's frames. The map is fitted by ridge regression on some videos and judged on the others by R^2,
//! the share of the target's variance that it explains; all in f64.

/// One pair: features and target.
pub(super) struct Sample {
    pub(super) features: Vec<f64>,
    pub(super) target: Vec<f64>,
}

/// Weight of the squared coefficients, for features of deviation 1 and per sample.
const RIDGE: f64 = 1e-3;

/// R^2 of each dimension of the target on `held`, fitted on `train`. `None` where either is empty or nothing moves.
pub(super) fn r_squared(train: &[Sample], held: &[Sample]) -> Option<Vec<f64>> {
    let (first, _) = (train.first()?, held.first()?);
    let (width, dims) = (first.features.len(), first.target.len());
    let count = train.len() as f64;
    let column = |of: &dyn Fn(&Sample) -> f64| -> (f64, f64) {
        let mean = train.iter().map(of).sum::<f64>() / count;
        let variance = train.iter().map(|sample| (of(sample) - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt())
    };
    let moments: Vec<(f64, f64)> = (0..width).map(|index| column(&|sample| sample.features[index])).collect();
    let scaled = |sample: &Sample| -> Vec<f64> {
        // A feature that never changes tells nothing.
        let scale = |(value, (mean, deviation)): (&f64, &(f64, f64))| {
            if *deviation > 0.0 { (value - mean) / deviation } else { 0.0 }
        };
        sample.features.iter().zip(&moments).map(scale).collect()
    };
    let rows: Vec<Vec<f64>> = train.iter().map(scaled).collect();
    let mut gram = vec![vec![0.0; width]; width];
    for row in &rows {
        for (i, line) in gram.iter_mut().enumerate() {
            line.iter_mut().zip(row).for_each(|(sum, value)| *sum += row[i] * value);
        }
    }
    gram.iter_mut().enumerate().for_each(|(i, line)| line[i] += RIDGE * count);
    let factor = cholesky(gram);
    (0..dims)
        .map(|dim| {
            let (mean, _) = column(&|sample| sample.target[dim]);
            let right: Vec<f64> = (0..width)
                .map(|i| rows.iter().zip(train).map(|(row, sample)| row[i] * (sample.target[dim] - mean)).sum())
                .collect();
            let weights = solve(&factor, right);
            let guess = |sample: &Sample| mean + scaled(sample).iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>();
            let middle = held.iter().map(|sample| sample.target[dim]).sum::<f64>() / held.len() as f64;
            let (mut left, mut all) = (0.0, 0.0);
            for sample in held {
                left += (sample.target[dim] - guess(sample)).powi(2);
                all += (sample.target[dim] - middle).powi(2);
            }
            (all > 0.0).then(|| 1.0 - left / all)
        })
        .collect()
}

/// The lower factor L of a symmetric positive definite matrix L L^T.
fn cholesky(mut a: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..a.len() {
        for j in 0..=i {
            let sum = a[i][j] - (0..j).map(|k| a[i][k] * a[j][k]).sum::<f64>();
            // The ridge keeps the diagonal above 0.
            a[i][j] = if i == j { sum.sqrt() } else { sum / a[j][j] };
        }
    }
    a
}

/// x of L L^T x = b.
fn solve(l: &[Vec<f64>], mut b: Vec<f64>) -> Vec<f64> {
    for i in 0..b.len() {
        b[i] = (b[i] - (0..i).map(|k| l[i][k] * b[k]).sum::<f64>()) / l[i][i];
    }
    for i in (0..b.len()).rev() {
        b[i] = (b[i] - (i + 1..b.len()).map(|k| l[k][i] * b[k]).sum::<f64>()) / l[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn linear_motion_is_explained_and_noise_is_not() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut samples = |count: usize| -> Vec<Sample> {
            let mut sample = |_| {
                let features: Vec<f64> = (0..4).map(|_| f64::from(rng.random_range(0..8))).chain([5.0]).collect();
                let target = vec![3.0 * features[0] - features[2] + 7.0, rng.random::<f64>()];
                Sample { features, target }
            };
            (0..count).map(&mut sample).collect()
        };
        let (train, held) = (samples(400), samples(100));
        let found = r_squared(&train, &held).unwrap();
        assert!(found[0] > 0.9999 && found[1] < 0.1, "{found:?}");
    }

    #[test]
    fn without_samples_or_motion_there_is_no_figure() {
        let still = || vec![Sample { features: vec![1.0], target: vec![2.0] }];
        assert_eq!(r_squared(&[], &still()), None);
        assert_eq!(r_squared(&still(), &[]), None);
        assert_eq!(r_squared(&still(), &still()), None);
    }
}
