//! `vw2-pipe show WHAT`; here `show weights FILE`: what a weights file holds, and which model it fits. Reads no tensor.

use std::collections::BTreeMap;
use std::process::ExitCode;

use miette::miette;
use serde_json::{Value, json};
use vw2_models::weights::{self, Dtype, Fit, Mismatch, Origin, Verdict, Weights};

use crate::cli::{ShowArgs, ShowCommand, ShowWeightsArgs};
use crate::commands::lineage;
use crate::numbered::{self, Run};
use crate::text;

pub(crate) fn show(args: &ShowArgs) -> miette::Result<ExitCode> {
    match &args.what {
        ShowCommand::Clip(args) => lineage::show_clip(&args.row),
        ShowCommand::Code(args) => lineage::show_code(&args.row),
        ShowCommand::Weights(args) => show_weights(args),
    }
}

fn show_weights(args: &ShowWeightsArgs) -> miette::Result<ExitCode> {
    let weights = Weights::open(&args.file).map_err(|error| miette!("{error}"))?;
    let fits = weights::fits(&weights).map_err(|error| miette!("{error}"))?;
    match args.json {
        true => text::print(as_json(&weights, &fits))?,
        false => text::print(as_text(&weights, &fits, args.all))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Name, type, shape of every tensor.
fn tensors(weights: &Weights) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
    weights.names().filter_map(|name| Some((name, weights.dtype(name)?, weights.shape(name)?)))
}

/// Tensors, parameters (elements of float tensors) and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    tensors: usize,
    parameters: usize,
    size_bytes: usize,
}

impl Total {
    fn add(&mut self, dtype: Dtype, shape: &[usize]) {
        let elements = shape.iter().product::<usize>();
        self.tensors += 1;
        self.parameters += if dtype.is_float() { elements } else { 0 };
        self.size_bytes += elements * dtype.size_bytes();
    }

    fn json(&self) -> Value {
        json!({"tensors": self.tensors, "parameters": self.parameters, "size_bytes": self.size_bytes})
    }
}

fn totals(weights: &Weights) -> (Total, BTreeMap<Dtype, Total>) {
    let (mut all, mut by_type) = (Total::default(), BTreeMap::<Dtype, Total>::new());
    for (_, dtype, shape) in tensors(weights) {
        all.add(dtype, shape);
        by_type.entry(dtype).or_default().add(dtype, shape);
    }
    (all, by_type)
}

fn as_text(weights: &Weights, fits: &[Fit], every_tensor: bool) -> String {
    let (all, by_type) = totals(weights);
    let mut text = format!("{}\n\n{}\n\n", weights.path().display(), names(weights, every_tensor));
    let line = |what: &str, total: &Total| {
        [
            what.to_owned(),
            total.tensors.to_string(),
            text::grouped(total.parameters),
            text::size(total.size_bytes as u64),
        ]
    };
    let head = ["type", "tensors", "parameters", "size"].map(str::to_owned);
    let types = by_type.iter().map(|(dtype, total)| line(&format!("{dtype:?}"), total));
    let lines: Vec<_> = std::iter::once(head).chain(types).chain([line("all", &all)]).collect();
    text += &format!("{}\n\n", text::table(&lines));
    for (key, value) in weights.metadata() {
        text += &format!("metadata {key}: {value}\n\n");
    }
    if fits.is_empty() {
        text += "names of no model that is known here\n";
    }
    for fit in fits {
        text += &format!("{}\n", told(fit));
    }
    text.trim_end().to_owned()
}

fn names(weights: &Weights, every_tensor: bool) -> String {
    let mut alike: BTreeMap<(Dtype, &[usize]), Vec<&str>> = BTreeMap::new();
    for (name, dtype, shape) in tensors(weights) {
        alike.entry((dtype, shape)).or_default().push(name);
    }
    let mut lines: Vec<(Run, [String; 2])> = Vec::new();
    for ((dtype, shape), names) in alike {
        let runs = match every_tensor {
            true => names.into_iter().flat_map(|name| numbered::collapse([name])).collect(),
            false => numbered::collapse(names),
        };
        lines.extend(runs.into_iter().map(|run| (run, [format!("{shape:?}"), format!("{dtype:?}")])));
    }
    lines.sort_by(|(a, _), (b, _)| a.first.cmp(&b.first));
    let cells = lines.into_iter().map(|(Run { pattern, count, .. }, [shape, dtype])| {
        [pattern, shape, dtype, if count == 1 { String::new() } else { format!("x{count}") }]
    });
    text::table(&cells.collect::<Vec<_>>())
}

/// One sentence.
fn told(fit: &Fit) -> String {
    let place = match fit.prefix.as_str() {
        "" => "names without prefix".to_owned(),
        prefix => format!("names below `{prefix}`"),
    };
    let (model, preset) = match &fit.origin {
        Origin::Metadata => (fit.model, "in the configuration of its metadata".to_owned()),
        Origin::Preset(preset) => (fit.model, format!("`{preset}`")),
    };
    match &fit.verdict {
        Verdict::Fits => format!("{place} fit the {model} {preset}"),
        Verdict::Differs(mismatch) => {
            format!("{place} are like the {model}, but not {preset}: {}", differences(mismatch))
        }
        Verdict::Refused(error) => format!("{place} are like the {model}, but its {error}"),
    }
}

/// How many of each kind, with up to three names.
fn differences(mismatch: &Mismatch) -> String {
    let Mismatch { missing, unexpected, misshapen, mistyped, .. } = mismatch;
    let kinds = [
        some(missing, "missing", |(name, _)| name.clone()),
        some(unexpected, "unexpected", String::clone),
        some(misshapen, "of another shape", |(name, wanted, found)| {
            format!("{name}: wanted {wanted:?}, found {found:?}")
        }),
        some(mistyped, "of another type", |(name, found)| format!("{name}: {found:?}")),
    ];
    kinds.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn some<T>(items: &[T], what: &str, show: impl Fn(&T) -> String) -> Option<String> {
    const LISTED: usize = 3;
    let listed: Vec<String> = items.iter().take(LISTED).map(show).collect();
    let more = if items.len() > LISTED { "; …" } else { "" };
    (!items.is_empty()).then(|| format!("{} {what} ({}{more})", items.len(), listed.join("; ")))
}

fn as_json(weights: &Weights, fits: &[Fit]) -> Value {
    let (all, by_type) = totals(weights);
    let tensors: Vec<Value> = tensors(weights)
        .map(|(name, dtype, shape)| json!({"name": name, "dtype": format!("{dtype:?}"), "shape": shape}))
        .collect();
    let by_type: BTreeMap<String, Value> =
        by_type.iter().map(|(dtype, total)| (format!("{dtype:?}"), total.json())).collect();
    json!({
        "path": weights.path(),
        "totals": all.json(),
        "types": by_type,
        "metadata": weights.metadata(),
        "models": fits.iter().map(fit_json).collect::<Vec<_>>(),
        "tensors": tensors,
    })
}

fn fit_json(fit: &Fit) -> Value {
    let preset = match &fit.origin {
        Origin::Metadata => None,
        Origin::Preset(preset) => Some(preset),
    };
    let config: Value = serde_json::from_str(&fit.config).unwrap_or_default();
    let mut all = json!({
        "model": fit.model, "prefix": fit.prefix, "preset": preset, "config": config, "fits": fit.fits(),
    });
    match &fit.verdict {
        Verdict::Fits => {}
        Verdict::Refused(error) => all["refused"] = json!(error.to_string()),
        Verdict::Differs(mismatch) => {
            all["missing"] =
                mismatch.missing.iter().map(|(name, shape)| json!({"name": name, "wanted": shape})).collect();
            all["unexpected"] = json!(mismatch.unexpected);
            let shapes = mismatch.misshapen.iter();
            all["of_another_shape"] =
                shapes.map(|(name, wanted, found)| json!({"name": name, "wanted": wanted, "found": found})).collect();
            let types = mismatch.mistyped.iter();
            all["of_another_type"] =
                types.map(|(name, found)| json!({"name": name, "found": format!("{found:?}")})).collect();
        }
    }
    all
}
