//! Checkpoints that are damaged or meant to hurt: each ends in an error that tells why, soon and in little memory.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;
use zip::CompressionMethod::{self, Deflated, Stored};
use zip::write::{SimpleFileOptions, ZipWriter};

use super::Weights;
use crate::error::Error;

/// Bytes as parts that repeat, so that a test holds little of them in memory.
struct Parts(Vec<(Vec<u8>, usize)>);

impl From<Vec<u8>> for Parts {
    fn from(bytes: Vec<u8>) -> Parts {
        Parts(vec![(bytes, 1)])
    }
}

/// An archive of a pickle and the storage `0`.
fn write(path: &Path, pickle: &Parts, storage: &Parts, method: CompressionMethod) {
    let mut archive = ZipWriter::new(File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, Parts(parts)) in [("model/data.pkl", pickle), ("model/data/0", storage)] {
        archive.start_file(name, options).unwrap();
        for (part, count) in parts {
            for _ in 0..*count {
                archive.write_all(part).unwrap();
            }
        }
    }
    archive.finish().unwrap();
}

/// `torch._utils._rebuild_tensor_v2` of f32s.
fn tensor_in(key: &str, elements: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    let int = |value: &u32| [b"J", &value.to_le_bytes()[..]].concat();
    let tuple = |values: &[u32]| [b"(", &values.iter().flat_map(int).collect::<Vec<_>>()[..], b"t"].concat();
    let storage = [b"(Vstorage\nctorch\nFloatStorage\nV", key.as_bytes(), b"\nVcpu\n", &int(&elements), b"tQ"].concat();
    let head = b"ctorch._utils\n_rebuild_tensor_v2\n(";
    [head, &storage[..], b"K\0", &tuple(shape), &tuple(strides), b"\x89ccollections\nOrderedDict\n)RtR"].concat()
}

fn tensor(elements: u32, shape: &[u32], strides: &[u32]) -> Vec<u8> {
    tensor_in("0", elements, shape, strides)
}

fn dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}Vw\n", value, b"s."].concat()
}

/// Opening, or reading `w`, says `reason`, soon; alone in a process, within 100 MB.
fn check(name: &str, path: &Path, reason: &str) {
    let start = Instant::now();
    let opened = Weights::open(path).and_then(|weights| weights.f32s("w"));
    let Err(error @ Error::Format { .. }) = opened else { panic!("{name}: {opened:?}") };
    let error = error.to_string();
    assert!(error.contains(reason) && error.len() < 1000, "{name}: wanted `{reason}`: {error}");
    // Milliseconds, but for a busy machine; what is not bounded would take minutes.
    assert!(start.elapsed().as_secs_f64() < 10.0, "{name}: {:?}", start.elapsed());
    if std::env::var_os(ALONE).is_some() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak_mib = peak.map_or(0, |kib| kib.parse::<u64>().unwrap() / 1024);
        assert!(peak_mib < 95, "{name}: {peak_mib} MiB");
    }
}

const DEPTH: &str = "containers within each other";

/// Set for the process that measures memory.
const ALONE: &str = "VW2_HOSTILE_ALONE";

/// Other tests of this program take memory of their own, so these have to run in a process of their own.
#[test]
fn little_memory_is_taken() {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["--test-threads=1", "weights::hostile::in_files"]).env(ALONE, "1");
    let output = tests.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 passed"), "{said}");
}

#[test]
fn in_files_of_today_each_danger_is_told() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pth");
    let floats = Parts::from(vec![0u8; 16]);
    let good = dict(&tensor(4, &[2, 2], &[2, 1]));
    write(&path, &good.clone().into(), &floats, Stored);
    assert_eq!(Weights::open(&path).unwrap().f32s("w").unwrap(), [0.0; 4]);

    let repeat = |before: &[u8], part: &[u8], count: usize, after: &[u8]| {
        Parts(vec![(before.to_vec(), 1), (part.to_vec(), count), (after.to_vec(), 1)])
    };
    let max = i32::MAX as u32;
    for (name, pickle, reason) in [
        ("a call", b"\x80\x02cos\nsystem\nVtouch owned\n\x85R.".to_vec().into(), "`os.system` is asked for"),
        ("a call beside tensors", dict(b"c__builtin__\neval\n(V1\ntR").into(), "`__builtin__.eval` is asked for"),
        ("a length", dict(b"X\xFF\xFF\xFF\x7F").into(), "2147483647 more bytes are wanted"),
        ("8 bytes of length", dict(b"\x8e\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF").into(), "more bytes are wanted"),
        ("depth", repeat(b"\x80\x02", &[b']'; 1000], 200, &[&[b'a'; 199_999][..], b"."].concat()), DEPTH),
        ("open marks", repeat(b"\x80\x02", &[b'('; 1000], 1000, b"."), DEPTH),
        ("2^40 values", repeat(b"\x80\x02)", b"2\x86", 40, b"."), "again and again"),
        ("many values", repeat(b"\x80\x02](", &[b'N'; 1000], 20_000, b"e."), "values on the stack"),
        (
            "many copies",
            repeat(&[b"\x80\x02V", &[b'x'; 1 << 20][..], b"\n"].concat(), &[b'2'; 1000], 1000, b"."),
            "stack",
        ),
        ("a huge tensor", dict(&tensor(4, &[max, max], &[max, 1])).into(), "does not lie in storage `0` of 4 elements"),
        ("a huge storage", dict(&tensor(max, &[max], &[1])).into(), "2147483647 elements do not lie in its 16 bytes"),
        ("a repeated element", dict(&tensor(4, &[max], &[0])).into(), "does not lie in storage"),
        ("a short storage", dict(&tensor(5, &[5], &[1])).into(), "storage `0`: 5 elements do not lie in its 16 bytes"),
        ("a tensor beyond its storage", dict(&tensor(4, &[2, 3], &[3, 1])).into(), "does not lie in storage"),
        ("a missing storage", dict(&tensor_in("7", 4, &[4], &[1])).into(), "storage `7`: it is not in the archive"),
        ("a cut pickle", good[..good.len() - 1].to_vec().into(), "more bytes are wanted"),
        ("a long pickle", [&good[..], b"N"].concat().into(), "1 bytes follow"),
        ("a pickle beyond the limit", repeat(b"", &[b'N'; 1 << 10], 1 << 15, b"N"), "more than 33554432 bytes"),
    ] {
        for method in [Stored, Deflated] {
            write(&path, &pickle, &floats, method);
            check(name, &path, reason);
        }
    }
    // A file of kilobytes, 64 MiB of zeros.
    let zeros = Parts(vec![(vec![0; 1 << 16], 1 << 10)]);
    write(&path, &dict(&tensor(1 << 24, &[1 << 24], &[1])).into(), &zeros, Deflated);
    check("a packed storage", &path, "16777216 elements do not lie in its");
}

#[test]
fn in_files_of_other_kinds_each_danger_is_told() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pth");
    let legacy = |rest: &[u8]| [b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", rest].concat();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (name, bytes, reason) in [
        ("a plain pickle", b"\x80\x02}.".to_vec(), "neither a ZIP archive nor torch's number"),
        ("a plain pickle that calls", b"cos\nsystem\n(Vtrue\ntR.".to_vec(), "neither a ZIP archive"),
        ("a tar file", tar, "neither a ZIP archive"),
        ("half a magic number", legacy(b"")[..12].to_vec(), "neither a ZIP archive"),
        ("an old file that calls", legacy(b"}.cos\nsystem\n."), "`os.system` is asked for"),
        ("an old file that ends", legacy(b"}."), "the pickle of its values, from byte"),
        (
            "an old file of nothing",
            legacy(&[&b"}Vlittle_endian\n\x88s."[..], &dict(&tensor(4, &[4], &[1]))[..], b"]V0\na."].concat()),
            "beyond the end",
        ),
        (
            "an old file of huge tensors",
            legacy(&[b"}.", &dict(&tensor(1 << 30, &[1 << 30], &[1]))[..], b"]."].concat()),
            "1073741824 elements do not lie in the file",
        ),
        ("an empty archive", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "must hold one data.pkl"),
        ("half an archive", b"PK\x03\x04".to_vec(), "neither a safetensors file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        check(name, &path, reason);
    }
}

#[test]
fn an_old_file_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vgg.pth");
    let values = [1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    let head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}Vlittle_endian\n\x88s.";
    let pickle = dict(&tensor(4, &[2, 2], &[1, 2]));
    let file = [head, &pickle[..], b"\x80\x02]V0\na.", &4u64.to_le_bytes(), &values].concat();
    std::fs::write(&path, file).unwrap();
    assert_eq!(Weights::open(&path).unwrap().f32s("w").unwrap(), [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn thousands_of_tensors_are_no_danger() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pth");
    let kernel = tensor(1, &[1; 5], &[1; 5]);
    let entries =
        (0..8000).flat_map(|index| [format!("Vblocks.{index}.weight\n").into_bytes(), kernel.clone()].concat());
    let pickle = [b"\x80\x02}(".to_vec(), entries.collect(), b"u.".to_vec()].concat();
    write(&path, &pickle.into(), &vec![0; 4].into(), Stored);
    assert_eq!(Weights::open(&path).unwrap().names().count(), 8000);
}

#[test]
fn no_cut_and_no_changed_byte_makes_a_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pth");
    write(&path, &dict(&tensor(4, &[2, 2], &[2, 1])).into(), &vec![1; 16].into(), Stored);
    let good = std::fs::read(&path).unwrap();
    let try_out = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Weights::open(&path).and_then(|weights| weights.f32s("w")).is_ok()
    };
    for at in 0..good.len() {
        assert!(!try_out(&good[..at]), "cut to {at}");
        for mask in [0x01, 0x80, 0xFF] {
            let mut changed = good.clone();
            changed[at] ^= mask;
            try_out(&changed);
        }
    }
}
