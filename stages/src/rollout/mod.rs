//! `rollout`: start scenes to imagined video: picture -> codes -> coarse clip -> sharp clip, clip after clip.
//!
//! Codes come from the AR model, or from a file. The dLDM decodes them to a coarse clip; with `render = "diffusion"` the DiT
//! then draws the clip anew, from its own last frame, the codes and the gray coarse clip. Two recursions run side by side:
//! the dLDM's on its own blurry frames, the DiT's on its own sharp ones. Last frames go on raw, not rounded to 8 bits. As
//! clips share their boundary frame, each clip's last frame is left out of the joined video: n clips of 1 + 4k frames give
//! 4k n frames.
//! Source: spec section 5.7. Differs: one folder per scene (upstream overwrites one file), and the range is always read as
//! [-1, 1].

mod codes;
mod film;
mod imagine;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vw2_engine::stage::{Context, InputFile, Location, Needs, Operator, Placement, Port, Stage, StageError, Table};
use vw2_models::ar::Sampling;

use crate::diffusion::Diffusion;
use crate::tables;

/// Imagines what follows each scene.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    #[serde(default)]
    pub weights: RolloutWeights,
    /// Height and width of the video; multiples of 16.
    pub size: [u32; 2],
    /// Height and width that the dLDM sees, as in its training; default: `size`.
    #[serde(default)]
    pub dldm_size: Option<[u32; 2]>,
    /// Clips per scene; default, where `codes` is given: as many as there are codes for.
    #[serde(default)]
    pub clips: Option<usize>,
    /// Codes by the scene's name instead of an AR model: an exported shard (`.parquet`), upstream's
    /// `VideoCraft-dLDM-codes.pt` or a `latent_code_infos.pt`.
    #[serde(default)]
    pub codes: Option<InputFile>,
    /// Who draws the frames: the dLDM's coarse decoder alone, or the DiT after it.
    #[serde(default)]
    pub render: Render,
    /// How the DiT is sampled.
    #[serde(default)]
    pub diffusion: Diffusion,
    /// Also write the coarse clip beside the final one.
    #[serde(default)]
    pub side_by_side: bool,
    /// Keep the last frame of the last clip in the joined video.
    #[serde(default)]
    pub keep_last: bool,
    /// Frame rate of the videos.
    #[serde(default = "default_fps")]
    pub fps: f64,
    /// Which of the model's tasks to do; left out for models that were trained without tasks.
    #[serde(default)]
    pub task: Option<String>,
    /// How codes are drawn from the AR model.
    #[serde(default)]
    pub sampling: Sampling,
    /// How many futures to imagine for each scene, with one seed after the other; those after the first stand in folders of
    /// their own, `<scene>_2` and so on.
    #[serde(default = "one")]
    pub rollouts: u64,
    /// The folder that receives a folder per scene.
    pub path: Location,
}

/// Who draws the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Render {
    #[default]
    Coarse,
    Diffusion,
}

/// Left out where their ports are connected.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutWeights {
    pub dldm: Option<InputFile>,
    pub ar: Option<InputFile>,
    pub vae: Option<InputFile>,
    pub dit: Option<InputFile>,
}

fn one() -> u64 {
    1
}

fn default_fps() -> f64 {
    16.0
}

impl Rollout {
    /// What the dLDM sees.
    fn dldm_size(&self) -> [u32; 2] {
        self.dldm_size.unwrap_or(self.size)
    }
}

impl Stage for Rollout {
    const KIND: &'static str = "rollout";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "start scenes to imagined video";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::row("scenes", &tables::IMAGES),
        Port::whole("ar", &tables::CHECKPOINTS).optional(),
        Port::whole("dldm", &tables::CHECKPOINTS).optional(),
        Port::whole("vae", &tables::CHECKPOINTS).optional(),
        Port::whole("dit", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::ROLLOUTS;

    fn check(&self) -> Result<(), String> {
        for (name, size) in [("size", self.size), ("dldm_size", self.dldm_size())] {
            if let Some(side) = size.iter().find(|&&side| side == 0 || side % 16 != 0) {
                return Err(format!("`{name}` has {side}, but both sides are multiples of 16"));
            }
        }
        match self.clips {
            Some(0) => return Err("`clips` is 0; a rollout has at least 1".into()),
            None if self.codes.is_none() => {
                return Err("`clips` is missing: how many clips to imagine per scene".into());
            }
            _ => {}
        }
        if self.rollouts == 0 || (self.rollouts > 1 && self.codes.is_some()) {
            return Err("`rollouts` is at least 1, and more than 1 only where codes are drawn from an AR model".into());
        }
        if !(self.fps > 0.0 && self.fps <= 1000.0) {
            return Err(format!("`fps` is {}; it wants more than 0 and at most 1000", self.fps));
        }
        self.sampling.check().map_err(|error| format!("`sampling`: {error}"))?;
        self.diffusion.check()
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    /// The scene's name without its extension, with the rollout's number but for the first: it names a folder.
    fn row_id(&self, unit: &str, row: &str) -> String {
        let scene = scene_name(unit);
        if row.is_empty() { scene.to_owned() } else { format!("{scene}_{row}") }
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    /// Codes from a file are found by the scene's name.
    fn named(&self) -> bool {
        self.codes.is_some()
    }

    fn reads_file(&self) -> bool {
        true
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(imagine::Imaginer::open(self, ctx)?))
    }
}

/// A path without its extension.
fn scene_name(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && !extension.contains('/') => stem,
        _ => path,
    }
}
