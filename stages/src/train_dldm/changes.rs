//! What changes from one latent frame to the next, as a few numbers: what the codes of a fresh dLDM learn to say first.
//!
//! Trained from nothing, a dLDM draws the still scene and lets its codes fall together into one: a decoder that cannot
//! read them yet and an encoder that has nothing to say yet teach each other to do without. So there is a start that
//! depends on neither: the queries learn the principal components of the change of the picture, which differ from clip
//! to clip and are found from pixels alone.
//!
//! Shapes: clip f32 `[B, 3, T, H, W]` -> scores `[B, K-1, N]`, K = 1 + (T-1)/4, N numbers for each pair of latent frames.
//! A change is the difference of frames 4i and 4i + 4, shrunk to 16 x 16 and blurred, so that a small thing which moves
//! on changes it by degrees. Scores have deviation 1 in the training clips; large ones are drawn in by asinh, as most
//! pairs change little and a few much.
//!
//! Components tell motion from rest, but not how far things went: that lies in the *moments* of a change, the sums over the
//! picture of change times place. Of a thing that moves before an even ground, they are its way times its size and its
//! contrast, wherever it is; so codes that say them can be read by a linear map. They are taken along the two principal
//! colours of change: red, green and blue mostly change together, and would say one thing three times. And each is said
//! twice, half a cell of rounding apart, so that both together tell twice as many steps.

use burn::tensor::{Device, Tensor, TensorData, module, ops::AvgPoolOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vw2_engine::stage::StageError;

use crate::model_file::values;

/// Side of the shrunk picture.
const SIDE: usize = 16;
/// How often neighbours are averaged.
const BLUR: usize = 2;
/// Rounds of the iteration that finds the components; they are found to 1e-3 long before.
const ROUNDS: usize = 60;

/// Colours along which moments are taken: the first principal ones.
const TINTS: usize = 2;
/// A quarter of a cell around 0, of a code's number before rounding to five levels: half of 0.5 in the middle of tanh, twice.
const QUARTER: f32 = 0.125;

/// The principal components of change in some clips, and the moments of it.
pub(crate) struct Changes {
    /// `[1, 1, P]` with P = 3 x 16 x 16.
    mean: Tensor<3>,
    /// `[1, P, N]`, each column divided by the deviation of its score.
    components: Tensor<3>,
    /// `[1, P, M]`, likewise, M = 4: by colour, along x and along y.
    moments: Tensor<3>,
}

impl Changes {
    /// From clips f32 `[1, 3, T, H, W]`.
    ///
    /// # Errors
    /// A clip cannot be read, or nothing ever changes.
    pub(crate) fn of(
        clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>,
        count: usize,
        device: &Device,
    ) -> Result<Changes, StageError> {
        let mut rows = Vec::new();
        for clip in clips {
            rows.extend(values(changes(clip?)).chunks_exact(3 * SIDE * SIDE).map(<[f32]>::to_vec));
        }
        let mean = mean(&rows);
        for row in &mut rows {
            row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let found = components(&rows, count);
        if found.is_empty() {
            return Err("nothing changes in the training clips: there is no motion to learn codes of".into());
        }
        let size = mean.len();
        let columns = |of: &[Vec<f32>]| {
            let columns: Vec<f32> = (0..size).flat_map(|place| of.iter().map(move |column| column[place])).collect();
            Tensor::from_data(TensorData::new(columns, [1, size, of.len()]), device)
        };
        let (components, moments) = (columns(&found), columns(&moments(&rows)));
        let mean = Tensor::from_data(TensorData::new(mean, [1, 1, size]), device);
        Ok(Changes { mean, components, moments })
    }

    /// `[B, 3, T, H, W] -> [B, K-1, 2 M]`.
    pub(crate) fn motion(&self, clip: Tensor<5>) -> Tensor<3> {
        let moments = self.along(clip, &self.moments);
        Tensor::cat(vec![moments.clone() + QUARTER, moments - QUARTER], 2)
    }

    /// `[B, 3, T, H, W] -> [B, K-1, N]`.
    pub(crate) fn scores(&self, clip: Tensor<5>) -> Tensor<3> {
        self.along(clip, &self.components)
    }

    fn along(&self, clip: Tensor<5>, columns: &Tensor<3>) -> Tensor<3> {
        let changes = changes(clip);
        let b = changes.dims()[0];
        let scores = (changes - self.mean.clone()).matmul(columns.clone().repeat_dim(0, b));
        // asinh, of the size and then with the sign, so that large negative scores do not cancel.
        let size = scores.clone().abs();
        let drawn_in = (size.clone() + (size.square() + 1.0).sqrt()).log();
        drawn_in * scores.sign()
    }
}

/// `[B, 3, T, H, W] -> [B, K-1, P]`.
fn changes(clip: Tensor<5>) -> Tensor<3> {
    let [b, colours, t, h, w] = clip.dims();
    let frames = 1 + (t - 1) / 4;
    // Frames 0, 4, 8, …: the first, and the last of each group of four.
    let last = clip.clone().narrow(2, 1, t - 1).reshape([b, colours, frames - 1, 4, h * w]).narrow(3, 3, 1);
    let first = clip.narrow(2, 0, 1).reshape([b, colours, 1, 1, h * w]);
    let pictures = Tensor::cat(vec![first, last], 2).reshape([b * colours, frames, h, w]);
    let mut small = module::adaptive_avg_pool2d(pictures, [SIDE, SIDE]);
    for _ in 0..BLUR {
        small = module::avg_pool2d(small, AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]));
    }
    let small = small.reshape([b, colours, frames, SIDE * SIDE]).swap_dims(1, 2);
    let small = small.reshape([b, frames, colours * SIDE * SIDE]);
    small.clone().narrow(1, 1, frames - 1) - small.narrow(1, 0, frames - 1)
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut sums = vec![0.0f64; 3 * SIDE * SIDE];
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

/// For each principal colour and axis the places of pixels, from -1 to 1, by how much of that colour each channel has;
/// divided by the deviation of the rows along it.
fn moments(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let place = |at: usize| (2 * at + 1) as f32 / SIDE as f32 - 1.0;
    let tints = tints(rows);
    let of = |(tint, axis): (&Vec<f32>, usize)| {
        let places = (0..3 * SIDE * SIDE).map(|pixel| {
            let along = if axis == 0 { pixel % SIDE } else { pixel / SIDE % SIDE };
            tint[pixel / (SIDE * SIDE)] * place(along)
        });
        let places: Vec<f32> = places.collect();
        let along = |row: &Vec<f32>| row.iter().zip(&places).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let variance = rows.iter().map(|row| along(row).powi(2)).sum::<f64>() / rows.len().max(1) as f64;
        let scale = if variance > 1e-12 { variance.sqrt().recip() as f32 } else { 0.0 };
        places.into_iter().map(|place| place * scale).collect()
    };
    tints.iter().flat_map(|tint| (0..2).map(move |axis| (tint, axis))).map(of).collect()
}

/// The directions of colour along which pixels change most, at most [`TINTS`]; their lengths mean nothing.
fn tints(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let plane = SIDE * SIDE;
    let together = |a: usize, b: usize| -> f32 {
        let of_row = |row: &Vec<f32>| dot32(&row[a * plane..][..plane], &row[b * plane..][..plane]);
        (rows.iter().map(of_row).sum::<f64>() / (rows.len().max(1) * plane) as f64) as f32
    };
    // A symmetric matrix and the sum of its rows' squares have the same principal directions.
    let covariance: Vec<Vec<f32>> = (0..3).map(|a| (0..3).map(|b| together(a, b)).collect()).collect();
    components(&covariance, TINTS)
}

fn dot32(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

/// The first `count` principal components of centred rows, each divided by the deviation of the rows along it; fewer
/// where the rows vary in fewer directions. Found by orthogonal iteration, in f64, from fixed draws.
fn components(rows: &[Vec<f32>], count: usize) -> Vec<Vec<f32>> {
    let Some(size) = rows.first().map(Vec::len) else { return Vec::new() };
    let mut rng = StdRng::seed_from_u64(0);
    let mut basis: Vec<Vec<f64>> = (0..count).map(|_| (0..size).map(|_| rng.random::<f64>() - 0.5).collect()).collect();
    let mut variances = Vec::new();
    for _ in 0..ROUNDS {
        orthonormalise(&mut basis);
        let mut next = vec![vec![0.0; size]; basis.len()];
        for row in rows {
            for (direction, next) in basis.iter().zip(&mut next) {
                let score: f64 = direction.iter().zip(row).map(|(a, b)| a * f64::from(*b)).sum();
                next.iter_mut().zip(row).for_each(|(sum, value)| *sum += score * f64::from(*value));
            }
        }
        let along = basis.iter().zip(&next);
        variances = along.map(|(direction, next)| dot(direction, next) / rows.len() as f64).collect::<Vec<f64>>();
        basis = next;
    }
    orthonormalise(&mut basis);
    let most = variances.iter().copied().fold(0.0, f64::max);
    let kept = basis.into_iter().zip(variances).filter(|(_, variance)| *variance > 1e-6 * most && most > 1e-12);
    kept.map(|(direction, variance)| direction.iter().map(|value| (value / variance.sqrt()) as f32).collect()).collect()
}

/// Gram and Schmidt; what depends on the directions before it, but for rounding, becomes 0.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for index in 0..basis.len() {
        let (done, rest) = basis.split_at_mut(index);
        let direction = &mut rest[0];
        let least = 1e-9 * dot(direction, direction).sqrt();
        for other in done.iter() {
            let shared = dot(other, direction);
            direction.iter_mut().zip(other).for_each(|(value, other)| *value -= shared * other);
        }
        let length = dot(direction, direction).sqrt();
        let scale = if length > least { length.recip() } else { 0.0 };
        direction.iter_mut().for_each(|value| *value *= scale);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A square of 4 x 4 pixels at (x, y) in frames 0 to 3, and at (x + dx, y) from frame 4 on.
    fn jump(x: usize, y: usize, dx: usize) -> Tensor<5> {
        let mut pixels = vec![-1.0f32; 3 * 5 * 32 * 32];
        for (place, value) in pixels.iter_mut().enumerate() {
            let (frame, row, column) = (place / 1024 % 5, place / 32 % 32, place % 32);
            let left = if frame == 4 { x + dx } else { x };
            if (y..y + 4).contains(&row) && (left..left + 4).contains(&column) {
                *value = 1.0;
            }
        }
        Tensor::from_data(TensorData::new(pixels, [1, 3, 5, 32, 32]), &Device::flex())
    }

    #[test]
    fn components_are_those_of_rows_made_from_known_ones() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut draw = |size: f32| size * (rng.random::<f32>() - 0.5);
        let rows: Vec<Vec<f32>> = (0..4000).map(|_| vec![0.0, draw(6.0), 0.0, draw(2.0), 0.0]).collect();
        let found = components(&rows, 3);
        assert_eq!(found.len(), 2, "the rows vary in two directions");
        // A uniform draw of width 6 has deviation 6 / sqrt(12).
        for (component, (place, deviation)) in found.iter().zip([(1, 1.732), (3, 0.577)]) {
            let wanted = 1.0 / deviation;
            assert!((component[place].abs() - wanted).abs() < 0.03 * wanted, "{component:?}");
            assert!(component.iter().enumerate().all(|(i, v)| i == place || v.abs() < 0.05 * wanted), "{component:?}");
        }
    }

    #[test]
    fn scores_vary_by_one_and_tell_motion_from_rest() {
        let device = Device::flex();
        let clips = || (0..24).map(|i| Ok(jump(2 + 5 * (i % 5), 3 * (i % 9), i % 4)));
        let changes = Changes::of(&mut clips(), 4, &device).unwrap();
        let scores: Vec<f32> = clips().flat_map(|clip| values(changes.scores(clip.unwrap()))).collect();
        assert_eq!(scores.len(), 24 * 4);
        let size = scores.iter().map(|score| score.abs()).sum::<f32>() / scores.len() as f32;
        assert!((0.3..1.2).contains(&size), "{size}");
        let rest = values(changes.scores(jump(7, 3, 0)));
        let motion = values(changes.scores(jump(7, 3, 3)));
        assert!(rest.iter().zip(&motion).any(|(a, b)| (a - b).abs() > 0.3), "{rest:?} {motion:?}");
    }

    #[test]
    fn moments_tell_how_far_a_thing_went_wherever_it_is() {
        let device = Device::flex();
        let clips = || (0..24).map(|i| Ok(jump(4 + 4 * (i % 4), 4 + 3 * (i % 6), i % 5)));
        let changes = Changes::of(&mut clips(), 4, &device).unwrap();
        let along_x = |x, y, dx| {
            let said = values(changes.motion(jump(x, y, dx)));
            assert_eq!(said.len(), 2 * 2, "the square is white, so there is one colour of change");
            assert!((said[0] - said[2] - 2.0 * QUARTER).abs() < 1e-5, "{said:?}");
            ((said[0] + said[2]) / 2.0).sinh()
        };
        let one = along_x(8, 8, 4) - along_x(8, 8, 0);
        assert!(one.abs() > 0.3, "{one}");
        for (x, y, dx) in [(4, 8, 4), (12, 20, 4), (8, 12, 8), (16, 4, 2), (8, 8, 0)] {
            let wanted = one * dx as f32 / 4.0;
            let found = along_x(x, y, dx) - along_x(8, 8, 0);
            assert!((found - wanted).abs() < 0.02 * one.abs(), "{x}, {y}, {dx}: {found}, not {wanted}");
        }
    }

    #[test]
    fn clips_without_motion_are_an_error() {
        let error = Changes::of(&mut (0..3).map(|_| Ok(jump(4, 4, 0))), 4, &Device::flex()).err().unwrap();
        assert!(error.to_string().contains("nothing changes"), "{error}");
    }
}
