//! Where things are, by their colours, and how far they go from one latent frame to the next.
//!
//! The colours are found from pixels alone: those that change in the training clips fall into groups, and the groups whose
//! places vary most are taken for things. A thing's place in a frame is the mean place of its pixels. Unlike the sum of
//! change times place it does not hang on how sharply a small thing was sampled, nor on what lies behind it.
//!
//! Shapes: pictures f32 `[B, K, 3, P]`, P pixels of a picture `[h, w]` -> ways `[B, K-1, 2 THINGS]`: along x and along y by
//! thing, of deviation 1 in the training clips, drawn in by asinh, as most pairs change little and a few much.

use burn::tensor::{Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::changes::drawn_in;
use crate::model_file::values;

/// Groups of colours, the ground's among them.
const COLOURS: usize = 5;
/// Groups that are taken for things.
const THINGS: usize = 2;
/// Distance of colours within which a pixel belongs to a group for the greater part, of 2 from black to white.
const NEAR: f32 = 0.15;
/// A pixel has changed from here on, summed over red, green and blue.
const CHANGED: f32 = 0.15;
/// Pixels of a pair of latent frames that are looked at while colours are found.
const LOOKED_AT: usize = 64;
/// Starts of the search, and rounds of each.
const STARTS: usize = 4;
const ROUNDS: usize = 30;

/// The colours of the things that move most.
pub(super) struct Places {
    colours: Vec<[f32; 3]>,
    things: Vec<usize>,
    /// `[1, 1, 2 M]`: of each thing along x and along y, one over the deviation of its ways.
    scales: Tensor<3>,
}

impl Places {
    /// From the pictures `[1, K, 3, P]` of training clips, each of `[h, w]`; `None` if no pixel changes.
    pub(super) fn of(clips: &[Tensor<4>], size: [usize; 2], device: &Device) -> Option<Places> {
        let changed: Vec<[f32; 3]> = clips.iter().flat_map(|clip| changed(clip.clone())).collect();
        let colours = groups(&changed);
        if colours.is_empty() {
            return None;
        }
        let every = Places { things: (0..colours.len()).collect(), scales: Tensor::ones([1, 1, 1], device), colours };
        let count = 2 * every.colours.len();
        let ways: Vec<f32> = clips.iter().flat_map(|clip| values(every.gone(clip.clone(), size))).collect();
        let deviation = |column: usize| {
            let squares: f64 = ways.chunks_exact(count).map(|row| f64::from(row[column]).powi(2)).sum();
            (squares / (ways.len() / count) as f64).sqrt() as f32
        };
        let thing = |thing: usize| [deviation(2 * thing), deviation(2 * thing + 1)];
        let deviations: Vec<[f32; 2]> = (0..count / 2).map(thing).collect();
        let far = |thing: usize| deviations[thing][0].hypot(deviations[thing][1]);
        let mut things = every.things;
        things.sort_by(|&a, &b| far(b).total_cmp(&far(a)));
        things.truncate(THINGS);
        let scale = |deviation: f32| if deviation > 1e-6 { deviation.recip() } else { 0.0 };
        let scales: Vec<f32> = things.iter().flat_map(|&thing| deviations[thing].map(scale)).collect();
        let scales = TensorData::new(scales, [1, 1, 2 * things.len()]);
        Some(Places { colours: every.colours, things, scales: Tensor::from_data(scales, device) })
    }

    /// `[B, K, 3, P] -> [B, K-1, 2 M]`.
    pub(super) fn ways(&self, pictures: Tensor<4>, size: [usize; 2]) -> Tensor<3> {
        drawn_in(self.gone(pictures, size) * self.scales.clone())
    }

    /// The same, in half widths and heights of the picture.
    fn gone(&self, pictures: Tensor<4>, [h, w]: [usize; 2]) -> Tensor<3> {
        let device = pictures.device();
        let [b, k, _, pixels] = pictures.dims();
        let count = self.colours.len();
        // Of the squared distance to a colour, what all colours share is left out.
        let colours = TensorData::new(self.colours.concat(), [1, count, 3]);
        let lengths: Vec<f32> = self.colours.iter().map(|colour| distance(colour, &[0.0; 3]) / 2.0).collect();
        let lengths = Tensor::<3>::from_data(TensorData::new(lengths, [1, count, 1]), &device);
        let near = Tensor::from_data(colours, &device).matmul(pictures.reshape([b * k, 3, pixels])) - lengths;
        let weights = ((near.clone() - near.max_dim(1)).mul_scalar(NEAR.powi(-2))).exp();
        let belongs: Tensor<3> = weights.clone() / weights.sum_dim(1);

        let place = |at: usize, of: usize| (2 * at + 1) as f32 / of as f32 - 1.0;
        let places = (0..pixels).flat_map(|pixel| [1.0, place(pixel % w, w), place(pixel / w, h)]).collect();
        let places = Tensor::from_data(TensorData::new::<f32, _>(places, [1, pixels, 3]), &device);
        let sums = belongs.matmul(places).reshape([b, k, count, 3]);
        let sums = Tensor::cat(self.things.iter().map(|&thing| sums.clone().narrow(2, thing, 1)).collect(), 2);
        let size = sums.clone().narrow(3, 0, 1);
        let at = sums.narrow(3, 1, 2) / (size.clone() + 1e-6);
        let step = |x: &Tensor<4>| (x.clone().narrow(1, 0, k - 1), x.clone().narrow(1, 1, k - 1));
        let ((before, after), (size_before, size_after)) = (step(&at), step(&size));
        // What is smaller than a pixel in one of the two has hardly been seen to move.
        let seen = size_before.min_pair(size_after);
        let ways = (after - before) * (seen.clone() / (seen + 1.0));
        ways.reshape([b, k - 1, 2 * self.things.len()])
    }
}

/// The colours, before and after, of pixels that change between the pictures `[1, K, 3, P]`.
fn changed(pictures: Tensor<4>) -> Vec<[f32; 3]> {
    let [_, k, _, pixels] = pictures.dims();
    let values = values(pictures);
    let colour = |picture: usize, pixel: usize| [0, 1, 2].map(|c| values[(picture * 3 + c) * pixels + pixel]);
    let of_pair = |pair: usize| {
        let both = (0..pixels).map(move |pixel| [colour(pair, pixel), colour(pair + 1, pixel)]);
        let change = |[a, b]: &[[f32; 3]; 2]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() > CHANGED;
        let changed: Vec<[[f32; 3]; 2]> = both.filter(change).collect();
        let step = changed.len().div_ceil(LOOKED_AT).max(1);
        changed.into_iter().step_by(step).flatten().collect::<Vec<_>>()
    };
    (0..k - 1).flat_map(of_pair).collect()
}

/// The middles of at most [`COLOURS`] groups of colours by Lloyd's iteration, the best of [`STARTS`] fixed draws by
/// k-means++; fewer where there are fewer colours.
fn groups(colours: &[[f32; 3]]) -> Vec<[f32; 3]> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut best = (f64::INFINITY, Vec::new());
    for _ in 0..STARTS {
        let mut middles: Vec<[f32; 3]> = Vec::new();
        while middles.len() < COLOURS {
            let far: Vec<f64> = colours.iter().map(|colour| nearest(colour, &middles).1.min(16.0)).collect();
            let mut left = rng.random::<f64>() * far.iter().sum::<f64>();
            let next = far.iter().position(|far| {
                left -= far;
                left < 0.0
            });
            let Some(next) = next else { break };
            middles.push(colours[next]);
        }
        for _ in 0..ROUNDS {
            let mut sums = vec![([0.0f64; 3], 0.0f64); middles.len()];
            for colour in colours {
                let (sum, count) = &mut sums[nearest(colour, &middles).0];
                sum.iter_mut().zip(colour).for_each(|(sum, value)| *sum += f64::from(*value));
                *count += 1.0;
            }
            for (middle, (sum, count)) in middles.iter_mut().zip(sums) {
                if count > 0.0 {
                    *middle = sum.map(|sum| (sum / count) as f32);
                }
            }
        }
        let spread = colours.iter().map(|colour| nearest(colour, &middles).1).sum();
        if spread < best.0 {
            best = (spread, middles);
        }
    }
    best.1
}

/// Which middle is nearest, and its squared distance; far where there is none yet.
fn nearest(colour: &[f32; 3], middles: &[[f32; 3]]) -> (usize, f64) {
    let distances = middles.iter().map(|middle| f64::from(distance(colour, middle))).enumerate();
    distances.min_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap_or((0, f64::INFINITY))
}

fn distance(a: &[f32; 3], b: &[f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 32;
    const RED: [f32; 3] = [1.0, -1.0, -1.0];
    const BLUE: [f32; 3] = [-1.0, -1.0, 1.0];

    /// A pair of pictures, the left half white and the right half light grey, with squares of 4 x 4 pixels: colour, place in
    /// the first picture and in the second.
    fn pair(squares: &[([f32; 3], [usize; 2], [usize; 2])]) -> Tensor<4> {
        let colour = |picture: usize, pixel: usize| {
            let (x, y) = (pixel % SIDE, pixel / SIDE);
            let covers = |at: &[usize; 2]| (at[0]..at[0] + 4).contains(&x) && (at[1]..at[1] + 4).contains(&y);
            let on_top = squares.iter().rev().find(|(_, from, to)| covers([from, to][picture]));
            on_top.map_or(if x < SIDE / 2 { [1.0; 3] } else { [0.5; 3] }, |(colour, ..)| *colour)
        };
        let planes =
            (0..2).flat_map(|picture| (0..3).flat_map(move |c| (0..SIDE * SIDE).map(move |pixel| (picture, c, pixel))));
        let pixels: Vec<f32> = planes.map(|(picture, c, pixel)| colour(picture, pixel)[c]).collect();
        Tensor::from_data(TensorData::new(pixels, [1, 2, 3, SIDE * SIDE]), &Device::flex())
    }

    fn places() -> Places {
        let clips = (0..24).map(|i| pair(&[(RED, [2 + i, 3], [2 + i % 7, 9]), (BLUE, [i, 20], [i + 1, 19 + i % 3])]));
        Places::of(&clips.collect::<Vec<_>>(), [SIDE, SIDE], &Device::flex()).unwrap()
    }

    #[test]
    fn ways_tell_how_far_each_thing_went_wherever_it_is_and_whatever_lies_behind() {
        let places = places();
        let ways = |red: [[usize; 2]; 2], blue: [[usize; 2]; 2]| -> Vec<f32> {
            let pair = pair(&[(RED, red[0], red[1]), (BLUE, blue[0], blue[1])]);
            values(places.ways(pair, [SIDE, SIDE])).into_iter().map(f32::sinh).collect()
        };
        // What red says of a step by one pixel to the right and down; it moves more in the clips, so it comes first.
        let one = ways([[8, 8], [9, 9]], [[20, 20], [20, 20]]);
        assert_eq!(one.len(), 2 * THINGS);
        assert!(one[0] > 0.05 && one[1] > 0.05 && one[2].abs() < 0.01 && one[3].abs() < 0.01, "{one:?}");
        for (from, by, blue) in [
            ([8usize, 8usize], [3isize, -2isize], [[20, 20], [20, 20]]),
            ([22, 4], [-5, 0], [[3, 20], [9, 14]]),
            ([13, 25], [4, 1], [[3, 20], [3, 20]]),
        ] {
            let to = [0, 1].map(|axis| from[axis].strict_add_signed(by[axis]));
            let said = ways([from, to], blue);
            for axis in 0..2 {
                let wanted = one[axis] * by[axis] as f32;
                assert!((said[axis] - wanted).abs() < 0.02 * one[axis], "{from:?} by {by:?}: {said:?}, not {wanted}");
            }
        }
    }

    #[test]
    fn what_is_in_one_picture_alone_has_not_moved() {
        let places = places();
        let nowhere = [SIDE, SIDE];
        let said = values(places.ways(pair(&[(RED, [4, 4], nowhere), (BLUE, [4, 20], [4, 20])]), [SIDE, SIDE]));
        assert!(said.iter().all(|way| way.abs() < 0.02), "{said:?}");
    }

    #[test]
    fn colours_fall_into_as_many_groups_as_there_are() {
        let near = |colour: [f32; 3], i: usize| colour.map(|c| 0.9 * c + 0.01 * (i % 5) as f32);
        let colours: Vec<[f32; 3]> = (0..90).map(|i| near([RED, BLUE, [1.0; 3]][i % 3], i)).collect();
        let found = groups(&colours);
        for wanted in [RED, BLUE, [1.0; 3]] {
            assert!(nearest(&wanted, &found).1 < 0.1, "{wanted:?} in {found:?}");
        }
        assert_eq!(groups(&[RED, BLUE, RED]).len(), 2);
        assert_eq!(groups(&[]).len(), 0);
        assert!(Places::of(&[pair(&[])], [SIDE, SIDE], &Device::flex()).is_none());
    }
}
