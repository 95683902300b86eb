//! Stands in for `cubecl-llvm`: the names by which `cubecl-cuda` refers to LLVM, without LLVM.
//!
//! The real crate downloads an LLVM when it is built. Our kernels do not need it: with `cuda-cpp` they are written as
//! CUDA C++ and compiled by NVRTC, but `cubecl-cuda` names both ways in one enum. Here are the types of the other way, and
//! a compiler that answers every kernel with how to leave it.
//!
//! Differs from the original: no kernel is compiled, no feature of a device is taken back, and the CPU runtime of CubeCL,
//! which needs the LLVM, does not build against it.

use std::ffi::c_char;
use std::fmt;

use cubecl_core::Compiler;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

use nvptx::ptx_version::PtxVersion;

/// What a kernel gets that comes here.
const REFUSAL: &str = "this program has no LLVM: build it with cubecl's feature `cuda-cpp`, which compiles by NVRTC";

/// The PTX side of LLVM.
pub mod nvptx {
    /// Versions of the PTX language.
    pub mod ptx_version {
        use std::fmt;

        /// The PTX version that LLVM would write. Nothing is written, so there is never one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// `None` stands for the compiler's own default.
            pub fn for_driver(_driver: i32) -> Option<PtxVersion> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the targets of LLVM share.
pub mod shared {
    /// Features that LLVM lowers.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A family of GPUs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Would take back what LLVM cannot lower; the compiler refuses every kernel anyway.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    #[default]
    Cpu,
    Nvptx,
}

/// How LLVM would compile.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An AMD architecture, which this build never names.
    pub arch: Option<Never>,
    pub sm_arch: Option<SmArch>,
    pub ptx_version: Option<PtxVersion>,
    pub grid_constants: bool,
}

/// A type without values.
#[derive(Clone, Copy, Debug)]
pub enum Never {}

/// What LLVM would make of a kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    pub ptx: Vec<c_char>,
    pub entrypoint: String,
    pub ir: String,
    pub shared_memory_size: usize,
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler would yield. `None` keeps a `match` on it the same as on the original.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    NvptxCode(NvptxModule),
    None,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlironArtifact::NvptxCode(module) => f.write_str(&module.ir),
            PlironArtifact::None => f.write_str(REFUSAL),
        }
    }
}

/// Compiles nothing.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn buffer_io(_: &Self::Representation) -> Option<Vec<BufferIOAttr>> {
        None
    }

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic { reason: REFUSAL.to_owned(), backtrace: BackTrace::capture() })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
