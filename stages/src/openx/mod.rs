//! `openx`: episodes of Open-X and clips beside them, in sub-datasets.
//!
//! A sub-dataset is the first folder of an id: `bridge/17.pickle`. By it, `slice` may cut differently and a training stage
//! draws in proportion. Files come from a folder of folders (`root`), from further folders (`with`), or from the listing
//! that upstream distributes (`cache`), which names pickles and MP4 files alike. Each is probed as what it is: an episode of
//! which more than a tenth of the frames is bad is rejected, with the first of them.
//! Source: spec sections 1.3 and 1.4. Differs: subfolders are searched too; files that a listing names and that are not
//! there go to quarantine, where upstream takes another file in their place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vw2_data::formats::openx_lists;
use vw2_data::{Videos, media};
use vw2_engine::stage::{Context, Location, Operator, Output, Port, Scan, Stage, StageError, Table, Unit};

use crate::{source, tables, videos};

/// Every episode or video of the sub-datasets; ids begin with the sub-dataset's name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenX {
    /// A folder that has a folder of episodes (`.pickle`, `.pkl`) for each sub-dataset.
    #[serde(default)]
    pub root: Option<Location>,
    /// Further sub-datasets by name: folders of episodes or videos.
    #[serde(default)]
    pub with: BTreeMap<String, Location>,
    /// A listing of files by sub-dataset, as upstream's `openx_videocraft_cache.json`.
    #[serde(default)]
    pub cache: Option<Location>,
    /// Take these sub-datasets only; all, where none is named.
    #[serde(default)]
    pub only: Vec<String>,
    /// Frames per second of episodes, which do not tell their own.
    #[serde(default = "default_fps")]
    pub fps: f64,
}

fn default_fps() -> f64 {
    24.0
}

const EPISODES: [&str; 2] = ["pickle", "pkl"];

impl OpenX {
    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Episodes of the root's folders; gives the folders' names.
    fn scan_root(&self, root: &Path, found: &mut Scan) -> Result<BTreeSet<String>, StageError> {
        let episodes = EPISODES.map(str::to_owned);
        let names = |path: &Path| {
            let entries = path.read_dir().map_err(|error| format!("{}: {error}", path.display()))?;
            let folders = entries.filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()));
            Ok::<_, StageError>(folders.filter_map(|folder| folder.file_name().into_string().ok()).collect())
        };
        if self.only.is_empty() {
            source::scan_folder(root, &episodes, found)?;
            return if root.is_dir() { names(root) } else { Ok(BTreeSet::new()) };
        }
        let mut known: BTreeSet<String> = names(root)?;
        known.retain(|name| self.takes(name));
        for name in &known {
            source::scan_below(&root.join(name), &format!("{name}/"), &episodes, found)?;
        }
        Ok(known)
    }

    /// Files of the listing; gives the sub-datasets' names.
    fn scan_listed(&self, listing: &Path, found: &mut Scan) -> Result<BTreeSet<String>, StageError> {
        let cache = openx_lists::read_cache(listing)?;
        let mut known = BTreeSet::new();
        for (name, paths) in cache.by_folder.iter().filter(|(name, _)| self.takes(name)) {
            let mut ids: BTreeMap<String, &str> = BTreeMap::new();
            for path in paths {
                let id = cache.id(name, path);
                let before = ids.insert(id.clone(), path);
                let metadata = Path::new(path).metadata();
                match (before, metadata.map(|metadata| media::kind_of(metadata.file_type()))) {
                    (Some(before), _) if before == path => {}
                    (Some(before), _) => {
                        let reason = format!("the listing has `{before}` under the same name; rename one of them");
                        found.reject(format!("{id} ({path})"), path, reason);
                    }
                    (None, Ok(None)) => found.file(id, path),
                    (None, Ok(Some(kind))) => found.reject(id, path, format!("this is {kind} and no file")),
                    (None, Err(error)) => {
                        let listing = listing.display();
                        found.reject(id, path, format!("`{listing}` lists it, but it cannot be read: {error}"));
                    }
                }
            }
            known.insert(name.clone());
        }
        Ok(known)
    }
}

impl Stage for OpenX {
    const KIND: &'static str = "openx";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "episodes of Open-X and clips beside them, in sub-datasets";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[];
    const OUTPUT: &'static Table = &tables::VIDEOS;

    fn check(&self) -> Result<(), String> {
        if self.root.is_none() && self.with.is_empty() && self.cache.is_none() {
            return Err("none of `root`, `with` and `cache` says where the episodes are".into());
        }
        if self.root.is_some() && self.cache.is_some() {
            return Err("`root` and `cache` both say where the episodes are; leave one out".into());
        }
        if let Some(name) = self.with.keys().find(|name| name.is_empty() || name.contains('/')) {
            return Err(format!("`with` names the sub-dataset `{name}`; a name has letters, and no `/`"));
        }
        match self.fps.is_finite() && self.fps > 0.0 && self.fps <= 1000.0 {
            true => Ok(()),
            false => Err(format!("`fps` is {}; it wants more than 0 and at most 1000", self.fps)),
        }
    }

    fn scan(&self, found: &mut Scan) -> Result<(), StageError> {
        let mut known = BTreeSet::new();
        if let Some(root) = &self.root {
            known.extend(self.scan_root(&root.0, found)?);
        }
        if let Some(listing) = &self.cache {
            known.extend(self.scan_listed(&listing.0, found)?);
        }
        let extensions = [EPISODES.map(str::to_owned).to_vec(), videos::default_extensions()].concat();
        for (name, folder) in self.with.iter().filter(|(name, _)| self.takes(name)) {
            if !known.insert(name.clone()) {
                return Err(format!("sub-dataset `{name}` of `with` is also one of the others; rename it").into());
            }
            source::scan_below(&folder.0, &format!("{name}/"), &extensions, found)?;
        }
        match self.only.iter().find(|name| !known.contains(*name)) {
            Some(name) => {
                Err(format!("`only` names `{name}`, which is no sub-dataset here; of those there are {known:?}").into())
            }
            None => Ok(()),
        }
    }

    fn watched(&self) -> Vec<PathBuf> {
        let named = [&self.root, &self.cache].into_iter().flatten().chain(self.with.values());
        named.map(|location| location.0.clone()).collect()
    }

    fn open(&self, _ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(Prober { fps: self.fps }))
    }
}

struct Prober {
    fps: f64,
}

impl Operator for Prober {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let path = unit.file.as_deref().expect("a unit of a source stage is a file");
            match media::probe(path) {
                Ok(info) if info.container == "pickle" => out.push(unit, "", Videos::row(&info.at_fps(self.fps))?),
                Ok(info) => out.push(unit, "", Videos::row(&info)?),
                Err(error) if error.is_transient() => out.retry(unit, error.reason()),
                Err(error) => out.reject(unit, error.reason()),
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        let file_bytes = unit.file.as_deref().and_then(|path| Some(path.metadata().ok()?.len())).unwrap_or(0);
        match unit.file.as_deref().map(media::Episode::is_one) {
            // Read whole, and then taken apart; and a picture.
            Some(Ok(true)) => 2 * file_bytes + (8 << 20),
            _ => 1 << 20,
        }
    }
}

#[cfg(test)]
mod tests;
