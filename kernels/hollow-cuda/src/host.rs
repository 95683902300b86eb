//! Launches that compute, on the CPU: sources are compiled as C++ on top of `host.hpp`, where `VW2_HOLLOW_CXX` names a
//! compiler.

use std::ffi::{OsString, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const HOST: &str = include_str!("host.hpp");

/// Grid and block, and the places of the arguments.
type Run = unsafe extern "C" fn(sizes: *const c_uint, arguments: *mut *mut c_void);

/// A function of a compiled source.
pub(crate) struct Program {
    run: Run,
    /// The function lies in it.
    _library: libloading::Library,
}

/// The compiler that is to be used, if launches are to compute.
fn compiler() -> Option<OsString> {
    std::env::var_os("VW2_HOLLOW_CXX")
}

/// Compiles the source of that number; `Ok(None)` where launches compute nothing.
pub(crate) fn compile(number: usize, function: &str) -> Result<Option<Program>, String> {
    let (Some(compiler), Some(folder)) = (compiler(), std::env::var_os("VW2_HOLLOW_OUT").map(PathBuf::from)) else {
        return Ok(None);
    };
    let file = |ending: &str| folder.join(format!("{number:04}.{ending}"));
    let source = std::fs::read_to_string(file("cu")).map_err(|error| error.to_string())?;
    std::fs::write(file("cpp"), on_the_host(&source, function)).map_err(|error| error.to_string())?;
    build(&compiler, &file("cpp"), &file("so"))?;
    // SAFETY: the library was just built from our own text, and has no initialisers but its zeros.
    let library = unsafe { libloading::Library::new(file("so")) }.map_err(|error| error.to_string())?;
    // SAFETY: `on_the_host` ends with a function of this type.
    let run = unsafe { library.get::<Run>(b"vw2_run") }.map(|found| *found).map_err(|error| error.to_string())?;
    Ok(Some(Program { run, _library: library }))
}

fn build(compiler: &OsString, source: &Path, library: &Path) -> Result<(), String> {
    let options = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", "-o"];
    let built = Command::new(compiler).args(options).arg(library).arg(source).output();
    let built = built.map_err(|error| format!("{}: {error}", compiler.display()))?;
    match built.status.success() {
        true => Ok(()),
        false => Err(format!("{}:\n{}", source.display(), String::from_utf8_lossy(&built.stderr))),
    }
}

/// The source as C++ for a CPU.
fn on_the_host(source: &str, function: &str) -> String {
    let mut text = format!("{HOST}\n");
    for line in source.lines() {
        // The host's headers have these types, and what stands for the device's headers is above.
        let is_known = line.starts_with("typedef") && line.ends_with("_t;") || line.starts_with("#include");
        if !is_known {
            text += &statement(line);
            text.push('\n');
        }
    }
    text + &format!(
        "static void unit() {{ call({function}); }}\n\
         extern \"C\" void vw2_run(const uint32_t *sizes, void **given) {{ launch(unit, sizes, given); }}\n"
    )
}

/// A line without what is not C++: the declaration of shared memory, and instructions of the device.
fn statement(line: &str) -> String {
    let mut line = line.to_owned();
    if let Some((before, rest)) = line.split_once("extern __shared__ ")
        && let Some((declared, after)) = rest.split_once("[];")
    {
        let name = declared.rsplit(' ').next().unwrap_or(declared);
        line = format!("{before}char *const {name} = shared_memory;{after}");
    }
    if let Some(rest) = line.strip_prefix("asm volatile(\"atom.relaxed.add.f32 %0, [%1], %2;\" : \"=f\"(")
        && let Some((result, rest)) = rest.split_once(") : \"l\"(")
        && let Some((place, rest)) = rest.split_once("), \"f\"(")
        && let Some((value, after)) = rest.split_once(") );")
    {
        line = format!("{result} = added((void *)({place}), {value});{after}");
    }
    line
}

impl Program {
    /// # Safety
    /// `arguments` are those of the function, and what they point at is valid for what the function does.
    pub(crate) unsafe fn run(&self, sizes: [c_uint; 6], arguments: *mut *mut c_void) {
        // A library's state is that of one launch.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise.
        unsafe { (self.run)(sizes.as_ptr(), arguments) }
    }
}
