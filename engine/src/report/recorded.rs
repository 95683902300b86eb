//! What a run writes down about its stages: enough to tell later how a published row came about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::fingerprint::{Hash, fingerprints, tagged_files};
use crate::plan::Plan;
use crate::store::RunRecord;

/// A stage as it was in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedStage {
    pub id: String,
    pub kind: String,
    pub version: u32,
    /// Port to the id of the stage that feeds it, in the kind's order of ports.
    pub inputs: Vec<(String, String)>,
    pub transient: bool,
    /// With all defaults, keys sorted; a file stands as `{"$file": path}`, a place to write or list as `{"$path": path}`,
    /// what says how as `{"$how": value}`.
    pub params: Value,
    pub files: Vec<RecordedFile>,
    pub fingerprint: Hash,
}

/// A file that is a parameter: weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// The parameter, dotted: `weights.dldm`.
    pub key: String,
    pub path: PathBuf,
    pub content: Hash,
}

/// The plan's fingerprints, and its stages as [`RunRecord::settings`] shall hold them under `stages`.
pub(crate) fn record(
    plan: &Plan,
    numeric: &str,
    file_hash: &mut dyn FnMut(&Path) -> Result<Hash>,
) -> Result<(Vec<Hash>, Vec<RecordedStage>)> {
    let mut contents: BTreeMap<PathBuf, Hash> = BTreeMap::new();
    let fingerprints = fingerprints(plan, numeric, &mut |path| {
        let content = file_hash(path)?;
        contents.insert(path.to_owned(), content);
        Ok(content)
    })?;
    let stages = plan.stages.iter().zip(&fingerprints).map(|(stage, fingerprint)| {
        let params = stage.stage.canonical();
        let files = tagged_files(&params).into_iter();
        let files = files.filter_map(|(key, path)| Some(RecordedFile { content: *contents.get(&path)?, key, path }));
        let inputs = stage.inputs.iter().map(|input| (input.port.name.to_owned(), plan.stages[input.from].id.clone()));
        RecordedStage {
            id: stage.id.clone(),
            kind: stage.kind.kind.to_owned(),
            version: stage.kind.version,
            inputs: inputs.collect(),
            transient: stage.transient,
            files: files.collect(),
            params,
            fingerprint: *fingerprint,
        }
    });
    let stages = stages.collect();
    Ok((fingerprints, stages))
}

impl RunRecord {
    /// The stages of the run, in the plan's order. Empty where an older program wrote the record, which named ids only.
    pub fn stages(&self) -> Vec<RecordedStage> {
        let settings: Value = serde_json::from_str(&self.settings).unwrap_or_default();
        serde_json::from_value(settings["stages"].clone()).unwrap_or_default()
    }
}
