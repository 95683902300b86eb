//! The one GPU: its name, size and limits, as an A100 or an H100 states them.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::{SUCCESS, answer, handle};

/// `CUDA_ERROR_INVALID_DEVICE`, for an index that no device has.
const INVALID_DEVICE: c_int = 101;

/// 80 or 90, from the environment; 90 where it says nothing.
fn architecture() -> c_int {
    std::env::var("VW2_HOLLOW_SM").ok().and_then(|sm| sm.parse().ok()).unwrap_or(90)
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    SUCCESS
}

/// # Safety
/// `version` is valid for a write, as in all functions of this file that take a pointer to their result.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(version, 13_000) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(count, 1) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, index: c_int) -> c_int {
    // SAFETY: the caller's promise.
    if index == 0 { unsafe { answer(device, 0) } } else { INVALID_DEVICE }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> c_int {
    // "H100" tells CubeCL that there are tensor cores.
    let title: &[u8] = if architecture() >= 90 { b"hollow H100\0" } else { b"hollow A100\0" };
    let count = title.len().min(length.max(0) as usize);
    // SAFETY: the caller gives `length` bytes, and no more than that are written.
    unsafe { std::ptr::copy_nonoverlapping(title.as_ptr(), name.cast(), count) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, length: c_int, _device: c_int) -> c_int {
    let text = b"0000:00:00.0\0";
    let count = text.len().min(length.max(0) as usize);
    // SAFETY: the caller gives `length` bytes, and no more than that are written.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), id.cast(), count) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(bytes, 80 << 30) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    // SAFETY: the caller's promise, for both.
    unsafe { answer(free, 80 << 30) + answer(total, 80 << 30) }
}

/// The attributes that CubeCL asks for, by their number in the driver's header.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> c_int {
    let hopper = architecture() >= 90;
    let found = match attribute {
        1..=3 => 1024,   // threads per block; its x and y
        4 => 64,         // its z
        5 => c_int::MAX, // grid x
        6 | 7 => 65_535, // grid y and z
        10 => 32,        // warp
        16 => {
            if hopper {
                132
            } else {
                108
            }
        } // multiprocessors
        75 => architecture() / 10,
        76 => architecture() % 10,
        97 => {
            if hopper {
                232_448
            } else {
                166_912
            }
        } // shared memory of a block, on request
        _ => 0,
    };
    // SAFETY: the caller's promise.
    unsafe { answer(value, found) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(context, handle()) }
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(context, handle()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> c_int {
    // SAFETY: the caller's promise, for both.
    unsafe { answer(least, 0) + answer(greatest, 0) }
}
