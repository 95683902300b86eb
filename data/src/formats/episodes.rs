//! Recorded episodes: what truly happened in a video, a file with one JSON object per line.
//!
//! ```text
//! {"video": "videos/ep_0000.mp4", "states": [[222.1, 97.5], [222.1, 99.0]], "actions": [[222.0, 101.0]]}
//! ```
//!
//! `states[k]` is measured at frame k. Other keys are ignored; an annotation file may be a list of episodes, too.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// One line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Episode {
    /// The video's path, relative to the data set.
    pub video: String,
    /// A vector for each frame, all of one length.
    pub states: Vec<Vec<f64>>,
}

/// Reads and checks a file; an error names the line.
///
/// # Errors
/// The file cannot be read, or a line is no episode.
pub fn read(path: &Path) -> Result<Vec<Episode>> {
    let file = path.display().to_string();
    let text = std::fs::read(path).map_err(|source| Error::Io { file: file.clone(), source })?;
    parse(&text, &file)
}

/// [`read`], from the file's content.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &[u8], file: &str) -> Result<Vec<Episode>> {
    let mut episodes: Vec<Episode> = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let bad =
            |reason: String| Error::Format { file: file.to_owned(), place: format!("line {}", index + 1), reason };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let episode: Episode = serde_json::from_slice(line).map_err(|error| {
            // serde_json counts lines within what it was given, which is always one.
            let text = error.to_string();
            bad(text.split(" at line ").next().unwrap_or(&text).to_owned())
        })?;
        let width = episodes.first().unwrap_or(&episode).states.first().map_or(0, Vec::len);
        if width == 0 || episode.states.iter().any(|state| state.len() != width) {
            return Err(bad("`states` wants a vector for each frame, all of one length in the whole file".into()));
        }
        if episode.states.iter().flatten().any(|value| !value.is_finite()) {
            return Err(bad("`states` has a number that is not finite".into()));
        }
        episodes.push(episode);
    }
    Ok(episodes)
}

/// The episode of the video with a path: by the file's name, as data sets often lie below another folder than when they
/// were recorded.
pub fn of_video<'a>(episodes: &'a [Episode], video: &str) -> Option<&'a Episode> {
    let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
    let exact = episodes.iter().find(|episode| episode.video == video);
    exact.or_else(|| episodes.iter().find(|episode| name(&episode.video) == name(video)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_is_found_by_its_video() {
        let text = b"{\"video\": \"a/x.mp4\", \"states\": [[1, 2]], \"frames\": 1}\n\n{\"video\": \"y.mp4\", \"states\": [[3.5, 4]]}\n";
        let episodes = parse(text, "episodes.jsonl").unwrap();
        assert_eq!(of_video(&episodes, "b/y.mp4").unwrap().states, [[3.5, 4.0]]);
        assert_eq!(of_video(&episodes, "x.mp4").unwrap().states, [[1.0, 2.0]]);
        assert_eq!(of_video(&episodes, "z.mp4"), None);
    }

    #[test]
    fn a_line_that_is_no_episode_is_named() {
        let good = "{\"video\": \"x\", \"states\": [[1, 2]]}\n";
        for (line, words) in [
            ("{\"video\": \"x\"}", "missing field `states`"),
            ("{\"video\": \"x\", \"states\": [[1]]}", "all of one length"),
            ("{\"video\": \"x\", \"states\": [[1, 2], []]}", "all of one length"),
            ("nonsense", "expected"),
        ] {
            let error = parse(format!("{good}{line}").as_bytes(), "e.jsonl").unwrap_err().to_string();
            assert!(error.starts_with("e.jsonl: line 2: ") && error.contains(words), "{error}");
        }
    }
}
