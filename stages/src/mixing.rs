//! In what proportion a training stage sees sub-datasets: a parameter of such stages.
//!
//! A sub-dataset is the first folder of a clip's id, as the stage `openx` names them; it is drawn by its weight, then one
//! of its videos and one of that video's clips, each evenly (see [`Mixture`]).
//! Source: spec section 1.4, where the weights are the numbers of frames in `openx_videocraft_meta.json`.
//! Differs: a sub-dataset without a weight is an error, where upstream leaves it out and says nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vw2_data::formats::openx_lists;
use vw2_engine::stage::{InputFile, Rows, StageError};
use vw2_models::train::mixture::{Mixture, Part};
use vw2_models::train::order::Order;

use crate::export::split_id;
use crate::ids::sub_dataset;

/// Left empty, a sub-dataset weighs as much as it has clips.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// By name; 0 leaves one out, and `""` stands for clips that lie in no folder. These go before those of `meta`.
    pub weights: BTreeMap<String, f64>,
    /// Upstream's `openx_videocraft_meta.json`: weights are numbers of frames.
    pub meta: Option<InputFile>,
    /// Each epoch repeats the draws of the first, as upstream's do.
    pub repeating: bool,
}

/// The order in which a stage sees the `rows` of its table, as places in that list: by its mixture, or each row once an
/// epoch.
pub(crate) fn order(
    mix: Option<&Mix>,
    table: &dyn Rows,
    rows: &[usize],
    minibatch: usize,
    seed: u64,
) -> Result<Order, StageError> {
    let ids: Vec<&str> = (0..table.len()).map(|index| table.id(index)).collect();
    order_of(mix, &ids, rows, minibatch, seed)
}

/// As [`order`], of rows with these ids.
pub(crate) fn order_of(
    mix: Option<&Mix>,
    ids: &[&str],
    rows: &[usize],
    minibatch: usize,
    seed: u64,
) -> Result<Order, StageError> {
    let Some(mix) = mix else { return Ok(Order::new(rows.len(), minibatch, seed)) };
    let mixture = Mixture::new(mix.parts(ids, rows)?);
    Ok(Order::mixed(if mix.repeating { mixture.repeating() } else { mixture }, minibatch, seed))
}

impl Mix {
    /// Params that parse but make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.weights.iter().find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
            Some((name, weight)) => Err(format!("`mix.weights.{name}` is {weight}; a weight is 0 or more")),
            None => Ok(()),
        }
    }

    /// The sub-datasets of those of `ids` that are `rows`.
    fn parts(&self, ids: &[&str], rows: &[usize]) -> Result<Vec<Part>, StageError> {
        let known: BTreeSet<&str> = ids.iter().map(|id| sub_dataset(id)).collect();
        let listed = || known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if let Some(name) = self.weights.keys().find(|name| !known.contains(name.as_str())) {
            return Err(format!("`mix.weights` names `{name}`, but the sub-datasets are {}", listed()).into());
        }
        let weights = self.given()?;
        let mut parts = Vec::new();
        for &name in &known {
            let mut videos: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (place, &row) in rows.iter().enumerate().filter(|(_, row)| sub_dataset(ids[**row]) == name) {
                videos.entry(split_id(ids[row]).0).or_default().push(place);
            }
            let videos: Vec<Vec<usize>> = videos.into_values().collect();
            let weight = match &weights {
                None => videos.iter().map(Vec::len).sum::<usize>() as f64,
                Some(weights) => *weights.get(name).ok_or_else(|| {
                    format!("`mix` has no weight for the sub-dataset `{name}`; set `mix.weights`, to 0 to leave it out")
                })?,
            };
            parts.push(Part { weight, videos });
        }
        match parts.iter().any(|part| part.weight > 0.0 && !part.videos.is_empty()) {
            true => Ok(parts),
            false => {
                Err(format!("`mix` leaves nothing to train on: of {} none has clips and a weight", listed()).into())
            }
        }
    }

    /// The weights from file and parameters; `None` where there are neither.
    fn given(&self) -> Result<Option<BTreeMap<String, f64>>, StageError> {
        if self.meta.is_none() && self.weights.is_empty() {
            return Ok(None);
        }
        let mut weights = match &self.meta {
            Some(file) => openx_lists::read_meta(&file.0)?.weights(),
            None => BTreeMap::new(),
        };
        weights.extend(self.weights.clone());
        Ok(Some(weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 5] = ["a/1.pickle#0", "a/1.pickle#1", "a/2.pickle#0", "b/1.mp4#0", "loose.mp4#0"];

    /// Weight and, by video, rows.
    type Known = (f64, Vec<Vec<usize>>);

    fn parts(toml: &str, rows: &[usize]) -> Result<Vec<Known>, String> {
        let mix: Mix = toml::from_str(toml).unwrap();
        mix.check()?;
        let parts = mix.parts(&IDS, rows).map_err(|error| error.to_string())?;
        Ok(parts.into_iter().map(|part| (part.weight, part.videos)).collect())
    }

    #[test]
    fn places_stand_by_sub_dataset_and_video() {
        let loose_first = [(1.0, vec![vec![4]]), (3.0, vec![vec![0, 1], vec![2]]), (1.0, vec![vec![3]])];
        assert_eq!(parts("", &[0, 1, 2, 3, 4]).unwrap(), loose_first);
        // Rows 1, 2 and 3 alone: the places are those in the list.
        let weighted = parts("weights = { a = 0.5, b = 2, \"\" = 0 }", &[1, 2, 3]).unwrap();
        assert_eq!(weighted, [(0.0, vec![]), (0.5, vec![vec![0], vec![1]]), (2.0, vec![vec![2]])]);
    }

    #[test]
    fn weights_of_a_file_are_completed_by_params() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.json");
        let entry = |frames: u32| {
            format!("{{\"total_files\": 1, \"frames_per_file\": 1, \"estimated_total_frames\": {frames}}}")
        };
        let text = format!("{{\"subfolders\": {{\"a\": {}, \"b\": {}, \"x\": {}}}}}", entry(300), entry(100), entry(9));
        std::fs::write(&path, text).unwrap();
        let meta = format!("meta = {path:?}\n");
        let missing = parts(&meta, &[0, 3]).unwrap_err();
        assert!(missing.contains("no weight for the sub-dataset ``; set `mix.weights`"), "{missing}");
        let weights = parts(&format!("{meta}weights = {{ \"\" = 0, b = 50 }}"), &[0, 3, 4]).unwrap();
        assert_eq!(weights.iter().map(|part| part.0).collect::<Vec<_>>(), [0.0, 300.0, 50.0]);
    }

    #[test]
    fn params_that_make_no_sense_are_told() {
        for (toml, told) in [
            ("weights = { a = -1 }", "`mix.weights.a` is -1"),
            ("weights = { c = 1 }", "names `c`, but the sub-datasets are ``, `a`, `b`"),
            ("weights = { a = 1 }", "no weight for the sub-dataset ``"),
            ("weights = { a = 1, b = 0, \"\" = 0 }", "leaves nothing to train on"),
        ] {
            let error = parts(toml, &[3, 4]).unwrap_err();
            assert!(error.contains(told), "wanted `{told}`: {error}");
        }
    }
}
