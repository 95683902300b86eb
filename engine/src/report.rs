//! What a run did: per stage, as a table for people and as one JSON object for programs.

mod recorded;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) use recorded::record;
pub use recorded::{RecordedFile, RecordedStage};

use crate::plan::Plan;
use crate::run::graph::Graph;
use crate::store::Quarantined;

/// The end of a run that could go on to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    /// Cancelled: finished units are kept, nothing is published; the next run goes on from there.
    Interrupted,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Interrupted => "interrupted",
        }
    }
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run's number in the store.
    pub run: i64,
    pub pipeline: String,
    pub seconds: f64,
    /// In the plan's order; stages that are gone from the pipeline follow, if their rows were taken back.
    pub stages: Vec<StageReport>,
    pub quarantined: Vec<Quarantined>,
    /// Where each stage's published files stand.
    pub outputs: BTreeMap<String, PathBuf>,
    pub outcome: Outcome,
    /// More units are quarantined than `runtime.max_quarantined` allows.
    pub too_many_quarantined: bool,
}

/// What a run did in one stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageReport {
    pub id: String,
    pub kind: String,
    /// Units that were computed; for a transient stage, how often it ran.
    pub executed: u64,
    /// Units whose result was known.
    pub reused: u64,
    /// Rows published and taken back.
    pub added: u64,
    pub retracted: u64,
    pub quarantined: u64,
    /// The run since which the rows are no result of the inputs, as `on_change = "hold"` asks for: the stage is stale.
    pub held_since: Option<i64>,
    /// Time in the stage's operators, over all threads.
    pub seconds: f64,
}

impl Report {
    /// The counters as they stand; what was published is filled in later.
    pub(crate) fn new(run: i64, plan: &Plan, graph: &Graph) -> Report {
        let stages = graph.stages.iter().map(|stage| StageReport {
            id: stage.id.clone(),
            kind: stage.kind.to_owned(),
            executed: stage.counters.executed.load(Relaxed),
            reused: stage.counters.reused.load(Relaxed),
            seconds: stage.counters.busy_us.load(Relaxed) as f64 / 1e6,
            ..StageReport::default()
        });
        Report {
            run,
            pipeline: plan.name.clone(),
            seconds: 0.0,
            stages: stages.collect(),
            quarantined: Vec::new(),
            outputs: BTreeMap::new(),
            outcome: Outcome::Done,
            too_many_quarantined: false,
        }
    }

    /// What was counted after `before` was.
    pub(crate) fn since(mut self, before: &Report) -> Report {
        for (stage, before) in self.stages.iter_mut().zip(&before.stages) {
            stage.executed -= before.executed;
            stage.reused -= before.reused;
            stage.seconds -= before.seconds;
        }
        self
    }

    pub fn stage(&self, id: &str) -> Option<&StageReport> {
        self.stages.iter().find(|stage| stage.id == id)
    }

    pub(crate) fn stage_mut(&mut self, id: &str) -> &mut StageReport {
        let at = self.stages.iter().position(|stage| stage.id == id).unwrap_or_else(|| {
            self.stages.push(StageReport { id: id.to_owned(), ..StageReport::default() });
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }

    /// The object that `--json` prints.
    pub fn to_json(&self) -> Value {
        let stages: Map<String, Value> = self
            .stages
            .iter()
            .map(|stage| {
                let StageReport { executed, reused, added, retracted, quarantined, seconds, .. } = stage;
                let seconds = rounded(*seconds);
                let mut counts = json!({
                    "executed": executed, "reused": reused, "added": added, "retracted": retracted,
                    "quarantined": quarantined, "seconds": seconds,
                });
                if let Some(run) = stage.held_since {
                    (counts["stale"], counts["held_since"]) = (json!(true), json!(run));
                }
                (stage.id.clone(), counts)
            })
            .collect();
        json!({
            "pipeline": self.pipeline,
            "run": self.run,
            "outcome": self.outcome,
            "seconds": rounded(self.seconds),
            "stages": stages,
            "quarantined": self.quarantined,
            "outputs": self.outputs,
        })
    }
}

/// To a tenth of a millisecond: more digits are noise.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e4).round() / 1e4
}

/// That a stage is stale since this run, and what to do about it.
pub fn stale(stage: &str, held_since: i64) -> String {
    format!(
        "stale: held since run {held_since}; set on_change to retrain or run with --set stage.{stage}.on_change=retrain"
    )
}

/// Reasons shown in the table; the rest is counted, and `vw2-pipe status` shows all.
const REASONS: usize = 10;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines =
            vec![["stage", "executed", "reused", "added", "retracted", "quarantined", "seconds"].map(String::from)];
        lines.extend(self.stages.iter().map(|stage| {
            let counts = [stage.executed, stage.reused, stage.added, stage.retracted, stage.quarantined];
            let [executed, reused, added, retracted, quarantined] = counts.map(|n| n.to_string());
            [stage.id.clone(), executed, reused, added, retracted, quarantined, format!("{:.1}", stage.seconds)]
        }));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        for line in &lines {
            write!(f, "{:<width$}", line[0], width = widths[0])?;
            for (text, width) in line.iter().zip(&widths).skip(1) {
                write!(f, "  {text:>width$}")?;
            }
            writeln!(f)?;
        }
        for StageReport { id, held_since, .. } in &self.stages {
            if let Some(run) = held_since {
                writeln!(f, "stage `{id}` is {}", stale(id, *run))?;
            }
        }
        for entry in self.quarantined.iter().take(REASONS) {
            let place = entry.path.as_ref().unwrap_or(&entry.unit);
            writeln!(f, "quarantined ({}): stage `{}`: {place}: {}", entry.class, entry.stage, entry.reason)?;
        }
        if self.quarantined.len() > REASONS {
            writeln!(f, "quarantined: {} more", self.quarantined.len() - REASONS)?;
        }
        for (stage, path) in &self.outputs {
            writeln!(f, "{stage}: {}", path.display())?;
        }
        write!(f, "{} {} in {:.1} s", self.pipeline, self.outcome.as_str(), self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Class;

    fn report() -> Report {
        let stage =
            StageReport { id: "clips".into(), executed: 120, reused: 7, seconds: 12.34567, ..Default::default() };
        let bad = Quarantined {
            unit: "a.mp4".into(),
            path: Some("in/a.mp4".into()),
            stage: "clips".into(),
            class: Class::Bad,
            reason: "no moov box".into(),
            run: 3,
            keys: Vec::new(),
        };
        Report {
            run: 3,
            pipeline: "full".into(),
            seconds: 1.23456,
            stages: vec![StageReport { quarantined: 1, ..stage }],
            quarantined: vec![bad],
            outputs: BTreeMap::from([("codes".to_owned(), PathBuf::from("out/codes/latest"))]),
            outcome: Outcome::Done,
            too_many_quarantined: false,
        }
    }

    #[test]
    fn text_is_aligned() {
        insta::assert_snapshot!(report().to_string(), @r"
        stage  executed  reused  added  retracted  quarantined  seconds
        clips       120       7      0          0            1     12.3
        quarantined (bad): stage `clips`: in/a.mp4: no moov box
        codes: out/codes/latest
        full done in 1.2 s
        ");
    }

    #[test]
    fn a_stage_that_holds_its_rows_is_called_stale() {
        let mut report = report();
        report.stages[0].held_since = Some(2);
        let text = report.to_string();
        let stale = "stage `clips` is stale: held since run 2; set on_change to retrain or run with \
                     --set stage.clips.on_change=retrain\n";
        assert!(text.contains(stale), "{text}");
        let clips = &report.to_json()["stages"]["clips"];
        assert_eq!((&clips["stale"], &clips["held_since"]), (&json!(true), &json!(2)));
    }

    #[test]
    fn json_has_one_object_with_these_keys() {
        insta::assert_snapshot!(report().to_json().to_string(), @r#"{"pipeline":"full","run":3,"outcome":"done","seconds":1.2346,"stages":{"clips":{"executed":120,"reused":7,"added":0,"retracted":0,"quarantined":1,"seconds":12.3457}},"quarantined":[{"unit":"a.mp4","path":"in/a.mp4","stage":"clips","class":"bad","reason":"no moov box","run":3}],"outputs":{"codes":"out/codes/latest"}}"#);
    }
}
