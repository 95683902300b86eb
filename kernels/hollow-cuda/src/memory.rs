//! Device memory, which is the host's: a device pointer is an address, and a copy is a copy.
//!
//! The memory that the caller asks for starts as zeros, so that what launches left unwritten is at least the same always.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_int, c_uint, c_void};

use crate::{SUCCESS, answer};

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: c_int = 2;

/// Before each allocation lies its size; as wide as the alignment that CubeCL counts on.
const HEADER: usize = 512;

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

fn allocate(size: usize) -> Option<*mut u8> {
    let layout = layout(size)?;
    // SAFETY: the layout is never empty; the header has room for the size and is aligned for it.
    unsafe {
        let start = alloc_zeroed(layout);
        if start.is_null() {
            return None;
        }
        start.cast::<usize>().write(size);
        Some(start.add(HEADER))
    }
}

/// # Safety
/// `data` is null or came from [`allocate`], and is given back once.
unsafe fn free(data: *mut u8) -> c_int {
    if !data.is_null() {
        // SAFETY: by the promise, the header lies before it and holds the size it was allocated with.
        unsafe {
            let start = data.sub(HEADER);
            let size = start.cast::<usize>().read();
            dealloc(start, layout(size).expect("it was allocated with this layout"));
        }
    }
    SUCCESS
}

/// # Safety
/// `place` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(place: *mut u64, size: usize) -> c_int {
    match allocate(size) {
        // SAFETY: the caller's promise.
        Some(data) => unsafe { answer(place, data.expose_provenance() as u64) },
        None => OUT_OF_MEMORY,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(place: *mut u64, size: usize, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { cuMemAlloc_v2(place, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(place: *mut *mut c_void, size: usize) -> c_int {
    match allocate(size) {
        // SAFETY: the caller's promise.
        Some(data) => unsafe { answer(place, data.cast()) },
        None => OUT_OF_MEMORY,
    }
}

/// # Safety
/// `device` is what an allocation gave, and is freed once.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFree_v2(device: u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { free(address(device)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeAsync(device: u64, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { free(address(device)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(host: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { free(host.cast()) }
}

/// # Safety
/// Both sides are valid for `size` bytes, as in the next two functions.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, size: usize, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(from.cast::<u8>(), address(to), size) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, size: usize, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(address(from).cast_const(), to.cast::<u8>(), size) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, size: usize, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(address(from).cast_const(), address(to), size) };
    SUCCESS
}

/// The driver's `CUDA_MEMCPY2D`: rows of one pitch to rows of another.
#[repr(C)]
struct Rows {
    from: Side,
    to: Side,
    width: usize,
    height: usize,
}

#[repr(C)]
struct Side {
    x: usize,
    y: usize,
    kind: c_uint,
    host: *mut c_void,
    device: u64,
    array: *mut c_void,
    pitch: usize,
}

/// `CU_MEMORYTYPE_HOST`
const HOST: c_uint = 1;

impl Side {
    fn row(&self, index: usize) -> *mut u8 {
        let base = if self.kind == HOST { self.host.cast() } else { address(self.device) };
        base.wrapping_add((self.y + index) * self.pitch + self.x)
    }
}

/// # Safety
/// All rows of both sides are valid, and no side is an array.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpy2DAsync_v2(rows: *const Rows, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let rows = &*rows;
        for index in 0..rows.height {
            std::ptr::copy(rows.from.row(index).cast_const(), rows.to.row(index), rows.width);
        }
    }
    SUCCESS
}

/// # Safety
/// `count` bytes are valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(device: u64, value: u8, count: usize, _stream: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::write_bytes(address(device), value, count) };
    SUCCESS
}

fn address(device: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(device as usize)
}
