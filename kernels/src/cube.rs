//! What cube kernels share: operands without gaps, a sum over the units of a cube, and the slope of what may follow a norm.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::Activation;

/// The tensor with its values one behind the other, and nothing behind the last: a kernel's `len()` counts what memory an
/// operand has, and Burn pads rows on some devices.
pub(crate) fn dense(tensor: CubeTensor) -> CubeTensor {
    let mut tensor = into_contiguous(tensor);
    let bytes = (tensor.meta.num_elements() * tensor.dtype.size()) as u64;
    // Offsets count from the ends of the whole memory.
    let behind = tensor.handle.offset_end.unwrap_or(0) + tensor.handle.size_in_used() - bytes;
    tensor.handle.offset_end = Some(behind);
    tensor
}

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
