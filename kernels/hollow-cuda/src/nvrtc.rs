//! The compiler: writes sources down, and says that they compiled. What counts as the compiled program is the number of
//! its source, as text.

use std::ffi::{CStr, c_char, c_int};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::{SUCCESS, answer};

/// `NVRTC_ERROR_INTERNAL_ERROR`
const FAILED: c_int = 11;

/// Sources that came so far.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// # Safety
/// `program` is valid for a write, and `source` is a text with its end.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut usize,
    source: *const c_char,
    _name: *const c_char,
    _headers: c_int,
    _header_texts: *const *const c_char,
    _header_names: *const *const c_char,
) -> c_int {
    let number = COUNT.fetch_add(1, SeqCst);
    let Some(folder) = std::env::var_os("VW2_HOLLOW_OUT").map(PathBuf::from) else {
        return FAILED;
    };
    // SAFETY: the caller's promise.
    let source = unsafe { CStr::from_ptr(source) };
    match std::fs::write(folder.join(format!("{number:04}.cu")), source.to_bytes()) {
        // SAFETY: the caller's promise. A program is its number and one, which is never null.
        Ok(()) => unsafe { answer(program, number + 1) },
        Err(_) => FAILED,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvrtcCompileProgram(_program: usize, _count: c_int, _options: *const *const c_char) -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcDestroyProgram(_program: *mut usize) -> c_int {
    SUCCESS
}

/// The text of a program with its end; a program is its number and one.
fn image(program: usize) -> Vec<u8> {
    format!("{}\0", program - 1).into_bytes()
}

/// # Safety
/// `size` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTXSize(program: usize, size: *mut usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(size, image(program).len()) }
}

/// # Safety
/// `text` has room for as many bytes as [`nvrtcGetPTXSize`] says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTX(program: usize, text: *mut c_char) -> c_int {
    let image = image(program);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), text.cast(), image.len()) };
    SUCCESS
}

/// # Safety
/// `size` is valid for a write.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLogSize(_program: usize, size: *mut usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(size, 1) }
}

/// # Safety
/// `text` has room for one byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLog(_program: usize, text: *mut c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { answer(text, 0) }
}
