//! The op on CubeCL devices: a cube of 128 units shares a row, and finds by bisection what sorting would show.
//!
//! A logit's bits become a whole number in the order of logits, its key. How many logits, or how much weight, there is from
//! a key on falls as the key grows; so 32 halvings find the key at which it passes any bound, whatever the row's length.
//! Equal logits have equal weights, so a quotient tells how many of them count, and a scan in the order of ids which one
//! is meant.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Choice, SampleOps};
use crate::cube::{UNITS, dense, total};

/// Halvings until one key is left.
const HALVINGS: usize = 32;

/// The place of a logit in the order of all floats; 0 for what is no finite number.
#[cube]
fn key(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    let mut key = bits | 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = 0xffff_ffffu32 - bits;
    }
    if (bits & 0x7f80_0000u32) == 0x7f80_0000u32 {
        key = 0u32;
    }
    key
}

/// The logit of a key.
#[cube]
fn logit(key: u32) -> f32 {
    let mut bits = key & 0x7fff_ffffu32;
    if key < 0x8000_0000u32 {
        bits = 0xffff_ffffu32 - key;
    }
    f32::reinterpret(bits)
}

/// exp((logit - top) / temperature), 0 far below.
#[cube]
fn weight(logit: f32, top: f32, temperature: f32) -> f32 {
    f32::exp(f32::max((logit - top) / temperature, -100.0f32))
}

/// The sum, the largest and the smallest of what all units of the cube have, in every unit.
#[cube]
fn gathered(value: u32, shared: &mut Shared<[u32]>) -> (u32, u32, u32) {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = 0u32;
    let mut most = 0u32;
    let mut least = 0xffff_ffffu32;
    for other in 0..UNITS {
        sum += shared[other];
        most = u32::max(most, shared[other]);
        least = u32::min(least, shared[other]);
    }
    (sum, most, least)
}

/// How many logits of a row have this key or a greater one.
#[cube]
fn count_from(logits: &[f32], start: usize, end: usize, least: u32, shared: &mut Shared<[u32]>) -> u32 {
    let mut count = 0u32;
    let mut at = start + UNIT_POS as usize;
    while at < end {
        if key(logits[at]) >= least {
            count += 1u32;
        }
        at += UNITS;
    }
    let (sum, _, _) = gathered(count, shared);
    sum
}

/// The weight of the logits of a row that have this key or a greater one.
#[cube]
fn weight_from(
    logits: &[f32],
    start: usize,
    end: usize,
    least: u32,
    top: f32,
    temperature: f32,
    shared: &mut Shared<[f32]>,
) -> f32 {
    let mut sum = 0.0f32;
    let mut at = start + UNIT_POS as usize;
    while at < end {
        if key(logits[at]) >= least {
            sum += weight(logits[at], top, temperature);
        }
        at += UNITS;
    }
    total(sum, shared)
}

/// How many equal weights fit into a sum, at most `most`.
#[cube]
fn quotient(sum: f32, weight: f32, most: u32) -> f32 {
    f32::min(f32::max(sum, 0.0f32) / f32::max(weight, 1.0e-30f32), f32::cast_from(most))
}

/// One cube per row.
#[cube(launch)]
fn choose(
    logits: &[f32],
    draws: &[f32],
    ids: &mut [i32],
    width: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    #[comptime] greedy: bool,
    #[comptime] limited: bool,
    #[comptime] nucleus: bool,
) {
    let (row, unit, width) = (CUBE_POS as usize, UNIT_POS as usize, width as usize);
    let mut counts = Shared::<[u32]>::new_slice(UNITS);
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    let start = row * width;
    let mut end = start + width;
    let mut draw = 0.0f32;
    if row >= ids.len() {
        end = start;
    } else {
        draw = draws[row];
    }

    let mut best = 0u32;
    let mut last = 0xffff_ffffu32;
    let mut at = start + unit;
    while at < end {
        let key = key(logits[at]);
        if key > 0u32 {
            best = u32::max(best, key);
            last = u32::min(last, key);
        }
        at += UNITS;
    }
    let (_, best, _) = gathered(best, &mut counts);
    let (_, _, last) = gathered(last, &mut counts);

    // The key of the chosen logit, and which of those with this key, in the order of ids.
    let mut chosen = best;
    let mut which = 0u32;
    if comptime!(!greedy) {
        let top = logit(best);
        // The least key that counts, and how many logits of this key do.
        let mut least = last;
        if comptime!(limited) {
            let mut high = best + 1u32;
            for _ in 0..HALVINGS {
                let middle = least + (high - least) / 2u32;
                if count_from(logits, start, end, middle, &mut counts) >= top_k {
                    least = middle;
                } else {
                    high = middle;
                }
            }
        }
        let larger = count_from(logits, start, end, least + 1u32, &mut counts);
        let mut ties = count_from(logits, start, end, least, &mut counts);
        if comptime!(limited) {
            ties = u32::min(ties, top_k);
        }
        ties -= larger;
        let mut above = weight_from(logits, start, end, least + 1u32, top, temperature, &mut sums);
        let mut kept = above + f32::cast_from(ties) * weight(logit(least), top, temperature);
        if comptime!(nucleus) {
            let wanted = top_p * kept;
            let lowest = least;
            let mut high = best + 1u32;
            for _ in 0..HALVINGS {
                let middle = least + (high - least) / 2u32;
                if weight_from(logits, start, end, middle, top, temperature, &mut sums) >= wanted {
                    least = middle;
                } else {
                    high = middle;
                }
            }
            above = weight_from(logits, start, end, least + 1u32, top, temperature, &mut sums);
            if least > lowest {
                ties = count_from(logits, start, end, least, &mut counts);
                ties -= count_from(logits, start, end, least + 1u32, &mut counts);
            }
            let own = weight(logit(least), top, temperature);
            let needed = u32::cast_from(f32::ceil(quotient(wanted - above, own, ties)));
            ties = u32::min(u32::max(needed, 1u32), ties);
            kept = above + f32::cast_from(ties) * own;
        }
        let left = draw * kept;
        chosen = least;
        let mut high = best + 1u32;
        for _ in 0..HALVINGS {
            let middle = chosen + (high - chosen) / 2u32;
            if weight_from(logits, start, end, middle, top, temperature, &mut sums) > left {
                chosen = middle;
            } else {
                high = middle;
            }
        }
        if chosen > least {
            ties = count_from(logits, start, end, chosen, &mut counts);
            ties -= count_from(logits, start, end, chosen + 1u32, &mut counts);
        }
        above = weight_from(logits, start, end, chosen + 1u32, top, temperature, &mut sums);
        which = u32::cast_from(f32::floor(quotient(left - above, weight(logit(chosen), top, temperature), ties)));
        which = u32::min(which, u32::max(ties, 1u32) - 1u32);
    }

    // Units take neighbouring ids now, so that those before a unit's own are with the units before it.
    let each = (width + UNITS - 1) / UNITS;
    let from = usize::min(start + unit * each, end);
    let to = usize::min(from + each, end);
    let mut count = 0u32;
    for at in from..to {
        if key(logits[at]) == chosen {
            count += 1u32;
        }
    }
    sync_cube();
    counts[unit] = count;
    sync_cube();
    let mut before = 0u32;
    for other in 0..unit {
        before += counts[other];
    }
    if row < ids.len() {
        if best == 0u32 {
            if unit == 0 {
                ids[row] = -1i32;
            }
        } else if which >= before && which < before + count {
            for at in from..to {
                if key(logits[at]) == chosen {
                    if before == which {
                        ids[row] = i32::cast_from((at - start) as u32);
                    }
                    before += 1u32;
                }
            }
        }
    }
}

/// The largest f32 that is not above a draw: 1 would be beyond all ids.
fn below_one(draw: f64) -> f32 {
    (draw as f32).min(1.0f32.next_down())
}

impl SampleOps for CubeBackend {
    fn sample(logits: FloatTensor<Self>, choice: Choice, draws: Vec<f64>) -> IntTensor<Self> {
        let logits = dense(logits);
        let client = logits.client.clone();
        let (rows, width) = (logits.shape()[0], logits.shape()[1]);
        let ids = empty_device_contiguous_dtype(client.clone(), logits.device.clone(), Shape::new([rows]), DType::I32);
        if rows > 0 {
            let draws: Vec<f32> = draws.into_iter().map(below_one).collect();
            let handle = client.create_from_slice(f32::as_bytes(&draws));
            // SAFETY: the handle was made from a slice of exactly `draws.len()` floats.
            let draws = unsafe { BufferArg::from_raw_parts(handle, draws.len()) };
            let dim = CubeDim::new_1d(UNITS as u32);
            choose::launch(
                &client,
                calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                dim,
                logits.into_buffer_arg(),
                draws,
                ids.clone().into_buffer_arg(),
                width as u32,
                // A temperature that f32 takes for 0 leaves the largest logits only, as it does in f64.
                (choice.temperature as f32).max(1e-30),
                choice.top_k as u32,
                choice.top_p as f32,
                choice.temperature == 0.0,
                choice.top_k > 0,
                choice.top_p < 1.0,
            );
        }
        ids
    }
}
