//! The choice by plain loops, rank by rank; and seeded inputs that keep away from borders between ids.

use burn::tensor::TensorData;

use super::Choice;
use crate::ops::Draws;

/// Part of all weights that draws and `top_p` keep from a border.
const MARGIN: f64 = 1e-5;

pub(super) fn choice(case: &[usize]) -> Choice {
    Choice { temperature: case[2] as f64 / 100.0, top_k: case[3], top_p: case[4] as f64 / 1000.0 }
}

/// Logits, of which some are equal and some no finite numbers, and draws.
pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let (rows, width) = (case[0], case[1]);
    let mut draws = Draws::new(seed);
    let (mut logits, mut chances) = (Vec::new(), Vec::new());
    while chances.len() < rows {
        let logit = |draws: &mut Draws| match draws.bits() % 16 {
            0 if width > 1 => f32::NEG_INFINITY,
            1..=4 => (draws.bits() % 4) as f32 / 2.0 - 1.0,
            _ => (draws.unit() * 12.0 - 6.0) as f32,
        };
        let row: Vec<f32> = (0..width).map(|_| logit(&mut draws)).collect();
        let chance = draws.unit() as f32;
        let (_, nearest) = decide(&row, choice(case), f64::from(chance));
        if nearest > MARGIN && chance < 0.99 {
            logits.extend(row);
            chances.push(chance);
        }
    }
    vec![TensorData::new(logits, [rows * width]), TensorData::new(chances, [rows])]
}

/// The id, and the least distance from a border as a part of all weights.
fn decide(logits: &[f32], choice: Choice, draw: f64) -> (i32, f64) {
    // The rank of an id: how many come before it.
    let before = |a: usize, b: usize| logits[a] > logits[b] || logits[a] == logits[b] && a < b;
    let finite: Vec<usize> = (0..logits.len()).filter(|&id| logits[id].is_finite()).collect();
    let mut ranked = vec![0; finite.len()];
    for &id in &finite {
        ranked[finite.iter().filter(|&&other| before(other, id)).count()] = id;
    }
    let Some(&best) = ranked.first() else { return (-1, f64::INFINITY) };
    if choice.temperature == 0.0 {
        return (best as i32, f64::INFINITY);
    }
    if choice.top_k > 0 {
        ranked.truncate(choice.top_k);
    }
    let largest = f64::from(logits[best]);
    let weight = |id: usize| ((f64::from(logits[id]) - largest) / choice.temperature).exp();
    let mut nearest = f64::INFINITY;
    if choice.top_p < 1.0 {
        let all: f64 = ranked.iter().map(|&id| weight(id)).sum();
        let (mut sum, mut count) = (0.0, 0);
        while count < ranked.len() && sum < choice.top_p * all {
            sum += weight(ranked[count]);
            count += 1;
            nearest = nearest.min((sum / all - choice.top_p).abs());
        }
        ranked.truncate(count);
    }
    let all: f64 = ranked.iter().map(|&id| weight(id)).sum();
    let (mut sum, mut chosen) = (0.0, None);
    for &id in &ranked {
        sum += weight(id);
        if ranked.len() > 1 && Some(&id) != ranked.last() {
            nearest = nearest.min((sum / all - draw).abs());
        }
        if sum > draw * all {
            chosen = chosen.or(Some(id));
        }
    }
    (chosen.or(ranked.last().copied()).map_or(-1, |id| id as i32), nearest)
}

pub(super) fn ids(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let logits = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
    let draws = inputs[1].as_slice::<f32>().expect("`inputs` makes f32");
    let rows = logits.chunks_exact(case[1]).zip(draws);
    rows.map(|(row, &draw)| f64::from(decide(row, choice(case), f64::from(draw)).0)).collect()
}
