//! Where a training starts: from a connected checkpoint, or from the one that is published.

use std::path::PathBuf;

use vw2_data::Checkpoints;
use vw2_engine::stage::{Context, StageError, Unit};

/// The weights that port `init` brings.
pub(crate) fn connected_weights(unit: &Unit, ctx: &Context) -> Result<Option<PathBuf>, StageError> {
    let Some(table) = unit.table("init") else { return Ok(None) };
    Ok(Some(ctx.blobs.path(&Checkpoints::view(&table.row(0)?)?.checkpoint(0).blob.parse()?)))
}

/// The weights that the stage publishes now, where it is to go on from them (`on_change = "warm"`). Those of another
/// `model`, left by a stage of the same name, are none.
pub(crate) fn parent_weights(unit: &Unit, ctx: &Context, model: &str) -> Result<Option<PathBuf>, StageError> {
    let Some(row) = unit.parent() else { return Ok(None) };
    let parents = Checkpoints::view(row)?;
    let parent = parents.checkpoint(0);
    if parent.model != model {
        return Ok(None);
    }
    Ok(Some(ctx.blobs.path(&parent.blob.parse()?)))
}
