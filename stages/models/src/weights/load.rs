//! Strict loading: every name is found, with its shape, and nothing is left over; or one error says all that is wrong.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;

use burn::module::Param;
use burn::tensor::Tensor;

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

/// How the weights of linear maps are held on the device. All else is f32: it is small, and is used as it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    /// Half the memory. A layer widens its weight when it is used, one layer at a time; arithmetic stays f32.
    Bf16,
}

/// Fills `model` in f32 from the names below `prefix` (see [`Weights::prefix_of`]). All parameters are replaced, on the
/// devices where they lie, one tensor at a time; the file's own types do not matter.
///
/// # Errors
/// [`Error::Mismatch`] with everything that differs: then nothing is read, and the model is as before. Or a tensor cannot
/// be read: then the model is half filled and must be dropped.
pub fn load(model: &mut impl Named, weights: &Weights, prefix: &str) -> Result<()> {
    load_as(model, weights, prefix, Precision::F32)
}

/// As [`load`], with a choice of how weights are held.
///
/// # Errors
/// As [`load`].
pub fn load_as(model: &mut impl Named, weights: &Weights, prefix: &str, precision: Precision) -> Result<()> {
    load_among(model, weights, prefix, precision, |_| true)
}

/// As [`load_as`], where other models may have names below the same prefix: only names for which `ours` holds must all be
/// asked for. It sees them without the prefix.
///
/// # Errors
/// As [`load`].
pub fn load_among(
    model: &mut impl Named,
    weights: &Weights,
    prefix: &str,
    precision: Precision,
    ours: impl Fn(&str) -> bool,
) -> Result<()> {
    let mismatch = compare_among(model, weights, prefix, ours);
    if !mismatch.is_empty() {
        return Err(Error::Mismatch(Box::new(mismatch)));
    }
    let mut filler = Filler { weights, prefix, precision, failed: None };
    model.walk(&mut Names::new(&mut filler));
    filler.failed.map_or(Ok(()), Err)
}

/// All differences between what `model` asks for and the names below `prefix`. Reads no tensor, initialises nothing.
pub fn compare(model: &mut impl Named, weights: &Weights, prefix: &str) -> Mismatch {
    compare_among(model, weights, prefix, |_| true)
}

/// As [`compare`], where other models may have names below the same prefix (see [`load_among`]).
pub fn compare_among(model: &mut impl Named, weights: &Weights, prefix: &str, ours: impl Fn(&str) -> bool) -> Mismatch {
    let mut comparer = Comparer {
        weights,
        asked: BTreeSet::new(),
        report: Mismatch {
            path: weights.path().to_owned(),
            prefix: prefix.to_owned(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            misshapen: Vec::new(),
            mistyped: Vec::new(),
        },
    };
    model.walk(&mut Names::new(&mut comparer));
    let Comparer { asked, mut report, .. } = comparer;
    let below = weights.names().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
    let left_over = below.filter(|(name, rest)| !asked.contains(*name) && !ignored(rest) && ours(rest));
    report.unexpected = left_over.map(|(name, _)| name.to_owned()).collect();
    report
}

/// Whether a name below the prefix may be left over: a bookkeeping buffer, or a part of the dLDM that a combined
/// checkpoint carries along, unless that dLDM is what is asked for.
fn ignored(name: &str) -> bool {
    IGNORED.contains(&name.rsplit('.').next().unwrap_or(name)) || name.split('.').any(|part| part == "ldm_net")
}

struct Comparer<'a> {
    weights: &'a Weights,
    asked: BTreeSet<String>,
    report: Mismatch,
}

impl Visitor for Comparer<'_> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        let name = format!("{}{name}", self.report.prefix);
        let wanted = param.lazy_shape().to_vec();
        match (self.weights.shape(&name), self.weights.dtype(&name)) {
            (Some(found), _) if found != wanted => {
                self.report.misshapen.push((name.clone(), wanted, found.to_vec()));
            }
            (_, Some(dtype)) if !dtype.is_float() => self.report.mistyped.push((name.clone(), dtype)),
            (Some(_), Some(_)) => {}
            _ => self.report.missing.push((name.clone(), wanted)),
        }
        self.asked.insert(name);
    }

    fn note(&mut self, name: &str, _: &super::Note) {
        self.asked.insert(format!("{}{name}", self.report.prefix));
    }
}

struct Filler<'a> {
    weights: &'a Weights,
    prefix: &'a str,
    precision: Precision,
    failed: Option<Error>,
}

impl Filler<'_> {
    /// Puts the stored values into a parameter; its identity, device and gradient setting stay.
    fn fill<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>, precision: Precision) {
        if self.failed.is_some() {
            return;
        }
        match self.weights.tensor_as(&format!("{}{name}", self.prefix), &param.lazy_device(), precision) {
            Ok(value) => *param = param.clone().transform_for_load(value, param.id),
            Err(error) => self.failed = Some(error),
        }
    }
}

impl Visitor for Filler<'_> {
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        self.fill(name, param, Precision::F32);
    }

    fn matrix(&mut self, name: &str, param: &mut Param<Tensor<2>>) {
        self.fill(name, param, self.precision);
    }
}

impl Mismatch {
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many names differ.
    pub fn count(&self) -> usize {
        let Mismatch { missing, unexpected, misshapen, mistyped, .. } = self;
        missing.len() + unexpected.len() + misshapen.len() + mistyped.len()
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
