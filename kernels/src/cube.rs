//! What cube kernels share: a sum over the units of a cube, and the slope of what may follow a norm.

use cubecl::prelude::*;

use crate::ops::Activation;

/// Units of a cube that shares a row.
pub(crate) const UNITS: usize = 128;

/// The sum of what all units of the cube have, in every unit.
#[cube]
pub(crate) fn total(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = 0.0f32;
    for other in 0..UNITS {
        sum += shared[other];
    }
    sum
}

/// d (what follows) / d n.
#[cube]
pub(crate) fn silu_slope(n: f32, #[comptime] then: Activation) -> f32 {
    if comptime!(then == Activation::Silu) {
        let open = 1.0f32 / (1.0f32 + f32::exp(-n));
        open * (1.0f32 + n * (1.0f32 - open))
    } else {
        1.0f32.runtime()
    }
}
