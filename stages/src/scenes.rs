//! The table of codes as scenes: per video its start picture, its task, and the codes of its clips in order.
//!
//! Source: spec section 6.4. A clip that is missing ends its video's scene: what follows a gap cannot be learned as
//! following what precedes it.

use std::collections::BTreeMap;

use vw2_data::Codes;
use vw2_engine::stage::{Rows, StageError};
use vw2_models::ar::Example;

use crate::export::split_id;
use crate::training::held_out;

/// How many tasks a model's vocabulary has room for (spec 6.4).
pub(crate) const TASKS: usize = 16;

/// A video as a training example.
pub(crate) struct Scene {
    pub(crate) video: String,
    pub(crate) feature: Vec<f32>,
    pub(crate) task: u32,
    pub(crate) codes: Vec<u32>,
}

/// The table of codes, video by video.
pub(crate) struct Scenes {
    pub(crate) train: Vec<Scene>,
    pub(crate) held: Vec<Scene>,
    pub(crate) tasks: Vec<String>,
    pub(crate) levels: Vec<u32>,
    pub(crate) feature: [usize; 3],
    pub(crate) clip_codes: usize,
    /// Videos left out, because their first clip is missing.
    pub(crate) skipped: usize,
}

impl Scenes {
    /// The inner error says why the table is no training set.
    pub(crate) fn read(table: &dyn Rows, one_in: u64) -> Result<Result<Scenes, String>, StageError> {
        let (train, held) = held_out(table, one_in);
        let mut scenes = Scenes {
            train: Vec::new(),
            held: Vec::new(),
            tasks: Vec::new(),
            levels: Vec::new(),
            feature: [0; 3],
            clip_codes: 0,
            skipped: 0,
        };
        for (rows, held) in [(train, false), (held, true)] {
            let mut by_video: BTreeMap<&str, Vec<(u32, usize)>> = BTreeMap::new();
            for index in rows {
                let (video, clip) = split_id(table.id(index));
                by_video.entry(video).or_default().push((clip, index));
            }
            for (video, mut clips) in by_video {
                clips.sort_unstable();
                // A quarantined clip leaves a gap: what follows it cannot be learned as following what precedes it.
                let whole = clips.iter().zip(0..).take_while(|((clip, _), place)| clip == place).count();
                clips.truncate(whole);
                if clips.is_empty() {
                    scenes.skipped += 1; // without its first clip, a video has no start picture
                    continue;
                }
                match scenes.scene(table, video, &clips)? {
                    Ok(scene) if held => scenes.held.push(scene),
                    Ok(scene) => scenes.train.push(scene),
                    Err(reason) => return Ok(Err(format!("{video}: {reason}"))),
                }
            }
        }
        match scenes.train.is_empty() || scenes.held.is_empty() {
            true => Ok(Err("no video has its first clip; see the quarantine for what became of them".into())),
            false => Ok(Ok(scenes)),
        }
    }

    fn scene(
        &mut self,
        table: &dyn Rows,
        video: &str,
        clips: &[(u32, usize)],
    ) -> Result<Result<Scene, String>, StageError> {
        let mut scene = Scene { video: video.to_owned(), feature: Vec::new(), task: 0, codes: Vec::new() };
        for &(_, index) in clips {
            let row = table.row(index)?;
            let code = Codes::view(&row)?.code(0);
            let levels: Vec<u32> = code.levels.iter().map(|&level| u32::from(level)).collect();
            if self.levels.is_empty() {
                (self.levels, self.clip_codes) = (levels.clone(), code.codes.len());
            }
            if levels != self.levels || code.codes.len() != self.clip_codes {
                return Ok(Err(format!(
                    "{} codes of levels {levels:?}, but other clips have {} of {:?}",
                    code.codes.len(),
                    self.clip_codes,
                    self.levels
                )));
            }
            if let (true, Some(feature)) = (scene.feature.is_empty(), code.feature) {
                if self.feature == [0; 3] {
                    self.feature = feature.shape;
                }
                if feature.shape != self.feature {
                    return Ok(Err(format!("a picture of {:?}, but others have {:?}", feature.shape, self.feature)));
                }
                scene.feature = feature.values.iter().map(|value| value.to_f32()).collect();
                match self.task(code.origin.task.as_deref()) {
                    Some(task) => scene.task = task,
                    None => return Ok(Err(format!("more than {TASKS} tasks, the most that a model has room for"))),
                }
            }
            scene.codes.extend(code.codes.iter().map(|&code| u32::from(code)));
        }
        match scene.feature.is_empty() {
            true => Ok(Err("its first clip has no picture; extract the codes again".into())),
            false => Ok(Ok(scene)),
        }
    }

    /// The number of a task; videos without one share number 0 of an unnamed task.
    fn task(&mut self, name: Option<&str>) -> Option<u32> {
        let name = name.unwrap_or("");
        let known = self.tasks.iter().position(|task| task == name);
        let index = known.unwrap_or_else(|| {
            self.tasks.push(name.to_owned());
            self.tasks.len() - 1
        });
        (index < TASKS).then_some(index as u32)
    }
}

impl Scene {
    pub(crate) fn example(&self) -> Example<'_> {
        Example { feature: &self.feature, task: self.task, codes: &self.codes }
    }
}
