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
//! Components tell motion from rest, but not how far things went. That their ways say ([`Places`]), each twice, half a cell of
//! rounding apart, so that both together tell twice as many steps, and a linear map reads it from the codes.

use burn::tensor::{Device, Tensor, TensorData, module, ops::AvgPoolOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vw2_engine::stage::StageError;

use super::places::Places;
use crate::model_file::values;

/// Side of the shrunk picture.
const SIDE: usize = 16;
/// How often neighbours are averaged.
const BLUR: usize = 2;
/// Rounds of the iteration that finds the components; they are found to 1e-3 long before.
const ROUNDS: usize = 60;

/// Side of the picture in which things are looked for, at most.
const FINE: usize = 64;
/// A quarter of a cell around 0, of a code's number before rounding to five levels: half of 0.5 in the middle of tanh, twice.
const QUARTER: f32 = 0.125;

/// The principal components of change in some clips, and the things that move in them.
pub(crate) struct Changes {
    /// `[1, 1, P]` with P = 3 x 16 x 16.
    mean: Tensor<3>,
    /// `[1, P, N]`, each column divided by the deviation of its score.
    components: Tensor<3>,
    places: Places,
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
        let (mut rows, mut seen) = (Vec::new(), Vec::new());
        let mut size = [0, 0];
        for clip in clips {
            let pictures = pictures(clip?);
            rows.extend(values(changes(pictures.clone())).chunks_exact(3 * SIDE * SIDE).map(<[f32]>::to_vec));
            let (picture, [h, w]) = fine(pictures);
            seen.push(picture);
            size = [h, w];
        }
        let mean = mean(&rows);
        for row in &mut rows {
            row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let found = components(&rows, count);
        let places = if found.is_empty() { None } else { Places::of(&seen, size, device) };
        let Some(places) = places else {
            return Err("nothing changes in the training clips: there is no motion to learn codes of".into());
        };
        let values = mean.len();
        let columns: Vec<f32> = (0..values).flat_map(|at| found.iter().map(move |column| column[at])).collect();
        let components = Tensor::from_data(TensorData::new(columns, [1, values, found.len()]), device);
        let mean = Tensor::from_data(TensorData::new(mean, [1, 1, values]), device);
        Ok(Changes { mean, components, places })
    }

    /// `[B, 3, T, H, W] -> [B, K-1, 2 M]`.
    pub(crate) fn motion(&self, clip: Tensor<5>) -> Tensor<3> {
        let (pictures, size) = fine(pictures(clip));
        let ways = self.places.ways(pictures, size);
        Tensor::cat(vec![ways.clone() + QUARTER, ways - QUARTER], 2)
    }

    /// `[B, 3, T, H, W] -> [B, K-1, N]`.
    pub(crate) fn scores(&self, clip: Tensor<5>) -> Tensor<3> {
        let changes = changes(pictures(clip));
        let b = changes.dims()[0];
        drawn_in((changes - self.mean.clone()).matmul(self.components.clone().repeat_dim(0, b)))
    }
}

/// asinh, of the size and then with the sign, so that large negative numbers do not cancel.
pub(super) fn drawn_in(scores: Tensor<3>) -> Tensor<3> {
    let size = scores.clone().abs();
    (size.clone() + (size.square() + 1.0).sqrt()).log() * scores.sign()
}

/// Frames 0, 4, 8, …, the last that each latent frame stands for: `[B, 3, T, H, W] -> [B, K, 3, H, W]`.
fn pictures(clip: Tensor<5>) -> Tensor<5> {
    let [b, colours, t, h, w] = clip.dims();
    let frames = 1 + (t - 1) / 4;
    let last = clip.clone().narrow(2, 1, t - 1).reshape([b, colours, frames - 1, 4, h * w]).narrow(3, 3, 1);
    let first = clip.narrow(2, 0, 1).reshape([b, colours, 1, 1, h * w]);
    Tensor::cat(vec![first, last], 2).swap_dims(1, 2).reshape([b, frames, colours, h, w])
}

/// `[B, K, 3, H, W] -> [B, K, 3, P]`, and the size of such a picture: no more than a thing's place asks for.
fn fine(pictures: Tensor<5>) -> (Tensor<4>, [usize; 2]) {
    let [b, k, colours, h, w] = pictures.dims();
    let size = [h.min(FINE), w.min(FINE)];
    let small = if size == [h, w] {
        pictures.reshape([b * k, colours, h, w])
    } else {
        module::adaptive_avg_pool2d(pictures.reshape([b * k, colours, h, w]), size)
    };
    (small.reshape([b, k, colours, size[0] * size[1]]), size)
}

/// `[B, K, 3, H, W] -> [B, K-1, P]`.
fn changes(pictures: Tensor<5>) -> Tensor<3> {
    let [b, frames, colours, h, w] = pictures.dims();
    let mut small = module::adaptive_avg_pool2d(pictures.reshape([b * frames, colours, h, w]), [SIDE, SIDE]);
    for _ in 0..BLUR {
        small = module::avg_pool2d(small, AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]));
    }
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
    fn motion_is_said_twice_half_a_cell_apart() {
        let device = Device::flex();
        let clips = || (0..24).map(|i| Ok(jump(4 + 4 * (i % 4), 4 + 3 * (i % 6), i % 5)));
        let changes = Changes::of(&mut clips(), 4, &device).unwrap();
        let said = values(changes.motion(jump(8, 8, 4)));
        let (once, again) = said.split_at(said.len() / 2);
        assert!(once.iter().zip(again).all(|(a, b)| (a - b - 2.0 * QUARTER).abs() < 1e-6), "{said:?}");
        assert!((once[0] - QUARTER).abs() > 0.3, "{said:?}");
    }

    #[test]
    fn things_in_large_pictures_are_found_in_small_ones() {
        let device = Device::flex();
        // Each pixel four times along both axes: twice as many of each as are looked at.
        let large = |x, y, dx| {
            let pixels = jump(x, y, dx).reshape([15, 32, 1, 32, 1]).repeat_dim(2, 4).repeat_dim(4, 4);
            pixels.reshape([1, 3, 5, 128, 128])
        };
        let clips = || (0..24).map(|i| Ok(large(4 + 4 * (i % 4), 4 + 3 * (i % 6), i % 5)));
        let changes = Changes::of(&mut clips(), 4, &device).unwrap();
        let way = |dx| (values(changes.motion(large(8, 8, dx)))[0] - QUARTER).sinh();
        assert!(way(2).abs() > 0.3 && (way(4) / way(2) - 2.0).abs() < 0.02, "{} {}", way(2), way(4));
    }

    #[test]
    fn clips_without_motion_are_an_error() {
        let error = Changes::of(&mut (0..3).map(|_| Ok(jump(4, 4, 0))), 4, &Device::flex()).err().unwrap();
        assert!(error.to_string().contains("nothing changes"), "{error}");
    }
}
