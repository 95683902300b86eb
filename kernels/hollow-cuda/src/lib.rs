//! A CUDA driver and an NVRTC without a GPU: what CubeCL would run on one can be asked for on a machine without, and run on
//! the CPU.
//!
//! One library holds both. Put before the real ones under the names `libcuda.so` and `libnvrtc.so`, it shows one GPU of
//! the architecture that `VW2_HOLLOW_SM` names (80 or 90). Memory is the host's and copies are copies. A launch does
//! nothing, so results are whatever the memory held; but where `VW2_HOLLOW_CXX` names a C++ compiler, sources are compiled
//! for the CPU and launches compute, slowly, what they would on the GPU. Every source that is to be compiled is written to the folder
//! `VW2_HOLLOW_OUT` as `0000.cu`, `0001.cu`, .. in the order in which it comes, and counts as compiled. Every launch adds a
//! line to the file `VW2_HOLLOW_LAUNCHES`, where it is set: function, threads of a block, bytes of shared memory.
//!
//! Here is what CubeCL 0.11 calls; a call of anything else ends the program with the name that is missing.

mod device;
mod host;
mod memory;
mod nvrtc;
mod queue;

use std::ffi::c_int;

/// `CUDA_SUCCESS` and `NVRTC_SUCCESS`.
const SUCCESS: c_int = 0;

/// Writes a result through a caller's pointer.
///
/// # Safety
/// As for [`std::ptr::write`]: `place` is valid for a `T`.
unsafe fn answer<T>(place: *mut T, value: T) -> c_int {
    // SAFETY: the caller's promise, which is the driver API's own.
    unsafe { place.write(value) };
    SUCCESS
}

/// A handle that is not null; nothing lies behind it.
fn handle() -> *mut std::ffi::c_void {
    std::ptr::without_provenance_mut(64)
}
