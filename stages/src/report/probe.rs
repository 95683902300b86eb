//! What codes tell of true motion: a linear map from the codes of a pair of latent frames to how far things moved meanwhile.
//!
//! Features of a pair: the grid places of its codes, one number per query and axis. Target: the difference of recorded
//! states over the pair's frames. The map is fitted by ridge regression on some videos and judged on others, each in turn, by R^2,
//! the share of the target's variance that it explains; all in f64.

/// One pair: features and target.
pub(super) struct Sample {
    pub(super) features: Vec<f64>,
    pub(super) target: Vec<f64>,
}

/// Weight of the squared coefficients, for features of deviation 1 and per sample.
const RIDGE: f64 = 1e-3;

/// R^2 of each dimension of the target, over the samples of all folds, of which each is guessed by a map fitted on the other
/// folds. `None` where there are fewer than two folds, or nothing moves.
pub(super) fn r_squared(folds: &[Vec<Sample>]) -> Option<Vec<f64>> {
    let dims = folds.iter().flatten().next()?.target.len();
    let mut left = vec![0.0; dims];
    for (index, held) in folds.iter().enumerate() {
        let others = folds.iter().enumerate().filter(|(other, _)| *other != index);
        let train: Vec<&Sample> = others.flat_map(|(_, fold)| fold).collect();
        let map = Map::fit(&train)?;
        for sample in held {
            let guess = map.guess(sample);
            left.iter_mut().zip(guess.iter().zip(&sample.target)).for_each(|(sum, (a, b))| *sum += (a - b).powi(2));
        }
    }
    let all: Vec<&Sample> = folds.iter().flatten().collect();
    let explained = |(dim, left): (usize, f64)| {
        let (_, deviation) = moments(&all, |sample| sample.target[dim]);
        let spread = deviation.powi(2) * all.len() as f64;
        (spread > 0.0).then(|| 1.0 - left / spread)
    };
    left.into_iter().enumerate().map(explained).collect()
}

/// A linear map from scaled features to the target.
struct Map {
    /// Mean and deviation of each feature.
    features: Vec<(f64, f64)>,
    /// Of each dimension of the target.
    means: Vec<f64>,
    weights: Vec<Vec<f64>>,
}

impl Map {
    /// `None` without samples.
    fn fit(train: &[&Sample]) -> Option<Map> {
        let first = train.first()?;
        let (width, dims) = (first.features.len(), first.target.len());
        let features: Vec<_> = (0..width).map(|index| moments(train, |sample| sample.features[index])).collect();
        let rows: Vec<Vec<f64>> = train.iter().map(|sample| scaled(sample, &features)).collect();
        let mut gram = vec![vec![0.0; width]; width];
        for row in &rows {
            for (i, line) in gram.iter_mut().enumerate() {
                line.iter_mut().zip(row).for_each(|(sum, value)| *sum += row[i] * value);
            }
        }
        gram.iter_mut().enumerate().for_each(|(i, line)| line[i] += RIDGE * train.len() as f64);
        let factor = cholesky(gram);
        let means: Vec<f64> = (0..dims).map(|dim| moments(train, |sample| sample.target[dim]).0).collect();
        let weights = means.iter().enumerate().map(|(dim, mean)| {
            let right =
                |i: usize| rows.iter().zip(train).map(|(row, sample)| row[i] * (sample.target[dim] - mean)).sum();
            solve(&factor, (0..width).map(right).collect())
        });
        Some(Map { weights: weights.collect(), features, means })
    }

    fn guess(&self, sample: &Sample) -> Vec<f64> {
        let x = scaled(sample, &self.features);
        let product = |weights: &Vec<f64>| x.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>();
        self.means.iter().zip(&self.weights).map(|(mean, weights)| mean + product(weights)).collect()
    }
}

/// Mean and deviation of what `of` takes of the samples.
fn moments(samples: &[&Sample], of: impl Fn(&Sample) -> f64) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().map(|sample| of(sample)).sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (of(sample) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// A sample's features, of deviation 1; one that never changes tells nothing.
fn scaled(sample: &Sample, moments: &[(f64, f64)]) -> Vec<f64> {
    let scale = |(value, (mean, deviation)): (&f64, &(f64, f64))| {
        if *deviation > 0.0 { (value - mean) / deviation } else { 0.0 }
    };
    sample.features.iter().zip(moments).map(scale).collect()
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
        let found = r_squared(&[samples(150), samples(250), samples(100)]).unwrap();
        assert!(found[0] > 0.9999 && found[1] < 0.1, "{found:?}");
    }

    #[test]
    fn without_samples_or_motion_there_is_no_figure() {
        let still = || vec![Sample { features: vec![1.0], target: vec![2.0] }];
        assert_eq!(r_squared(&[]), None);
        assert_eq!(r_squared(&[still()]), None);
        assert_eq!(r_squared(&[still(), still()]), None);
    }
}
