//! What earlier runs wrote down: how the stages were, and what their units cost.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::error::Result;
use crate::plan::Plan;
use crate::report::{Outcome, RecordedStage};
use crate::store::{Cost, RunRecord, Store};

/// Runs that are looked through for a stage's last state.
const RUNS: usize = 200;
/// Longer values are cut, in characters.
const VALUE_CHARS: usize = 40;

#[derive(Default)]
pub(super) struct Past {
    /// Newest first.
    runs: Vec<RunRecord>,
    /// Each stage as the newest run had it that ended well, with that run's numeric class.
    stages: HashMap<String, (RecordedStage, String)>,
    costs: Vec<Cost>,
}

impl Past {
    pub(super) fn of(plan: &Plan, store: &Store) -> Result<Past> {
        let mut runs = store.runs(RUNS)?;
        runs.retain(|run| run.pipeline == plan.name);
        let mut stages = HashMap::new();
        for run in runs.iter().filter(|run| is_done(run)) {
            if plan.stages.iter().all(|stage| stages.contains_key(&stage.id)) {
                break;
            }
            let settings: Value = serde_json::from_str(&run.settings).unwrap_or_default();
            let numeric = settings["numeric"].as_str().unwrap_or_default();
            for stage in run.stages() {
                stages.entry(stage.id.clone()).or_insert_with(|| (stage, numeric.to_owned()));
            }
        }
        Ok(Past { runs, stages, costs: store.costs()? })
    }

    /// What is different about the stage itself since it last ran to an end; `None`: nothing, or nothing is known.
    pub(super) fn change(&self, stage: &RecordedStage, numeric: &str) -> Option<String> {
        if self.runs.is_empty() {
            return Some("first run".to_owned());
        }
        match self.stages.get(&stage.id) {
            None => (!self.stages.is_empty()).then(|| "stage is new".to_owned()),
            Some((before, then)) => {
                let mut all = differences(before, stage);
                if all.is_empty() && before.fingerprint != stage.fingerprint {
                    all.push(match then == numeric {
                        true => "its tables have other columns".to_owned(),
                        false => format!("arithmetic {then} -> {numeric}"),
                    });
                }
                (!all.is_empty()).then(|| all.join(", "))
            }
        }
    }

    pub(super) fn last_is_done(&self) -> bool {
        self.runs.first().is_some_and(is_done)
    }

    /// Why a unit has no result though nothing about it changed.
    pub(super) fn unfinished(&self) -> String {
        match self.runs.first() {
            Some(run) if !is_done(run) => {
                format!("run {} was {} before it", run.id, run.outcome.as_deref().unwrap_or("killed"))
            }
            _ => "not computed yet".to_owned(),
        }
    }

    /// Seconds and bytes of one stored unit: of this stage, else of any of its kind.
    pub(super) fn cost(&self, stage: &str, kind: &str) -> Option<(f64, f64)> {
        let mean = |costs: Vec<&Cost>| {
            let units = costs.iter().map(|cost| cost.units).sum::<u64>() as f64;
            let seconds: f64 = costs.iter().map(|cost| cost.seconds).sum();
            let bytes = costs.iter().map(|cost| cost.size_bytes).sum::<u64>() as f64;
            (units > 0.0).then(|| (seconds / units, bytes / units))
        };
        let of_kind = |cost: &&Cost| cost.kind == kind;
        let own = mean(self.costs.iter().filter(of_kind).filter(|cost| cost.stage == stage).collect());
        own.or_else(|| mean(self.costs.iter().filter(of_kind).collect()))
    }

    /// Seconds of one unit of a stage that keeps nothing, from the newest report in which it ran.
    pub(super) fn transient_seconds(&self, stage: &str) -> Option<f64> {
        self.runs.iter().find_map(|run| {
            let report: Value = serde_json::from_str(run.report.as_deref()?).ok()?;
            let stage = &report["stages"][stage];
            let executed = stage["executed"].as_u64().filter(|count| *count > 0)?;
            Some(stage["seconds"].as_f64()? / executed as f64)
        })
    }
}

fn is_done(run: &RunRecord) -> bool {
    run.outcome.as_deref() == Some(Outcome::Done.as_str())
}

fn differences(before: &RecordedStage, now: &RecordedStage) -> Vec<String> {
    let mut told = Vec::new();
    if before.kind != now.kind {
        return vec![format!("kind {} -> {}", before.kind, now.kind)];
    }
    if before.version != now.version {
        told.push(format!("version {} -> {}", before.version, now.version));
    }
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", &before.params, &mut old);
    flatten("", &now.params, &mut new);
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let value = |values: &BTreeMap<String, String>| values.get(key).cloned().unwrap_or_else(|| "unset".to_owned());
        let (old, new) = (value(&old), value(&new));
        if old != new {
            told.push(format!("`{key}` {old} -> {new}"));
        }
    }
    let content =
        |stage: &RecordedStage, key: &str| stage.files.iter().find(|file| file.key == key).map(|file| file.content);
    let keys = before.files.iter().filter(|file| content(now, &file.key).is_none()).chain(&now.files);
    let changed = keys.filter(|file| content(before, &file.key) != content(now, &file.key));
    told.extend(changed.map(|file| format!("`{}` changed", file.key)));
    for (port, from) in &now.inputs {
        let then = before.inputs.iter().find(|(known, _)| known == port);
        if then.is_none_or(|(_, then)| then != from) {
            told.push(format!("takes `{port}` from `{from}`"));
        }
    }
    for (port, _) in before.inputs.iter().filter(|(port, _)| now.inputs.iter().all(|(known, _)| known != port)) {
        told.push(format!("takes no `{port}` any more"));
    }
    told
}

/// Values by dotted key; files, places and what says how are left out.
fn flatten(key: &str, value: &Value, all: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if map.len() == 1 && map.keys().all(|key| ["$file", "$path", "$how"].contains(&&**key)) => {}
        Value::Object(map) => {
            for (name, inner) in map {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, inner, all);
            }
        }
        Value::Null => {}
        _ => {
            let mut text = value.to_string();
            if text.chars().count() > VALUE_CHARS {
                text = text.chars().take(VALUE_CHARS).chain(['…']).collect();
                // Long values that differ behind the cut have to read differently.
                text += &crate::Hash::of_bytes(value.to_string().as_bytes()).short()[..4];
            }
            all.insert(key.to_owned(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Hash;
    use crate::report::RecordedFile;

    #[test]
    fn differences_are_told_by_name() {
        let file = |content: &str| RecordedFile {
            key: "weights.dldm".to_owned(),
            path: "w".into(),
            content: Hash::of_bytes(content.as_bytes()),
        };
        let before = RecordedStage {
            id: "codes".to_owned(),
            kind: "extract".to_owned(),
            version: 1,
            inputs: vec![("frames".to_owned(), "frames".to_owned())],
            transient: false,
            params: json!({
                "frames": 17, "size": [64, 64], "root": {"$path": "a"}, "weights": {"dldm": {"$file": "w"}}, "x": null,
                "deep": {"er": "a"}, "list": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
            }),
            files: vec![file("one")],
            fingerprint: Hash::default(),
        };
        type Edit = fn(&mut RecordedStage);
        let cases: &[(Edit, &[&str])] = &[
            (|_| {}, &[]),
            (|s| s.params["root"] = json!({"$path": "b"}), &[]),
            (|s| s.files[0].path = "elsewhere".into(), &[]),
            (|s| s.params["frames"] = json!(33), &["`frames` 17 -> 33"]),
            (|s| s.params["size"][1] = json!(96), &["`size` [64,64] -> [64,96]"]),
            (|s| s.params["x"] = json!(1), &["`x` unset -> 1"]),
            (|s| s.params["deep"] = json!({"er": "b"}), &["`deep.er` \"a\" -> \"b\""]),
            (|s| s.files[0].content = Hash::default(), &["`weights.dldm` changed"]),
            (|s| s.files.clear(), &["`weights.dldm` changed"]),
            (|s| (s.version, s.params["frames"]) = (2, json!(9)), &["version 1 -> 2", "`frames` 17 -> 9"]),
            (|s| s.kind = "encode".to_owned(), &["kind extract -> encode"]),
            (|s| s.inputs[0].1 = "pictures".to_owned(), &["takes `frames` from `pictures`"]),
            (|s| s.inputs.clear(), &["takes no `frames` any more"]),
        ];
        for (edit, wanted) in cases {
            let mut now = before.clone();
            edit(&mut now);
            assert_eq!(differences(&before, &now), *wanted);
        }
        let mut now = before.clone();
        now.params["list"][19] = json!(21);
        let told = differences(&before, &now).remove(0);
        let (old, new) = told.split_once(" -> ").unwrap();
        assert!(told.chars().count() < 110 && !old.ends_with(new), "{told}");
    }
}
