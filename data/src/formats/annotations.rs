//! Annotations of videos: a file with one JSON object per line.
//!
//! ```text
//! {"video": "kitchen/tea.mp4", "task": "make tea", "fps": 30, "key_frames": [0, 95, 210]}
//! {"video": "desk.mp4", "start": 30, "end": 400}
//! ```
//!
//! `start` is the first frame and `end` is one past the last. With `key_frames`, a clip lies between two neighbouring key
//! frames, both included; what lies before the first and after the last key frame is left out. A video may have several
//! lines. Other keys are ignored, so that a simulator's list of episodes is an annotation file too.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// One line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Annotation {
    /// The video's path, relative to the data set.
    pub video: String,
    pub task: Option<String>,
    /// Overrides what the video file says.
    pub fps: Option<f64>,
    pub key_frames: Option<Vec<u32>>,
    pub start: Option<u32>,
    pub end: Option<u32>,
}

/// Reads and checks a file; an error names the line.
pub fn read(path: &Path) -> Result<Vec<Annotation>> {
    let file = path.display().to_string();
    let text = std::fs::read(path).map_err(|source| Error::Io { file: file.clone(), source })?;
    parse(&text, &file)
}

/// [`read`], from the file's content.
pub fn parse(text: &[u8], file: &str) -> Result<Vec<Annotation>> {
    let mut annotations = Vec::new();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let bad =
            |reason: String| Error::Format { file: file.to_owned(), place: format!("line {}", index + 1), reason };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let annotation: Annotation = serde_json::from_slice(line).map_err(|e| {
            // serde_json counts lines within what it was given, which is always one.
            let text = e.to_string();
            bad(text.split(" at line ").next().unwrap_or(&text).to_owned())
        })?;
        annotation.check().map_err(bad)?;
        annotations.push(annotation);
    }
    Ok(annotations)
}

/// The annotations of the video with a path: those that name exactly it, else those whose path ends with it or that it
/// ends with (data sets often lie below another folder than when they were annotated).
pub fn of_video<'a>(annotations: &'a [Annotation], video: &str) -> Vec<&'a Annotation> {
    let exact: Vec<_> = annotations.iter().filter(|annotation| annotation.video == video).collect();
    if !exact.is_empty() {
        return exact;
    }
    let ends = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|before| before.ends_with('/'));
    annotations.iter().filter(|a| ends(&a.video, video) || ends(video, &a.video)).collect()
}

impl Annotation {
    fn check(&self) -> Result<(), String> {
        if self.video.is_empty() {
            return Err("`video` is empty; name a video file".into());
        }
        if let Some(fps) = self.fps.filter(|fps| !(fps.is_finite() && *fps > 0.0)) {
            return Err(format!("`fps` is {fps}; it must be a positive number"));
        }
        if let (Some(start), Some(end)) = (self.start, self.end)
            && start >= end
        {
            return Err(format!("`start` is {start} and `end` is {end}; the end is one past the last frame"));
        }
        if let Some(pair) = self.key_frames.iter().flat_map(|keys| keys.windows(2)).find(|pair| pair[0] >= pair[1]) {
            return Err(format!(
                "`key_frames` has {} before {}; give them in ascending order, once each",
                pair[0], pair[1]
            ));
        }
        Ok(())
    }

    /// First and last frame (both included) of each part of a video with `frames` frames that clips are cut from.
    /// Neighbouring parts share their key frame. An error if a named frame is not in the video.
    pub fn parts(&self, frames: u32) -> Result<Vec<(u32, u32)>, String> {
        let beyond =
            |name: &str, frame: u32| format!("`{name}` names frame {frame}, but the video has {frames} frames");
        let (start, end) = (self.start.unwrap_or(0), self.end.unwrap_or(frames));
        if end > frames {
            return Err(format!("`end` is {end}, but the video has {frames} frames"));
        }
        if start >= frames {
            return Err(beyond("start", start));
        }
        let Some(keys) = self.key_frames.as_ref().filter(|keys| keys.len() > 1) else {
            return Ok(vec![(start, end - 1)]);
        };
        if let Some(&key) = keys.iter().find(|&&key| key >= frames) {
            return Err(beyond("key_frames", key));
        }
        let inside = |pair: &&[u32]| pair[0] >= start && pair[1] < end;
        Ok(keys.windows(2).filter(inside).map(|pair| (pair[0], pair[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Annotation {
        parse(line.as_bytes(), "a.jsonl").unwrap().remove(0)
    }

    #[test]
    fn errors_name_the_line() {
        for (text, message) in [
            ("{\"video\":\"a\"}\n\n{\"task\":\"x\"}", "a.jsonl: line 3: missing field `video`"),
            ("{\"video\":7}", "a.jsonl: line 1: invalid type: integer `7`, expected a string"),
            ("{\"video\":\"a\"", "a.jsonl: line 1: EOF while parsing an object"),
            ("{\"video\":\"\"}", "a.jsonl: line 1: `video` is empty; name a video file"),
            ("{\"video\":\"a\",\"fps\":0}", "a.jsonl: line 1: `fps` is 0; it must be a positive number"),
            (
                "{\"video\":\"a\",\"start\":9,\"end\":9}",
                "a.jsonl: line 1: `start` is 9 and `end` is 9; the end is one past the last frame",
            ),
            (
                "{\"video\":\"a\",\"key_frames\":[0,5,5]}",
                "a.jsonl: line 1: `key_frames` has 5 before 5; give them in ascending order, once each",
            ),
        ] {
            assert_eq!(parse(text.as_bytes(), "a.jsonl").unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_list_of_episodes_is_an_annotation_file() {
        let text = "{\"episode\": 0, \"video\": \"videos/ep_0000.mp4\", \"frames\": 33, \"actions\": [[1.5, 2]]}\r\n";
        let annotations = parse(text.as_bytes(), "episodes.jsonl").unwrap();
        assert_eq!(annotations.len(), 1);
        for (video, found) in
            [("videos/ep_0000.mp4", 1), ("ep_0000.mp4", 1), ("sets/pusht/videos/ep_0000.mp4", 1), ("p_0000.mp4", 0)]
        {
            assert_eq!(of_video(&annotations, video).len(), found, "{video}");
        }
    }

    #[test]
    fn an_exact_path_wins_over_a_suffix() {
        let annotations = parse(b"{\"video\":\"a.mp4\"}\n{\"video\":\"x/a.mp4\"}", "a.jsonl").unwrap();
        assert_eq!(of_video(&annotations, "a.mp4"), [&annotations[0]]);
        assert_eq!(of_video(&annotations, "x/a.mp4"), [&annotations[1]]);
    }

    #[test]
    fn parts_lie_between_key_frames_and_share_them() {
        for (line, parts) in [
            ("{\"video\":\"a\"}", vec![(0, 99)]),
            ("{\"video\":\"a\",\"start\":10,\"end\":31}", vec![(10, 30)]),
            ("{\"video\":\"a\",\"key_frames\":[5,20,99]}", vec![(5, 20), (20, 99)]),
            ("{\"video\":\"a\",\"key_frames\":[5]}", vec![(0, 99)]),
            ("{\"video\":\"a\",\"start\":6,\"key_frames\":[5,20,99]}", vec![(20, 99)]),
        ] {
            assert_eq!(one(line).parts(100).unwrap(), parts, "{line}");
        }
        for line in [
            "{\"video\":\"a\",\"end\":101}",
            "{\"video\":\"a\",\"start\":100}",
            "{\"video\":\"a\",\"key_frames\":[0,100]}",
        ] {
            assert!(one(line).parts(100).is_err(), "{line}");
        }
    }
}
