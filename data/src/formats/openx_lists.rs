//! `openx_videocraft_cache.json` and `openx_videocraft_meta.json`: which files the mixed data set has, by sub-dataset, and
//! how many frames are in each.
//!
//! Source: spec section 1.4. Paths are relative to the working directory. The listing names pickles and MP4 files alike.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The listing of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// All paths.
    #[serde(default)]
    pub pickle_paths: Vec<String>,
    /// The same by sub-dataset.
    #[serde(rename = "pickle_paths_by_folder")]
    pub by_folder: BTreeMap<String, Vec<String>>,
    /// When it was made; empty here, where equal data gives equal bytes.
    #[serde(default)]
    pub timestamp: String,
    /// The folder that has a folder for each sub-dataset.
    #[serde(default)]
    pub dataset_dir: String,
    /// The sub-datasets that were asked for, or all.
    #[serde(default)]
    pub subfolders: Option<Vec<String>>,
}

/// What the sub-datasets weigh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    #[serde(default)]
    pub dataset_dir: String,
    #[serde(default)]
    pub timestamp: String,
    pub subfolders: BTreeMap<String, Folder>,
}

/// A sub-dataset in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Folder {
    pub total_files: u64,
    /// Files that were looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_files: Option<u64>,
    pub frames_per_file: f64,
    /// What its share among the samples is proportional to.
    pub estimated_total_frames: f64,
}

impl Cache {
    /// A file's name within the whole: the sub-dataset, and what follows the sub-dataset's folder in the path, or else the
    /// path as it stands.
    pub fn id(&self, folder: &str, path: &str) -> String {
        let plain: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        let after = plain.iter().position(|part| *part == folder).map_or(0, |at| at + 1);
        let rest = if after < plain.len() { &plain[after..] } else { &plain[..] };
        format!("{folder}/{}", rest.join("/"))
    }
}

impl Meta {
    /// The sub-datasets' weights.
    pub fn weights(&self) -> BTreeMap<String, f64> {
        self.subfolders.iter().map(|(name, folder)| (name.clone(), folder.estimated_total_frames)).collect()
    }
}

/// Reads a listing.
///
/// # Errors
/// It cannot be read, is no such JSON, or a path in it is empty.
pub fn read_cache(path: &Path) -> Result<Cache> {
    let cache: Cache = read(path)?;
    for (folder, paths) in &cache.by_folder {
        if let Some(index) = paths.iter().position(String::is_empty) {
            let place = format!("`pickle_paths_by_folder`, `{}`, path {index}", folder.escape_debug());
            return Err(bad(path, place, "it is empty".into()));
        }
    }
    Ok(cache)
}

/// Reads the numbers of frames.
///
/// # Errors
/// It cannot be read, is no such JSON, or a number of frames is negative or no number.
pub fn read_meta(path: &Path) -> Result<Meta> {
    let meta: Meta = read(path)?;
    for (name, folder) in &meta.subfolders {
        let frames = folder.estimated_total_frames;
        if !(frames.is_finite() && frames >= 0.0) {
            let place = format!("sub-dataset `{}`", name.escape_debug());
            return Err(bad(path, place, format!("`estimated_total_frames` is {frames}; it wants 0 or more")));
        }
    }
    Ok(meta)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Io { file: path.display().to_string(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| bad(path, format!("line {}", error.line()), format!("{error}; see the data set's own file")))
}

fn bad(path: &Path, place: String, reason: String) -> Error {
    Error::Format { file: path.display().to_string(), place, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.json");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_listing_and_its_numbers_are_read() {
        let (_folder, path) = file(
            r#"{"pickle_paths": ["d/bridge/1.pickle", "v/a_0.mp4"], "pickle_paths_by_folder":
               {"bridge": ["d/bridge/1.pickle"], "craft": ["v/a_0.mp4"]},
               "timestamp": "2025-01-01T00:00", "dataset_dir": "d", "subfolders": null}"#,
        );
        let cache = read_cache(&path).unwrap();
        assert_eq!(cache.by_folder["bridge"], ["d/bridge/1.pickle"]);
        assert_eq!((cache.subfolders, cache.pickle_paths.len()), (None, 2));
        let (_folder, path) = file(
            r#"{"dataset_dir": "d", "timestamp": "x", "subfolders": {
               "bridge": {"total_files": 10, "sampled_files": 5, "frames_per_file": 38.5, "estimated_total_frames": 385.0},
               "empty": {"total_files": 0, "frames_per_file": 0, "estimated_total_frames": 0}}}"#,
        );
        let weights = [("bridge", 385.0), ("empty", 0.0)].map(|(name, weight)| (name.to_owned(), weight));
        assert_eq!(read_meta(&path).unwrap().weights(), BTreeMap::from(weights));
    }

    #[test]
    fn an_id_begins_with_the_sub_dataset() {
        let (_folder, path) = file(r#"{"pickle_paths_by_folder": {}}"#);
        let cache = read_cache(&path).unwrap();
        for (folder, path, id) in [
            ("bridge", "datasets/openx_untar/bridge/17.pickle", "bridge/17.pickle"),
            ("bridge", "./datasets//bridge/a/17.pickle", "bridge/a/17.pickle"),
            ("craft", "datasets/clips/boat_0.mp4", "craft/datasets/clips/boat_0.mp4"),
            ("craft", "../clips/boat_0.mp4", "craft/clips/boat_0.mp4"),
            ("bridge", "bridge", "bridge/bridge"),
        ] {
            assert_eq!(cache.id(folder, path), id);
        }
    }

    #[test]
    fn what_is_no_listing_is_told_with_its_place() {
        for (text, told) in [
            ("{\n\"a\": 1}", "line 2: missing field `pickle_paths_by_folder`"),
            ("[]", "line 1: "),
            (r#"{"pickle_paths_by_folder": {"a": ["x", ""]}}"#, "`a`, path 1: it is empty"),
        ] {
            let (_folder, path) = file(text);
            let error = read_cache(&path).unwrap_err().to_string();
            assert!(error.contains(told), "wanted `{told}`: {error}");
        }
        let (_folder, path) =
            file(r#"{"subfolders": {"a": {"total_files": 1, "frames_per_file": 1, "estimated_total_frames": -1}}}"#);
        let error = read_meta(&path).unwrap_err().to_string();
        assert!(error.contains("sub-dataset `a`: `estimated_total_frames` is -1; it wants 0 or more"), "{error}");
        assert!(matches!(read_meta(Path::new("/none.json")), Err(Error::Io { .. })));
    }
}
