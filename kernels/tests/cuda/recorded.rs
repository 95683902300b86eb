//! The sources that a CUDA device would be given for the table's kernels, from the program `cuda-sources` on the hollow
//! driver.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the hollow driver says it is, and what NVRTC compiles for on such a device.
#[derive(Clone, Copy)]
pub(crate) struct Architecture {
    sm: &'static str,
    pub(crate) target: &'static str,
}

pub(crate) const ARCHITECTURES: [Architecture; 2] =
    [Architecture { sm: "80", target: "sm_80" }, Architecture { sm: "90", target: "sm_90a" }];

/// One variant of one of our kernels.
pub(crate) struct Source {
    /// The row of the table.
    pub(crate) kernel: String,
    /// The float type of the row's inputs.
    pub(crate) dtype: String,
    /// The cube function, and its name in the source, which tells variants apart.
    pub(crate) function: String,
    pub(crate) entry: String,
    /// The source, with the entry named as the function.
    pub(crate) text: String,
    /// Shared memory of a launch.
    pub(crate) shared_bytes: u64,
}

/// All variants that the cases of the table need, in the order in which they came. Recorded once per architecture.
pub(crate) fn sources(architecture: Architecture) -> &'static [Source] {
    static RECORDED: [OnceLock<Vec<Source>>; 2] = [const { OnceLock::new() }; 2];
    let index = ARCHITECTURES.iter().position(|known| known.sm == architecture.sm).expect("it is one of them");
    RECORDED[index].get_or_init(|| record(architecture))
}

fn record(architecture: Architecture) -> Vec<Source> {
    let folder = scratch(architecture.sm);
    let out = folder.join("out");
    let launches = folder.join("launches");
    let finished = on_the_hollow_driver(&folder, architecture)
        .env("VW2_HOLLOW_LAUNCHES", &launches)
        .output()
        .expect("the program starts");
    let told = String::from_utf8_lossy(&finished.stderr);
    assert!(finished.status.success(), "cuda-sources for sm_{}: {told}", architecture.sm);
    let shared = shared_bytes(&std::fs::read_to_string(&launches).expect("kernels were launched"));
    let lines = String::from_utf8(finished.stdout).expect("names are text");
    let found = lines.lines().flat_map(|line| row(line, &out, &shared)).collect();
    std::fs::remove_dir_all(&folder).ok();
    found
}

/// The program, where the hollow driver is in the place of a real one. Sources come to the folder's `out`.
fn on_the_hollow_driver(folder: &Path, architecture: Architecture) -> Command {
    let (libraries, out, toolkit) = (folder.join("lib"), folder.join("out"), folder.join("toolkit"));
    for path in [&libraries, &out, &toolkit.join("include")] {
        std::fs::create_dir_all(path).expect("a folder for tests can be made");
    }
    std::fs::write(toolkit.join("include/cuda_runtime.h"), "").expect("a file for tests can be made");
    for name in ["libcuda.so", "libnvrtc.so"] {
        std::fs::copy(hollow_library(), libraries.join(name)).expect("the hollow driver can be copied");
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_cuda-sources"));
    program.env("LD_LIBRARY_PATH", &libraries).env("CUDA_PATH", &toolkit);
    program.env("VW2_HOLLOW_SM", architecture.sm).env("VW2_HOLLOW_OUT", &out);
    program
}

/// Compiles the sources for the CPU, and has the program look at what they compute; what it tells where that is wrong.
pub(crate) fn computed_on_the_host(compiler: &str) -> Result<(), String> {
    let folder = scratch("host");
    let mut program = on_the_hollow_driver(&folder, ARCHITECTURES[1]);
    let finished = program.arg("agree").env("VW2_HOLLOW_CXX", compiler).output().expect("the program starts");
    std::fs::remove_dir_all(&folder).ok();
    match finished.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&finished.stderr).into_owned()),
    }
}

/// The sources of our own functions that came with one line of the program.
fn row(line: &str, out: &Path, shared: &HashMap<String, u64>) -> Vec<Source> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [kernel, dtype, functions, from, to] = fields[..] else { panic!("`{line}` has five fields") };
    let number = |text: &str| text.parse::<usize>().expect("a number of a source");
    let mut found = Vec::new();
    for number in number(from)..number(to) {
        let text = std::fs::read_to_string(out.join(format!("{number:04}.cu"))).expect("the source was written");
        let entry = entry(&text).unwrap_or_else(|| panic!("no entry in source {number}:\n{text}"));
        // The name ends in a hash of all that makes a variant.
        let function = entry.rsplit_once('_').map_or(entry, |(function, _)| function);
        if functions.split(',').any(|own| own == function) {
            found.push(Source {
                kernel: kernel.to_owned(),
                dtype: dtype.to_owned(),
                function: function.to_owned(),
                entry: entry.to_owned(),
                text: text.replace(entry, function),
                shared_bytes: shared.get(entry).copied().unwrap_or(0),
            });
        }
    }
    found
}

/// The name before the arguments of the function that is marked as an entry.
fn entry(source: &str) -> Option<&str> {
    let (_, rest) = source.split_once("__global__")?;
    let mut open = rest.match_indices('(');
    // Attributes such as `__launch_bounds__(256)` come first.
    open.find_map(|(at, _)| {
        let name = rest[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (!name.is_empty() && !name.starts_with("__")).then_some(name)
    })
}

/// Function to the most shared memory that it was launched with.
fn shared_bytes(launches: &str) -> HashMap<String, u64> {
    let mut most = HashMap::new();
    for line in launches.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(bytes)) = (fields.next(), fields.nth(1).and_then(|bytes| bytes.parse::<u64>().ok()))
        else {
            panic!("`{line}` is no launch");
        };
        let known = most.entry(name.to_owned()).or_insert(0);
        *known = bytes.max(*known);
    }
    most
}

/// Cargo builds the library for this test, beside it.
fn hollow_library() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.parent().expect("it lies in a folder");
    let name = format!("{}vw2_hollow_cuda{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = folder.join(&name);
    assert!(library.is_file(), "{} is not there", library.display());
    library
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vw2-cuda-{}-{name}", std::process::id()))
}
