//! `images`: the still pictures below a folder, such as start scenes of a rollout.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vw2_data::{Images, media};
use vw2_engine::stage::{Context, Location, Operator, Output, Port, Scan, Stage, StageError, Table, Unit};

use crate::{source, tables};

/// Every picture below `root`; ids are paths below it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesSource {
    /// The folder, searched with its subfolders.
    pub root: Location,
    /// File name extensions that count as pictures, without the dot.
    #[serde(default = "default_extensions")]
    pub extensions: Vec<String>,
}

fn default_extensions() -> Vec<String> {
    ["png", "jpg", "jpeg", "webp"].map(str::to_owned).to_vec()
}

impl Stage for ImagesSource {
    const KIND: &'static str = "images";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "pictures below a folder, such as start scenes";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[];
    const OUTPUT: &'static Table = &tables::IMAGES;

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
            match media::image::probe(path) {
                Ok(picture) => out.push(unit, "", Images::row(&picture)?),
                Err(error) if error.is_transient() => out.retry(unit, error.reason()),
                Err(error) => out.reject(unit, error.reason()),
            }
        }
        Ok(())
    }
}
