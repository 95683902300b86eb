//! Where golden files lie, and how a run is compared with them: error = max |a - b| / max |b| of each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use vw2_models::weights::Weights;

/// `VW2_GOLDEN`, from here or from the workspace's root; without it the cases in this crate.
pub(crate) fn folder() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("VW2_GOLDEN") {
        None => here.join("tests/data/golden"),
        Some(named) => {
            let named = PathBuf::from(named);
            if named.is_dir() { named } else { here.join("../..").join(named) }
        }
    }
}

/// Names of the cases that begin with `prefix`: file names up to the first dot. Where there is none, a line says so; that is
/// a failure if `VW2_REQUIRE` names `golden`.
pub(crate) fn cases(prefix: &str) -> Vec<String> {
    let folder = folder();
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("golden folder {}: {e}", folder.display()));
    let names = files.filter_map(|file| file.unwrap().file_name().into_string().ok());
    let cases: BTreeSet<String> = names
        .filter(|name| name.starts_with(prefix) && name.ends_with(".safetensors"))
        .map(|name| name.split('.').next().unwrap_or_default().to_owned())
        .collect();
    if cases.is_empty() {
        let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
        let line = format!("skipped: no case `{prefix}*` in {}; VW2_GOLDEN names another folder", folder.display());
        assert!(!required.split(',').any(|word| word.trim() == "golden"), "{line}");
        eprintln!("{line}");
    }
    cases.into_iter().collect()
}

/// The file `part` of a case: `losses`, or `ar_nobias` and `io`.
pub(crate) fn open(case: &str, part: &str) -> Weights {
    let dot = if part.is_empty() { "" } else { "." };
    Weights::open(folder().join(format!("{case}{dot}{part}.safetensors"))).unwrap()
}

/// What was compared in one case, and how well it agrees.
pub(crate) struct Report {
    case: String,
    compared: usize,
    names: BTreeSet<String>,
    /// Largest error over its tolerance, with its name.
    worst: (f64, String),
    faults: Vec<String>,
}

impl Report {
    pub(crate) fn new(case: &str) -> Report {
        Report {
            case: case.to_owned(),
            compared: 0,
            names: BTreeSet::new(),
            worst: (0.0, String::new()),
            faults: Vec::new(),
        }
    }

    /// Compares all elements with the recorded tensor `name`.
    pub(crate) fn tensor<const D: usize>(&mut self, golden: &Weights, name: &str, ours: Tensor<D>, tolerance: f64) {
        self.data(golden, name, &ours.into_data(), tolerance);
    }

    /// As [`Report::tensor`], for data on the host.
    pub(crate) fn data(&mut self, golden: &Weights, name: &str, ours: &TensorData, tolerance: f64) {
        let shape = golden.shape(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.case));
        if ours.shape()[..] != *shape {
            self.faults.push(format!("{name}: shape {:?}, recorded {shape:?}", ours.shape()));
            return;
        }
        let ours: Vec<f32> = ours.clone().convert::<f32>().try_into_vec().unwrap();
        self.values(golden, name, ours.into_iter().map(f64::from), tolerance);
    }

    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// As [`Report::tensor`], for flat values.
    pub(crate) fn values(&mut self, golden: &Weights, name: &str, ours: impl IntoIterator<Item = f64>, tolerance: f64) {
        let recorded = golden.f64s(name).unwrap();
        self.pairs(name, ours.into_iter().collect(), recorded, tolerance);
    }

    pub(crate) fn pairs(&mut self, name: &str, ours: Vec<f64>, recorded: Vec<f64>, tolerance: f64) {
        self.compared += 1;
        self.names.insert(name.to_owned());
        if ours.len() != recorded.len() {
            self.faults.push(format!("{name}: {} values, recorded {}", ours.len(), recorded.len()));
            return;
        }
        let scale = recorded.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
        // A NaN must not pass for a small difference.
        let difference = ours.iter().zip(&recorded).fold(0.0f64, |max, (a, b)| {
            let difference = (a - b).abs();
            if difference.is_nan() { f64::INFINITY } else { max.max(difference) }
        });
        let error = difference / scale;
        if error > tolerance {
            self.faults.push(format!("{name}: error {error:.1e} above {tolerance:.0e}"));
        }
        if error / tolerance > self.worst.0 {
            self.worst = (error / tolerance, format!("{name} {error:.1e} of {tolerance:.0e}"));
        }
    }

    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, ours: T, recorded: T) {
        self.compared += 1;
        self.names.insert(name.to_owned());
        if ours != recorded {
            self.faults.push(format!("{name}: {ours:?}, recorded {recorded:?}"));
        }
    }

    /// Every recorded tensor of the file but its `inputs` must have been compared since the last file.
    pub(crate) fn nothing_left_out(&mut self, golden: &Weights, inputs: impl Fn(&str) -> bool) {
        let compared = std::mem::take(&mut self.names);
        for name in golden.names().filter(|name| !compared.contains(*name) && !inputs(name)) {
            self.faults.push(format!("{name}: recorded, but not compared"));
        }
    }

    /// Prints the case's row and fails if anything differed.
    pub(crate) fn finish(self) {
        eprintln!("{:14} {:4} tensors, worst {}", self.case, self.compared, self.worst.1);
        assert!(self.faults.is_empty(), "{}:\n  {}", self.case, self.faults.join("\n  "));
    }
}

/// A recorded tensor of integers, as i64.
pub(crate) fn integers<const D: usize>(golden: &Weights, name: &str) -> TensorData {
    let shape: [usize; D] = golden.shape(name).unwrap().try_into().unwrap();
    TensorData::new(golden.i64s(name).unwrap(), shape)
}

/// The files of a case whose part begins so, sorted: `weights_dec`, `weights_enc`.
pub(crate) fn parts(case: &str, part: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap();
    let names = files.filter_map(|file| file.unwrap().file_name().into_string().ok());
    let mut parts: Vec<String> = names
        .filter_map(|name| Some(name.strip_prefix(case)?.strip_prefix('.')?.strip_suffix(".safetensors")?.to_owned()))
        .filter(|name| name.starts_with(part))
        .collect();
    parts.sort();
    parts
}

/// All `weights*` files of a case, as one.
pub(crate) fn weights(case: &str) -> Weights {
    let files: Vec<PathBuf> =
        parts(case, "weights").iter().map(|part| folder().join(format!("{case}.{part}.safetensors"))).collect();
    Weights::open_parts(&files).unwrap()
}

/// A configuration from metadata in Python's words: `True`, `[1, 2]`, `haar`. What the configuration lacks is left out.
pub(crate) fn config<C: serde::de::DeserializeOwned>(golden: &Weights) -> C {
    let value = |text: &str| {
        let json = text.replace("True", "true").replace("False", "false").replace("None", "null");
        serde_json::from_str(&json).unwrap_or_else(|_| serde_json::Value::from(text))
    };
    let entries = golden.metadata().iter().map(|(key, text)| (key.clone(), value(text)));
    serde_json::from_value(entries.collect::<serde_json::Value>()).unwrap()
}

/// Compares what a tap shows with the recorded `<prefix>mid.*` of the same module and call. Modules that were not
/// recorded pass; recorded ones that no tap shows are faults.
pub(crate) struct Mids<'a> {
    golden: &'a Weights,
    prefix: String,
    calls: BTreeMap<String, usize>,
    seen: Vec<(String, TensorData)>,
}

impl<'a> Mids<'a> {
    pub(crate) fn new(golden: &'a Weights, prefix: &str) -> Mids<'a> {
        Mids { golden, prefix: format!("{prefix}mid."), calls: BTreeMap::new(), seen: Vec::new() }
    }

    pub(crate) fn see(&mut self, name: &str, tensor: TensorData) {
        let call = self.calls.entry(name.to_owned()).or_default();
        let names = [format!("{}{name}.call{call}", self.prefix), format!("{}{name}", self.prefix)];
        *call += 1;
        if let Some(name) = names.into_iter().find(|name| self.golden.contains(name)) {
            self.seen.push((name, tensor));
        }
    }

    /// `tolerance` of each recorded name.
    pub(crate) fn compare(self, report: &mut Report, tolerance: impl Fn(&str) -> f64) {
        for name in self.golden.names().filter(|name| name.starts_with(&self.prefix)) {
            match self.seen.iter().find(|(seen, _)| seen == name) {
                Some((_, ours)) => report.data(self.golden, name, ours, tolerance(name)),
                None => report.fault(format!("{name}: recorded, but no tap shows it")),
            }
        }
    }
}
