//! What runs on a CUDA device, proven on a machine without one: every kernel of the table is asked for on a hollow driver,
//! and its CUDA C++ is kept as a snapshot and compiled by NVRTC for the architectures that count.
//!
//! NVRTC is found below the folder `VW2_NVRTC` (`nvidia/cu13` of the PyPI packages nvidia-cuda-nvrtc, -runtime, -cccl and
//! -crt of 13.0); without it, nothing is compiled, and `VW2_REQUIRE=nvrtc` makes that a failure.

mod nvrtc;
mod recorded;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use vw2_kernels::{KERNELS, available};

use nvrtc::Nvrtc;
use recorded::{ARCHITECTURES, Source, sources};
use table::Line;

/// Rows without a cube kernel, and why.
const WITHOUT: &[(&str, &str)] = &[];

/// Functions of which registers spill into memory, and why that is right.
const SPILLS: &[(&str, &str)] = &[
    (
        "backward_keys_on_tensor_cores",
        "gathers two gradients of 16 rows on the tensor cores, which takes all registers; 72 bytes of a thread go to memory",
    ),
    (
        "backward_queries_on_tensor_cores",
        "the assembler stops at 128 registers, so that more blocks fit, and lays 32 bytes of a thread into memory for it",
    ),
    ("forward_on_tensor_cores", "as above, 24 bytes of a thread"),
    ("choose", "runs once a token, and waits for barriers more than for memory; 84 bytes of a thread go there at most"),
];

#[test]
fn the_cuda_source_of_every_kernel() {
    let sources = sources(ARCHITECTURES[1]);
    for kernel in KERNELS {
        let mut shown: BTreeMap<&str, (&Source, usize)> = BTreeMap::new();
        for source in sources.iter().filter(|source| source.kernel == kernel.name) {
            shown.entry(&source.function).or_insert((source, 0)).1 += 1;
        }
        let excused = WITHOUT.iter().any(|(name, _)| *name == kernel.name);
        assert_eq!(shown.is_empty(), excused, "{}: does it launch a kernel of ours on a CUDA device?", kernel.name);
        let text: Vec<String> = shown
            .into_iter()
            .map(|(function, (first, count))| {
                let text = arrays_in_order_of_use(first.text.trim_end());
                format!("// {function}: the first of {count} variants, {}\n{text}", first.dtype)
            })
            .collect();
        insta::assert_snapshot!(kernel.name, text.join("\n\n"));
    }
}

/// CubeCL lays a kernel's arrays of shared memory out in no fixed order. Here their declarations are without the places,
/// sorted, and the arrays are numbered as they are first used.
fn arrays_in_order_of_use(source: &str) -> String {
    let array = |line: &str| -> Option<String> {
        let (declared, place) = line.split_once(" = reinterpret_cast<array<")?;
        let (name, at) = (declared.rsplit(' ').next()?.to_owned(), place.rsplit('[').next()?);
        (line.starts_with("array<") && at.ends_with("]);")).then_some(name)
    };
    let names: Vec<String> = source.lines().filter_map(array).collect();
    let (mut declared, mut rest) = (Vec::new(), Vec::new());
    for line in source.lines() {
        match array(line) {
            Some(_) => declared.push(line.rsplit_once('[').map_or(line, |(line, _)| line)),
            None => rest.push(line),
        }
    }
    let mut text = rest.join("\n");
    let word = |text: &str, name: &str| text.find(&format!("{name})")).unwrap_or(usize::MAX);
    let mut used: Vec<&String> = names.iter().collect();
    used.sort_by_key(|name| word(&text, name));
    let mut declared: Vec<String> = declared.into_iter().map(str::to_owned).collect();
    for (index, name) in used.iter().enumerate() {
        text = text.replace(&format!("{name})"), &format!("array_{index})"));
        declared.iter_mut().for_each(|line| *line = line.replace(&format!(" {name} ="), &format!(" array_{index} =")));
    }
    declared.sort();
    [declared.join("\n"), text].join("\n").trim_start().to_owned()
}

/// Barriers, shared memory, tensor cores: all but the GPU itself. A library's build needs the compiler anyway.
#[test]
fn the_cuda_source_of_every_kernel_computes_what_its_reference_does() {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    recorded::computed_on_the_host(&compiler).unwrap_or_else(|reason| panic!("{reason}"));
}

#[test]
fn every_kernel_compiles_for_ampere_and_hopper_as_the_table_says() {
    let Some(nvrtc) = Nvrtc::find() else { return };
    let mut lines: BTreeMap<(usize, String, String), Line> = BTreeMap::new();
    for (index, architecture) in ARCHITECTURES.into_iter().enumerate() {
        for source in sources(architecture) {
            let used = nvrtc
                .compile(&source.text, architecture.target)
                .unwrap_or_else(|log| panic!("{} {} for {}:\n{log}", source.kernel, source.entry, architecture.target));
            let row = KERNELS.iter().position(|kernel| kernel.name == source.kernel).expect("it came from the table");
            let key = (row, source.function.clone(), source.dtype.clone());
            lines.entry(key).or_default().add(index, source, used);
        }
    }
    let spilling: BTreeSet<&str> =
        lines.iter().filter(|(_, line)| line.spills()).map(|((_, function, _), _)| function.as_str()).collect();
    let excused: BTreeSet<&str> = SPILLS.iter().map(|(function, _)| *function).collect();
    table::check(&nvrtc.version(), &lines);
    assert_eq!(spilling, excused, "functions that spill, and those of which SPILLS gives the reason");
}

#[test]
fn a_program_with_cuda_starts_where_there_is_no_driver_and_says_so() {
    if available().iter().any(|name| name.starts_with("cuda")) {
        eprintln!("skipped: there is a driver");
        return;
    }
    let finished = Command::new(env!("CARGO_BIN_EXE_cuda-sources")).env("VW2_HOLLOW_OUT", "none").output();
    let told = String::from_utf8(finished.expect("the program starts").stderr).expect("messages are text");
    assert!(told.starts_with("device `cuda:0`: this machine shows 0 cuda devices; here are: cpu"), "{told}");
}
