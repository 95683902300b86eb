//! NVRTC, opened where it lies: no driver and no GPU is needed to compile, down to the machine code of a real GPU.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;

use libloading::{Library, Symbol};

pub(crate) struct Nvrtc {
    library: Library,
    /// Holds the compiler's own data; named by its path, as it may lie where no search looks.
    _builtins: Library,
    include: PathBuf,
}

/// What one kernel takes of a multiprocessor, as the assembler says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) registers: u64,
    /// Bytes stored and loaded because registers ran out.
    pub(crate) spilled_bytes: u64,
    /// Shared memory with a size in the source; what a launch asks for comes on top.
    pub(crate) shared_bytes: u64,
}

impl Nvrtc {
    /// Says aloud where there is none.
    pub(crate) fn find() -> Option<Nvrtc> {
        let folder = std::env::var_os("VW2_NVRTC").map(PathBuf::from);
        let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
        let Some(folder) = folder else {
            eprintln!("skipped: no NVRTC; VW2_NVRTC names no folder");
            assert!(!required.split(',').any(|name| name == "nvrtc"), "VW2_REQUIRE asks for nvrtc");
            return None;
        };
        let open = |name: &str| {
            let path = folder.join("lib").join(name);
            // SAFETY: NVIDIA's libraries run no code of their own when they are opened.
            unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let builtins = open("libnvrtc-builtins.so.13.0");
        Some(Nvrtc { library: open("libnvrtc.so.13"), _builtins: builtins, include: folder.join("include") })
    }

    pub(crate) fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of NVRTC's header, as below.
        unsafe {
            let ask: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> = self.function("nvrtcVersion");
            ask(&mut major, &mut minor);
        }
        format!("{major}.{minor}")
    }

    /// `Err` is the compiler's log.
    pub(crate) fn compile(&self, source: &str, target: &str) -> Result<Used, String> {
        let source = CString::new(source).expect("a source has no zero bytes");
        let include = self.include.display();
        // As CubeCL calls it, and with the assembler's report.
        let options = [
            format!("--gpu-architecture={target}"),
            format!("--include-path={include}"),
            format!("--include-path={include}/cccl"),
            "-lineinfo".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        let options = options.map(|option| CString::new(option).expect("an option has no zero bytes"));
        let pointers = options.each_ref().map(|option| option.as_ptr());
        let mut program: *mut c_void = std::ptr::null_mut();
        // SAFETY: the signatures are those of NVRTC's header; texts and options live until the program is destroyed, and
        // the log has room for the size that was asked for.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut *mut c_void,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
            type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
            type Text = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
            type Destroy = unsafe extern "C" fn(*mut *mut c_void) -> c_int;

            let none = std::ptr::null();
            let create: Symbol<'_, Create> = self.function("nvrtcCreateProgram");
            let created = create(&mut program, source.as_ptr(), none, 0, none.cast(), none.cast());
            assert_eq!(created, 0, "NVRTC takes a source");
            let compile: Symbol<'_, Compile> = self.function("nvrtcCompileProgram");
            let compiled = compile(program, pointers.len() as c_int, pointers.as_ptr());
            let (mut size, size_of): (usize, Symbol<'_, Size>) = (0, self.function("nvrtcGetProgramLogSize"));
            size_of(program, &mut size);
            let (mut log, text): (Vec<u8>, Symbol<'_, Text>) = (vec![0; size], self.function("nvrtcGetProgramLog"));
            text(program, log.as_mut_ptr().cast());
            let destroy: Symbol<'_, Destroy> = self.function("nvrtcDestroyProgram");
            destroy(&mut program);
            let log = String::from_utf8_lossy(&log).into_owned();
            if compiled == 0 { Ok(Used::read(&log)) } else { Err(log) }
        }
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn function<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the caller's promise.
        unsafe { self.library.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("NVRTC has no `{name}`: {e}"))
    }
}

impl Used {
    /// From lines as `0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads` and
    /// `Used 12 registers, used 1 barriers, 512 bytes smem`.
    fn read(log: &str) -> Used {
        let before = |unit: &str| -> u64 {
            let counts =
                log.match_indices(unit).filter_map(|(at, _)| log[..at].rsplit([' ', '\t']).next()?.parse().ok());
            counts.max().unwrap_or(0)
        };
        let registers = before(" registers");
        assert!(registers > 0, "the assembler says how many registers it used:\n{log}");
        Used {
            registers,
            spilled_bytes: before(" bytes spill stores") + before(" bytes spill loads"),
            shared_bytes: before(" bytes smem"),
        }
    }
}

#[test]
fn the_report_of_the_assembler_is_read() {
    let log = "ptxas info    : Compiling entry function 'foo' for 'sm_90a'\n\
               ptxas         .     0 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n\
               ptxas info    : Used 12 registers, used 1 barriers, 512 bytes smem\n";
    let used = Used::read(log);
    assert_eq!((used.registers, used.spilled_bytes, used.shared_bytes), (12, 40, 512));
}
