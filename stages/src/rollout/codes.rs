//! Where a scene's codes come from: the AR model's imagination, or a file.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use vw2_data::formats::{code_dataset, upstream_codes};
use vw2_engine::stage::{Context, StageError, Unit};
use vw2_models::ar::{Clips, Sampling};

use super::{Rollout, scene_name};
use crate::autoregressor::Autoregressor;
use crate::model_file::{ModelFile, values};

/// The codes of each clip.
pub(super) type ClipCodes = Vec<Vec<u32>>;

pub(super) enum CodeSource {
    Model { ar: Box<ModelFile<Autoregressor>>, clips: usize, task: Option<String>, sampling: Sampling },
    File { by_scene: BTreeMap<String, ClipCodes>, clips: Option<usize> },
}

impl CodeSource {
    pub(super) fn open(params: &Rollout, ctx: &Context) -> Result<CodeSource, StageError> {
        if let Some(file) = &params.codes {
            return Ok(CodeSource::File { by_scene: read(&file.0)?, clips: params.clips });
        }
        let ar = Box::new(ModelFile::new(ctx, params.weights.ar.as_ref(), "ar", Autoregressor::load)?);
        let (clips, task, sampling) = (params.clips.unwrap_or(1), params.task.clone(), params.sampling.clone());
        Ok(CodeSource::Model { ar, clips, task, sampling })
    }

    /// The scene's codes for one of its rollouts, or why it has none. `feature` is the dLDM's of the start frame,
    /// `[1, C, h, w]`.
    pub(super) fn codes(
        &mut self,
        unit: &Unit,
        feature: Tensor<4>,
        rollout: u64,
    ) -> Result<Result<ClipCodes, String>, StageError> {
        match self {
            CodeSource::Model { ar, clips, task, sampling } => {
                let (ar, _) = ar.get(unit)?;
                let task = ar.task_number(task.as_deref())?;
                let sampling = Sampling { seed: sampling.seed.wrapping_add(rollout), ..sampling.clone() };
                Ok(Ok(ar.model.generate(&values(feature), task, Clips::Exactly(*clips), &sampling)?))
            }
            CodeSource::File { by_scene, clips } => {
                let name = scene_name(&unit.id);
                let plain = name.rsplit('/').next().unwrap_or(name);
                let Some(codes) = by_scene.get(name).or_else(|| by_scene.get(plain)) else {
                    let mut known: Vec<&str> = by_scene.keys().map(String::as_str).take(6).collect();
                    if known.len() == 6 {
                        known[5] = "…";
                    }
                    return Ok(Err(format!("`codes` has nothing for `{name}`; scenes in it: {}", known.join(", "))));
                };
                Ok(Ok(codes[..clips.unwrap_or(codes.len()).min(codes.len())].to_vec()))
            }
        }
    }
}

/// The codes of a file by the name of their video.
fn read(path: &Path) -> Result<BTreeMap<String, ClipCodes>, StageError> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        let wide = |clip: Vec<u16>| clip.into_iter().map(u32::from).collect();
        let videos = upstream_codes::read(path)?.into_iter();
        return Ok(videos.map(|video| (video.name, video.clips.into_iter().map(wide).collect())).collect());
    }
    let mut by_scene: BTreeMap<String, ClipCodes> = BTreeMap::new();
    let (mut rows, _) = code_dataset::read(path)?;
    rows.sort_by(|a, b| (&a.video, a.clip).cmp(&(&b.video, b.clip)));
    for row in rows {
        let codes = row.codes.into_iter().map(u32::from).collect();
        by_scene.entry(scene_name(&row.video).to_owned()).or_default().push(codes);
    }
    Ok(by_scene)
}
