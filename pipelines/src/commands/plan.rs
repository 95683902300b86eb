//! `vw2-pipe plan FILE`: what a pipeline does; with `--explain`, what a run would compute now and why. Opens no device.

use std::process::ExitCode;

use serde_json::Value;
use vw2_engine::explain::{self, Explanation, Reason, StageExplanation};
use vw2_engine::plan::Plan;
use vw2_engine::store::Store;
use vw2_engine::{Error, stage::Needs};

use crate::cli::PlanArgs;
use crate::commands::run::{devices, require_files};
use crate::{loading, text};

/// Runs that are looked through for one on this device.
const RUNS: usize = 200;

pub(crate) fn plan(args: &PlanArgs) -> miette::Result<ExitCode> {
    let mut plan = loading::plan(&args.pipeline)?;
    if args.explain {
        if let Some(store) = &args.store {
            plan.runtime.store.clone_from(store);
        }
        return explain(&plan, args);
    }
    text::print(plan.to_string().trim_end())?;
    // Talk, as another machine may have the files: the plan itself reads the same everywhere.
    for missing in loading::missing(&plan) {
        text::say(format_args!("missing: {missing}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(plan: &Plan, args: &PlanArgs) -> miette::Result<ExitCode> {
    require_files(plan)?;
    let store = match Store::open_read(&plan.runtime.store) {
        Ok(store) => Some(store),
        Err(Error::NoStore { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let options = explain::Options { limit: args.limit, numeric: numeric(plan, store.as_ref())? };
    let explanation = explain::explain(plan, store.as_ref(), &options)?;
    match args.json {
        true => text::print(explanation.to_json())?,
        false => text::print(as_text(&explanation))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// As the last run on this device noted it; where there was none, the device is asked.
fn numeric(plan: &Plan, store: Option<&Store>) -> miette::Result<String> {
    if plan.stages.iter().all(|stage| stage.needs != Needs::Device) {
        return Ok(String::new());
    }
    let runs = store.map(|store| store.runs(RUNS)).transpose()?.unwrap_or_default();
    let noted = runs.iter().find_map(|run| {
        let settings: Value = serde_json::from_str(&run.settings).ok()?;
        let numeric = settings["numeric"].as_str().filter(|numeric| !numeric.is_empty())?;
        (settings["device"].as_str() == Some(&plan.runtime.device)).then(|| numeric.to_owned())
    });
    noted.map_or_else(|| devices(plan).map(|(_, numeric)| numeric), Ok)
}

fn as_text(explanation: &Explanation) -> String {
    let stages = explanation.stages.iter();
    let lines: Vec<[String; 3]> = stages.clone().map(|stage| [stage.id.clone(), units(stage), cost(stage)]).collect();
    let table = text::table(&lines);
    let mut told = String::new();
    for (line, stage) in table.lines().zip(stages.clone()) {
        told += &format!("{line}\n");
        for (what, reasons) in [("", &stage.reasons), ("retract ", &stage.retractions)] {
            reasons.iter().for_each(|reason| told += &format!("  {what}{}\n", words(reason)));
        }
    }
    if explanation.is_nothing() {
        return told + "\nnothing to do";
    }
    let sum = |count: fn(&StageExplanation) -> u64| stages.clone().map(count).sum::<u64>();
    let more = if stages.clone().any(|stage| stage.more) { " or more" } else { "" };
    let (runs, retracted) =
        (sum(|stage| if stage.transient { 0 } else { stage.to_run }), sum(|stage| stage.to_retract));
    told += &format!(
        "\n{runs}{more} {} to run, {retracted} {} to retract",
        text::plural("unit", runs),
        text::plural("row", retracted)
    );
    let working = || stages.clone().filter(|stage| stage.to_run > 0);
    let seconds: f64 = working().filter_map(|stage| stage.seconds).sum();
    let bytes: u64 = working().filter_map(|stage| stage.size_bytes).sum();
    if working().any(|stage| stage.seconds.is_some()) {
        told += &format!("; about {} of work, {}", time(seconds), text::size(bytes));
        if working().any(|stage| stage.seconds.is_none()) {
            told += ", and what was never run before";
        }
    }
    told
}

/// `78 known, 2 to run, 1 to retract`.
fn units(stage: &StageExplanation) -> String {
    let mut parts = Vec::new();
    if !stage.transient {
        parts.push(format!("{} known", stage.known));
    }
    if stage.quarantined > 0 {
        parts.push(format!("{} quarantined before", stage.quarantined));
    }
    if stage.to_run > 0 || stage.transient || stage.more {
        let more = if stage.more { " or more" } else { "" };
        parts.push(format!("{}{more} to run", stage.to_run));
    }
    if stage.to_retract > 0 {
        parts.push(format!("{} to retract", stage.to_retract));
    }
    parts.join(", ")
}

fn cost(stage: &StageExplanation) -> String {
    match (stage.to_run, stage.seconds, stage.size_bytes) {
        (0, ..) => String::new(),
        (_, None, _) => "cost unknown".to_owned(),
        (_, Some(seconds), None) => format!("~{}", time(seconds)),
        (_, Some(seconds), Some(bytes)) => format!("~{}, {}", time(seconds), text::size(bytes)),
    }
}

/// `2 new file: a.mp4, b.mp4`.
fn words(reason: &Reason) -> String {
    let Reason { why, count, examples } = reason;
    let more = if *count > examples.len() as u64 { ", …" } else { "" };
    format!("{count}: {why} ({}{more})", examples.join(", "))
}

fn time(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { text::span((seconds * 1e3) as i64) }
}
