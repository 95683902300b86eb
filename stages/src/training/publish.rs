//! What a training leaves: weights, the metrics of every step, pictures, and the checkpoint's row.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use serde_json::Value;
use vw2_data::formats::metrics;
use vw2_data::{Checkpoint, Checkpoints};
use vw2_engine::stage::{Context, Output, StageError, Unit};
use vw2_models::train::Log;
use vw2_models::weights::{self, SaveType};

/// A trained model and what is told of it.
pub(crate) struct Publication<'a> {
    /// As table `checkpoints` names it; the weights' file is called so too.
    pub(crate) model: &'a str,
    pub(crate) tensors: Vec<(String, TensorData)>,
    pub(crate) save_type: SaveType,
    pub(crate) config: String,
    /// More of the weights' file's own texts, beside `config`.
    pub(crate) notes: Vec<(&'static str, String)>,
    pub(crate) steps: u32,
    pub(crate) log: &'a Log,
    /// Figures at the end.
    pub(crate) metrics: Value,
    /// SVG.
    pub(crate) picture: String,
    /// More files: name and content.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
}

/// As files and as one row.
pub(crate) fn publish(
    unit: &Unit,
    out: &mut Output,
    ctx: &Context,
    publication: Publication<'_>,
) -> Result<(), StageError> {
    let Publication { model, tensors, save_type, config, notes, steps, log, metrics, picture, files } = publication;
    let blobs = &ctx.blobs;
    let notes = notes.into_iter().map(|(key, text)| (key.to_owned(), text));
    let metadata = BTreeMap::from_iter([("config".to_owned(), config.clone())].into_iter().chain(notes));
    let weights = blobs.put(&weights::to_safetensors(&tensors, &metadata, save_type)?)?;
    let columns: Vec<metrics::Column<'_>> = log.columns().iter().map(|(name, points)| (&**name, &**points)).collect();
    let mut placed = vec![
        (format!("{model}.safetensors"), weights),
        ("loss.svg".to_owned(), blobs.put(picture.as_bytes())?),
        ("metrics.json".to_owned(), blobs.put(format!("{metrics:#}\n").as_bytes())?),
        ("metrics.parquet".to_owned(), blobs.put(&metrics::to_bytes(&columns)?)?),
    ];
    for (name, content) in files {
        placed.push((name.to_owned(), blobs.put(&content)?));
    }
    let row =
        Checkpoint { model: model.into(), blob: weights.to_string(), config, steps, metrics: metrics.to_string() };
    out.push_with_files(unit, "", Checkpoints::row(&row)?, placed);
    Ok(())
}
