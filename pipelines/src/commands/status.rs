//! `vw2-pipe status`: what a store holds, read beside a run without disturbing it.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use vw2_engine::store::{Quarantined, RunRecord, Store};

use crate::cli::StatusArgs;
use crate::text;

pub(crate) fn status(args: &StatusArgs) -> miette::Result<ExitCode> {
    let store = Store::open_read(&args.store)?;
    let mut text = format!("store {}\n", args.store.display());
    for pipeline in store.pipelines()? {
        let last = store.last_run(&pipeline)?;
        let _ = write!(text, "\npipeline {pipeline}: {}\n", last.as_ref().map_or("no run".to_owned(), told));
        text += &published(&store.counts(&pipeline)?);
        text += &quarantine(&store.quarantine(&pipeline)?);
    }
    text::print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// `run 3, done, ended 5 min ago after 41 s`.
fn told(run: &RunRecord) -> String {
    let (id, now) = (run.id, now_ms());
    match (run.finished_ms, &run.outcome) {
        (Some(finished), Some(outcome)) => {
            let (ago, took) = (span(now - finished), span(finished - run.started_ms));
            format!("run {id}, {outcome}, ended {ago} ago after {took}")
        }
        _ => {
            format!("run {id} began {} ago and has not ended: it still runs, or was killed", span(now - run.started_ms))
        }
    }
}

fn published(counts: &[(String, u64)]) -> String {
    if counts.is_empty() {
        return "  nothing is published\n".to_owned();
    }
    let head = ["  stage".to_owned(), "rows".to_owned()];
    let rows = counts.iter().map(|(stage, rows)| [format!("  {stage}"), rows.to_string()]);
    text::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()) + "\n"
}

/// One line a unit: class, stage, path (or the unit's id where no file is to blame), reason.
fn quarantine(list: &[Quarantined]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut text = format!("  quarantined: {}\n", list.len());
    for Quarantined { unit, path, stage, class, reason, run } in list {
        let place = path.as_ref().unwrap_or(unit);
        let _ = writeln!(text, "    {} in `{stage}` since run {run}: {place}: {reason}", class.as_str());
    }
    text
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A length of time in the largest unit that leaves at least 2 of it.
fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_a_fitting_unit() {
        let cases = [(-5, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_200_000, "2 h"), (172_800_000, "2 days")];
        for (ms, wanted) in cases {
            assert_eq!(span(ms), wanted);
        }
    }
}
