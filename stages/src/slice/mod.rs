//! `slice`: a video's span of time to clips of `frames` frames each. It lists frames and decodes none.
//!
//! Consecutive clips share their boundary frame by default (`stride = frames - 1`), as in Video-CraftBench: a rollout
//! that continues from its own last frame then sees what training saw.
//! Source: spec section 1.1 (pre-cut clips), 1.2 (uniform sampling), 1.4 (shared boundary frame), 10.3 U5 (annotations).
//! Differs: a tail shorter than a clip is dropped unless `tail = "pad"`; upstream always pads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vw2_data::formats::annotations::{self, Annotation};
use vw2_data::formats::clip_name;
use vw2_data::sampling::{self, Tail};
use vw2_data::{Clip, Clips, Origin, Videos};
use vw2_engine::stage::{Context, InputFile, Operator, Output, Port, Stage, StageError, Table, Unit};

use crate::{ids, tables};

/// Cuts each video into clips.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Frames of a clip; 1 + 4k, as the models take the first frame alone and then groups of four.
    pub frames: u32,
    /// Which frames of the video a clip takes.
    #[serde(default)]
    pub sampling: Sampling,
    /// Sampled frames from one clip's start to the next; default `frames - 1`, the shared boundary frame.
    #[serde(default)]
    pub stride: Option<u32>,
    /// What becomes of frames that are left at the end.
    #[serde(default)]
    pub tail: Tail,
    /// `videos`: each file is a whole video. `clips`: each file is one clip of a video, named `video_<k>.mp4`.
    #[serde(default)]
    pub layout: Layout,
    /// JSON lines with spans, key frames and task names by video.
    #[serde(default)]
    pub annotations: Option<InputFile>,
    /// What is different for the videos of a sub-dataset, which is the first folder of their name.
    #[serde(default)]
    pub of: BTreeMap<String, Cut>,
}

/// How a sub-dataset is cut; what is left out is as for all.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cut {
    pub sampling: Option<Sampling>,
    pub stride: Option<u32>,
    pub tail: Option<Tail>,
    pub layout: Option<Layout>,
}

/// One of `{ every = n }`, `{ fps = f }`, `{ uniform = true }`.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Sampling {
    /// Every n-th frame.
    Every(u32),
    /// The frames nearest to a clock of this rate.
    Fps(f64),
    /// The whole video to one clip of `frames` frames, by upstream's truncated linspace.
    Uniform(bool),
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::Every(1)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    #[default]
    Videos,
    Clips,
}

impl Stage for Slice {
    const KIND: &'static str = "slice";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "videos to clips: frame lists, nothing decoded";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::row("videos", &tables::VIDEOS)];
    const OUTPUT: &'static Table = &tables::CLIPS;

    fn check(&self) -> Result<(), String> {
        sampling::check_frames(self.frames)?;
        check_cut(self.sampling, self.stride)?;
        for (name, cut) in &self.of {
            check_cut(cut.sampling.unwrap_or_default(), cut.stride).map_err(|error| format!("`of.{name}`: {error}"))?;
        }
        Ok(())
    }

    fn named(&self) -> bool {
        self.annotations.is_some() || !self.of.is_empty()
    }

    fn row_id(&self, unit: &str, row: &str) -> String {
        match self.rule(unit).layout {
            Layout::Videos => format!("{unit}#{row}"),
            Layout::Clips => match unit.rsplit_once('.').and_then(|(stem, _)| clip_name::split(stem)) {
                Some((video, index)) => format!("{video}#{index}"),
                None => format!("{unit}#0"),
            },
        }
    }

    fn open(&self, _ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let annotations = self.annotations.as_ref().map(|file| annotations::read(&file.0)).transpose()?;
        Ok(Box::new(Slicer { stage: self.clone(), annotations: annotations.unwrap_or_default() }))
    }
}

impl Slice {
    /// How this video is cut.
    fn rule(&self, video: &str) -> Rule {
        let of = self.of.get(ids::sub_dataset(video)).cloned().unwrap_or_default();
        Rule {
            frames: self.frames,
            sampling: of.sampling.unwrap_or(self.sampling),
            stride: of.stride.or(self.stride).unwrap_or((self.frames - 1).max(1)),
            tail: of.tail.unwrap_or(self.tail),
            layout: of.layout.unwrap_or(self.layout),
        }
    }
}

fn check_cut(sampling: Sampling, stride: Option<u32>) -> Result<(), String> {
    match sampling {
        Sampling::Every(0) => return Err("`sampling.every` is 0; 1 takes every frame".into()),
        Sampling::Fps(fps) if !(fps.is_finite() && fps > 0.0) => {
            return Err(format!("`sampling.fps` is {fps}; it wants a positive number"));
        }
        Sampling::Uniform(false) => return Err("`sampling.uniform` is true or left out".into()),
        _ => {}
    }
    match stride {
        Some(0) => Err("`stride` is 0; clips would never advance".into()),
        _ => Ok(()),
    }
}

struct Slicer {
    stage: Slice,
    annotations: Vec<Annotation>,
}

/// How one video is cut.
struct Rule {
    frames: u32,
    sampling: Sampling,
    stride: u32,
    tail: Tail,
    layout: Layout,
}

impl Operator for Slicer {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let video = Videos::view(unit.row("videos"))?.info(0);
            match self.clips(&unit.id, video.frames, video.fps()) {
                Ok(clips) => {
                    for clip in clips {
                        out.push(unit, clip.origin.index.to_string(), Clips::row(&clip)?);
                    }
                }
                Err(reason) => out.reject(unit, reason),
            }
        }
        Ok(())
    }
}

/// A stretch of a video, last frame included.
struct Part {
    first: u32,
    last: u32,
    task: Option<String>,
}

impl Slicer {
    /// All clips of a video; the error says why there are none.
    fn clips(&self, video: &str, frames: u32, fps: f64) -> Result<Vec<Clip>, String> {
        let mut clips = Vec::new();
        let rule = self.stage.rule(video);
        for part in self.parts(video, frames)? {
            let (lists, clip_fps) = rule.frame_lists(&part, fps);
            for frames in lists {
                let index = clips.len() as u32;
                let origin = Origin { index, fps: clip_fps as f32, task: part.task.clone() };
                clips.push(Clip { frames, origin });
            }
        }
        match clips.is_empty() {
            false => Ok(clips),
            true => Err(format!(
                "{frames} frames at {fps:.3} fps are too few for one clip of {} sampled frames; `tail = \"pad\"` pads with \
                 the last frame",
                rule.frames
            )),
        }
    }

    /// What the annotations name, or all of the video.
    fn parts(&self, video: &str, frames: u32) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        for annotation in annotations::of_video(&self.annotations, video) {
            for (first, last) in annotation.parts(frames)? {
                parts.push(Part { first, last, task: annotation.task.clone() });
            }
        }
        match frames.checked_sub(1) {
            Some(last) if parts.is_empty() => Ok(vec![Part { first: 0, last, task: None }]),
            _ => Ok(parts),
        }
    }
}

impl Rule {
    /// The clips of a part as frame numbers of the video, and their frames per second.
    fn frame_lists(&self, part: &Part, fps: f64) -> (Vec<Vec<u32>>, f64) {
        let length = part.last - part.first + 1;
        let (sampled, clip_fps) = match self.sampling {
            // A pre-cut clip is one clip whatever its length.
            _ if self.layout == Layout::Clips => return self.whole(part, length, fps),
            Sampling::Uniform(_) => return self.whole(part, length, fps),
            Sampling::Every(n) => (sampling::every(length, n), fps / f64::from(n)),
            Sampling::Fps(wanted) => (sampling::at_fps(length, fps, wanted), wanted),
        };
        let spans = sampling::spans(sampled.len() as u32, self.frames, self.stride, self.tail);
        let frame = |place: u32| part.first + sampled[place as usize];
        (spans.into_iter().map(|span| span.into_iter().map(frame).collect()).collect(), clip_fps)
    }

    /// One clip over all of the part, by upstream's truncated linspace.
    fn whole(&self, part: &Part, length: u32, fps: f64) -> (Vec<Vec<u32>>, f64) {
        let frames = sampling::uniform(length, self.frames).into_iter().map(|frame| part.first + frame).collect();
        (vec![frames], sampling::uniform_fps(length, fps, self.frames))
    }
}

#[cfg(test)]
mod tests;
