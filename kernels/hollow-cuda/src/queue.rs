//! Streams, events, modules and launches: all of it is done as soon as it is asked for, and does nothing, but for launches
//! where there is a compiler for them.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::io::Write;

use crate::host::{self, Program};
use crate::{SUCCESS, answer, handle};

/// `CUDA_ERROR_LAUNCH_FAILED`
const LAUNCH_FAILED: c_int = 719;

/// Functions that take handles and numbers, and have nothing to give back.
macro_rules! done_at_once {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) -> c_int {
            SUCCESS
        }
    )*};
}

/// Functions whose first argument is the place for a new handle.
macro_rules! new_handle {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        /// # Safety
        /// `place` is valid for a write.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(place: *mut *mut c_void $(, $argument: $kind)*) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { answer(place, handle()) }
        }
    )*};
}

new_handle! {
    cuStreamCreate(_flags: c_uint);
    cuStreamCreateWithPriority(_flags: c_uint, _priority: c_int);
    cuEventCreate(_flags: c_uint);
}

done_at_once! {
    cuStreamDestroy_v2(_stream: *mut c_void);
    cuStreamSynchronize(_stream: *mut c_void);
    cuStreamWaitEvent(_stream: *mut c_void, _event: *mut c_void, _flags: c_uint);
    cuEventRecord(_event: *mut c_void, _stream: *mut c_void);
    cuEventSynchronize(_event: *mut c_void);
    cuEventQuery(_event: *mut c_void);
    cuEventDestroy_v2(_event: *mut c_void);
    cuCtxSynchronize();
    cuFuncSetAttribute(_function: *mut c_void, _attribute: c_int, _value: c_int);
}

/// # Safety
/// `milliseconds` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, _from: *mut c_void, _to: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(milliseconds, 0.001) }
}

/// `CUDA_ERROR_INVALID_IMAGE`
const INVALID_IMAGE: c_int = 200;

/// A module is the number of its source and one, which is never null.
///
/// # Safety
/// `place` is valid for a write, and `image` is what the compiler gave.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(place: *mut *mut c_void, image: *const c_void) -> c_int {
    // SAFETY: the caller's promise.
    let image = unsafe { CStr::from_ptr(image.cast()) };
    match image.to_str().ok().and_then(|text| text.parse::<usize>().ok()) {
        // SAFETY: the caller's promise.
        Some(number) => unsafe { answer(place, std::ptr::without_provenance_mut(number + 1)) },
        None => INVALID_IMAGE,
    }
}

/// Kept for as long as the program runs.
struct Function {
    name: CString,
    program: Option<Program>,
}

/// # Safety
/// `place` is valid for a write, and `name` is a text with its end.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(place: *mut *mut c_void, module: *mut c_void, name: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    match host::compile(module.addr() - 1, &name.to_string_lossy()) {
        // SAFETY: the caller's promise.
        Ok(program) => unsafe { answer(place, Box::into_raw(Box::new(Function { name, program })).cast()) },
        Err(reason) => {
            eprintln!("the hollow driver cannot compile {}: {reason}", name.to_string_lossy());
            INVALID_IMAGE
        }
    }
}

/// # Safety
/// `function` came from [`cuModuleGetFunction`]; where launches compute, `arguments` are its arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    _stream: *mut c_void,
    arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise; it is never freed.
    let function = unsafe { &*function.cast_const().cast::<Function>() };
    if let Some(program) = &function.program {
        // SAFETY: the caller's promise.
        unsafe { program.run([grid_x, grid_y, grid_z, block_x, block_y, block_z], arguments) };
    }
    let line = format!("{}\t{}\t{shared_bytes}\n", function.name.to_string_lossy(), block_x * block_y * block_z);
    match std::env::var_os("VW2_HOLLOW_LAUNCHES") {
        None => SUCCESS,
        Some(file) => match append(&file, &line) {
            Ok(()) => SUCCESS,
            Err(_) => LAUNCH_FAILED,
        },
    }
}

fn append(file: &OsStr, line: &str) -> std::io::Result<()> {
    OpenOptions::new().create(true).append(true).open(file)?.write_all(line.as_bytes())
}

#[unsafe(no_mangle)]
extern "C" fn cuTensorMapEncodeTiled(
    _map: *mut c_void,
    _kind: c_int,
    _rank: c_uint,
    _address: *mut c_void,
    _sizes: *const u64,
    _strides: *const u64,
    _box: *const c_uint,
    _steps: *const c_uint,
    _interleave: c_int,
    _swizzle: c_int,
    _promotion: c_int,
    _fill: c_int,
) -> c_int {
    SUCCESS
}

/// # Safety
/// `text` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_error: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(text, c"a failure of the hollow driver".as_ptr()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { cuGetErrorString(error, text) }
}
