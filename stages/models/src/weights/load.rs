//! Strict loading: every name is found, with its shape, and nothing is left over; or one error says all that is wrong.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};

use super::{Named, Names, Visitor, Weights};
use crate::error::{Error, Result};

/// Buffers that a checkpoint may hold without our asking: they keep books or can be derived (spec 3.1).
const IGNORED: &[&str] = &[
    "wavelets",
    "_arange",
    "patch_size_buffer",
    "_levels",
    "_basis",
    "implicit_codebook",
    "inv_freq",
    "_extra_state",
    "num_batches_tracked",
    // The DiT's counters and position tables (spec 4).
    "accum_video_sample_counter",
    "accum_image_sample_counter",
    "accum_iteration",
    "accum_train_in_hours",
    "seq",
    "dim_spatial_range",
    "dim_temporal_range",
];

/// How many names of each kind a message lists.
const LISTED: usize = 8;

/// All differences between what a model asks for and what a file holds.
#[derive(Debug)]
pub struct Mismatch {
    pub path: PathBuf,
    pub prefix: String,
    /// Asked for, but not in the file: name, shape wanted.
    pub missing: Vec<(String, Vec<usize>)>,
    /// In the file below the prefix, but not asked for.
    pub unexpected: Vec<String>,
    /// Name, shape wanted, shape found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Integers where floats are wanted: name, type found.
    pub mistyped: Vec<(String, super::Dtype)>,
}

/// Fills `model` from the names below `prefix` (see [`Weights::prefix_of`]). Where names, shapes and types agree, all
/// parameters are replaced, on the devices where they lie; else the model is left half filled and must be dropped.
///
/// # Errors
/// [`Error::Mismatch`] with everything that differs, or a tensor cannot be read.
pub fn load(model: &mut impl Named, weights: &Weights, prefix: &str) -> Result<()> {
    load_among(model, weights, prefix, |_| true)
}

/// As [`load`], where other models may have names below the same prefix: only names for which `ours` holds must all be
/// asked for. It sees them without the prefix.
///
/// # Errors
/// As [`load`].
pub fn load_among(model: &mut impl Named, weights: &Weights, prefix: &str, ours: impl Fn(&str) -> bool) -> Result<()> {
    let mut loader = Loader {
        weights,
        asked: BTreeSet::new(),
        failed: None,
        report: Mismatch {
            path: weights.path().to_owned(),
            prefix: prefix.to_owned(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            misshapen: Vec::new(),
            mistyped: Vec::new(),
        },
    };
    model.walk(&mut Names::new(&mut loader));
    let Loader { asked, failed, mut report, .. } = loader;
    if let Some(error) = failed {
        return Err(error);
    }
    let ignored = |name: &str| IGNORED.contains(&name.rsplit('.').next().unwrap_or(name));
    let below = weights.names().filter(|name| name.strip_prefix(prefix).is_some_and(&ours));
    report.unexpected = below.filter(|name| !asked.contains(*name) && !ignored(name)).map(str::to_owned).collect();
    if report.is_empty() { Ok(()) } else { Err(Error::Mismatch(Box::new(report))) }
}

struct Loader<'a> {
    weights: &'a Weights,
    asked: BTreeSet<String>,
    failed: Option<Error>,
    report: Mismatch,
}

impl Visitor for Loader<'_> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        let name = format!("{}{name}", self.report.prefix);
        let wanted = param.lazy_shape().to_vec();
        match (self.weights.shape(&name), self.weights.dtype(&name)) {
            (Some(found), _) if found != wanted => {
                self.report.misshapen.push((name.clone(), wanted, found.to_vec()));
            }
            (_, Some(dtype)) if !dtype.is_float() => self.report.mistyped.push((name.clone(), dtype)),
            (Some(_), Some(_)) if self.failed.is_none() => match self.weights.f32s(&name) {
                Ok(values) => set(param, TensorData::new(values, wanted)),
                Err(error) => self.failed = Some(error),
            },
            (Some(_), Some(_)) => {}
            _ => self.report.missing.push((name.clone(), wanted)),
        }
        self.asked.insert(name);
    }

    fn note(&mut self, name: &str, _: &super::Note) {
        self.asked.insert(format!("{}{name}", self.report.prefix));
    }
}

/// Puts other values into a parameter; its identity, device and gradient setting stay.
fn set<const D: usize>(param: &mut Param<Tensor<D>>, values: TensorData) {
    let value = Tensor::from_data(values, &param.lazy_device());
    *param = param.clone().transform_for_load(value, param.id);
}

impl Mismatch {
    pub fn is_empty(&self) -> bool {
        let Mismatch { missing, unexpected, misshapen, mistyped, .. } = self;
        missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() && mistyped.is_empty()
    }
}

impl std::error::Error for Mismatch {}

impl Display for Mismatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "weights {} do not fit the model", self.path.display())?;
        if !self.prefix.is_empty() {
            write!(f, " (names below `{}`)", self.prefix)?;
        }
        list(f, "missing", &self.missing, |(name, shape)| format!("{name} {shape:?}"))?;
        list(f, "unexpected", &self.unexpected, String::clone)?;
        list(f, "of another shape", &self.misshapen, |(name, wanted, found)| {
            format!("{name}: wanted {wanted:?}, found {found:?}")
        })?;
        list(f, "of another type", &self.mistyped, |(name, found)| format!("{name}: wanted floats, found {found:?}"))?;
        write!(f, "\nuse the configuration that the weights were made with, or other weights")
    }
}

fn list<T>(f: &mut Formatter<'_>, what: &str, items: &[T], show: impl Fn(&T) -> String) -> std::fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, "\n{} {what}:", items.len())?;
    for item in items.iter().take(LISTED) {
        write!(f, "\n  {}", show(item))?;
    }
    if items.len() > LISTED {
        write!(f, "\n  and {} more", items.len() - LISTED)?;
    }
    Ok(())
}
