//! `videos`: the video files below a folder. Yields what each file says of itself; a file that is no readable video is
//! rejected here, with its reason.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vw2_data::{Videos, media};
use vw2_engine::stage::{Context, Location, Operator, Output, Port, Scan, Stage, StageError, Table, Unit};

use crate::{source, tables};

/// Every video below `root`; ids are paths below it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideosSource {
    /// The folder, searched with its subfolders.
    pub root: Location,
    /// File name extensions that count as video, without the dot.
    #[serde(default = "default_extensions")]
    pub extensions: Vec<String>,
}

pub(crate) fn default_extensions() -> Vec<String> {
    ["mp4", "m4v", "mov", "mkv", "webm", "avi"].map(str::to_owned).to_vec()
}

impl Stage for VideosSource {
    const KIND: &'static str = "videos";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "video files below a folder";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[];
    const OUTPUT: &'static Table = &tables::VIDEOS;

    fn scan(&self, found: &mut Scan) -> Result<(), StageError> {
        source::scan_folder(&self.root.0, &self.extensions, found)
    }

    fn watched(&self) -> Vec<PathBuf> {
        vec![self.root.0.clone()]
    }

    fn open(&self, _ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(Prober))
    }
}

struct Prober;

impl Operator for Prober {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let path = unit.file.as_deref().expect("a unit of a source stage is a file");
            match media::probe(path) {
                Ok(info) => out.push(unit, "", Videos::row(&info)?),
                Err(error) if error.is_transient() => out.retry(unit, error.reason()),
                Err(error) => out.reject(unit, error.reason()),
            }
        }
        Ok(())
    }
}
