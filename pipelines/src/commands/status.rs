//! `vw2-pipe status`: what a store holds, read beside a run without disturbing it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use vw2_engine::report;
use vw2_engine::store::{Quarantined, RunRecord, Sizes, Store};

use crate::cli::StatusArgs;
use crate::commands::quarantine;
use crate::text;

/// What is told of one pipeline.
struct Pipeline {
    name: String,
    last: Option<RunRecord>,
    counts: Vec<(String, u64)>,
    quarantined: Vec<Quarantined>,
    /// Stages that hold what is no result of their inputs, with the run since which they do.
    stale: BTreeMap<String, i64>,
}

pub(crate) fn status(args: &StatusArgs) -> miette::Result<ExitCode> {
    let store = Store::open_read(&args.store.dir)?;
    let pipelines: vw2_engine::Result<Vec<Pipeline>> = store
        .pipelines()?
        .into_iter()
        .map(|name| {
            let (last, counts) = (store.last_run(&name)?, store.counts(&name)?);
            let (quarantined, mut stale) = (store.quarantine(&name)?, store.held_since(&name)?);
            stale.retain(|stage, _| counts.iter().any(|(other, _)| other == stage));
            Ok(Pipeline { name, last, counts, quarantined, stale })
        })
        .collect();
    let (sizes, pipelines) = (store.sizes()?, pipelines?);
    match args.store.json {
        true => text::print(as_json(&store, &sizes, &pipelines))?,
        false => text::print(as_text(&store, &sizes, &pipelines))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_text(store: &Store, sizes: &Sizes, pipelines: &[Pipeline]) -> String {
    let Sizes { manifest_bytes, blobs, scratch_bytes } = sizes;
    let mut told = format!("store {}: manifest {}, ", store.dir().display(), text::size(*manifest_bytes));
    told += &format!("{} {} of {}", blobs.count, text::plural("blob", blobs.count), text::size(blobs.size_bytes));
    if *scratch_bytes > 0 {
        told += &format!(", unfinished work {}", text::size(*scratch_bytes));
    }
    told += "\n";
    for Pipeline { name, last, counts, quarantined, stale } in pipelines {
        let _ = write!(told, "\npipeline {name}: {}\n", last.as_ref().map_or("no run".to_owned(), run));
        told += &published(counts, last.as_ref());
        for (stage, run) in stale {
            let _ = writeln!(told, "  {stage} is {}", report::stale(stage, *run));
        }
        if !quarantined.is_empty() {
            let _ = write!(told, "  quarantined: {}\n{}", quarantined.len(), quarantine::lines(quarantined, "    "));
        }
    }
    told.trim_end().to_owned()
}

/// `run 3, done, ended 5 min ago after 41 s`.
fn run(run: &RunRecord) -> String {
    let (id, now) = (run.id, text::now_ms());
    match (run.finished_ms, &run.outcome) {
        (Some(finished), Some(outcome)) => {
            let (ago, took) = (text::span(now - finished), text::span(finished - run.started_ms));
            format!("run {id}, {outcome}, ended {ago} ago after {took}")
        }
        _ => {
            let ago = text::span(now - run.started_ms);
            format!("run {id} began {ago} ago and has not ended: it still runs, or was killed")
        }
    }
}

/// Rows of each stage, and what the last run did there.
fn published(counts: &[(String, u64)], last: Option<&RunRecord>) -> String {
    if counts.is_empty() {
        return "  nothing is published\n".to_owned();
    }
    let report = last.map(report).unwrap_or_default();
    let head = ["  stage", "rows", "executed", "reused"].map(str::to_owned);
    let rows = counts.iter().map(|(stage, rows)| {
        let count =
            |what: &str| report["stages"][stage][what].as_u64().map_or(String::new(), |count| count.to_string());
        [format!("  {stage}"), rows.to_string(), count("executed"), count("reused")]
    });
    text::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()) + "\n"
}

/// What the run's `--json` said; null where it has not ended.
fn report(run: &RunRecord) -> Value {
    run.report.as_deref().and_then(|report| serde_json::from_str(report).ok()).unwrap_or_default()
}

fn as_json(store: &Store, sizes: &Sizes, pipelines: &[Pipeline]) -> Value {
    let pipeline = |pipeline: &Pipeline| {
        let Pipeline { name, last, counts, quarantined, stale } = pipeline;
        let published: Map<String, Value> = counts.iter().map(|(stage, rows)| (stage.clone(), json!(rows))).collect();
        let last = last.as_ref().map(|run| {
            json!({
                "run": run.id, "outcome": run.outcome, "started_ms": run.started_ms, "finished_ms": run.finished_ms,
                "report": report(run),
            })
        });
        json!({
            "pipeline": name, "last_run": last, "published": published, "quarantined": quarantined, "stale": stale,
        })
    };
    json!({
        "store": store.dir(),
        "sizes": sizes,
        "pipelines": pipelines.iter().map(pipeline).collect::<Vec<_>>(),
    })
}
