//! `export`: a table of codes as files that other programs read.
//!
//! `parquet`: plain Parquet, sharded by a hash of the clip's id, so that one changed clip rewrites one shard. Each change
//! is a new version directory whose unchanged shards are hard links; `latest` points at the newest.
//! `latent-code-infos`: upstream's `latent_code_infos.pt`, a list of (codes per clip, video) tuples.
//! `videocraft-codes`: upstream's `VideoCraft-dLDM-codes.pt`, a dictionary from a scene's name to a tensor of its codes.
//! In both, a video goes by its path without extension, as a scene of `rollout` does.
//! Source: spec section 1.7. Differs: one tuple per video with all its clips, sorted by video (spec 10.1, Q1).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vw2_data::formats::code_dataset::{self, CodeRow};
use vw2_data::formats::latent_code_infos::{self, VideoCodes};
use vw2_data::formats::videocraft_codes;
use vw2_data::{Codes, Shard, Shards};
use vw2_engine::stage::{Context, Location, Operator, Output, Placement, Port, Rows, Stage, StageError, Table, Unit};
use vw2_engine::store::Blobs;

use crate::tables;

/// Publishes codes under `path`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// What the files are.
    #[serde(default)]
    pub format: Format,
    /// The folder that receives version directories and `latest`.
    pub path: Location,
    /// How many Parquet files the table is cut into.
    #[serde(default = "default_shards")]
    pub shards: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Parquet,
    LatentCodeInfos,
    #[serde(rename = "videocraft-codes")]
    VideocraftCodes,
}

fn default_shards() -> u32 {
    16
}

impl Stage for Export {
    const KIND: &'static str = "export";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "codes to versioned Parquet, or to upstream's .pt files";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::whole("codes", &tables::CODES)];
    const OUTPUT: &'static Table = &tables::SHARDS;

    fn check(&self) -> Result<(), String> {
        match self.shards {
            1..=4096 => Ok(()),
            n => Err(format!("`shards` is {n}; it wants 1 to 4096 files")),
        }
    }

    fn shards(&self) -> Option<u32> {
        (self.format == Format::Parquet).then_some(self.shards)
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: true })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(Exporter { format: self.format, blobs: ctx.blobs.clone() }))
    }
}

struct Exporter {
    format: Format,
    blobs: Blobs,
}

impl Operator for Exporter {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let table = unit.table("codes").expect("the plan connects required ports");
            let clips = exported_clips(table)?;
            let (file, bytes) = match self.format {
                Format::Parquet => ("{id}.parquet", code_dataset::to_bytes(&clips, &provenance())?),
                Format::LatentCodeInfos => (latent_code_infos::FILE, latent_code_infos::to_bytes(&by_video(&clips))?),
                Format::VideocraftCodes => (videocraft_codes::FILE, videocraft_codes::to_bytes(&by_video(&clips))?),
            };
            let blob = self.blobs.put(&bytes)?;
            let shard = Shard { clips: clips.len() as u32, size_bytes: bytes.len() as u64, blob: blob.to_string() };
            let row = Shards::row(&shard)?;
            out.push_with_files(unit, "", row, vec![(file.to_owned(), blob)]);
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        unit.table("codes").map_or(0, |table| table.len() as u64 * 4096)
    }
}

/// Raised when the columns of the Parquet files change.
const PARQUET_FORMAT: &str = "1";

/// What a file says of itself beside its columns.
fn provenance() -> BTreeMap<String, String> {
    BTreeMap::from([("vw2.table".to_owned(), "codes".to_owned()), ("vw2.format".to_owned(), PARQUET_FORMAT.to_owned())])
}

fn exported_clips(table: &dyn Rows) -> Result<Vec<CodeRow>, StageError> {
    (0..table.len())
        .map(|index| {
            let row = table.row(index)?;
            let code = Codes::view(&row)?.code(0);
            let id = table.id(index);
            let (video, clip) = split_id(id);
            Ok(CodeRow {
                id: id.to_owned(),
                video: video.to_owned(),
                clip,
                codes: code.codes,
                levels: code.levels,
                queries: code.queries,
                model: code.model,
                fps: code.origin.fps,
                task: code.origin.task,
            })
        })
        .collect()
}

/// A clip's id `video#index`; the stage `slice` makes it so.
pub(crate) fn split_id(id: &str) -> (&str, u32) {
    match id.rsplit_once('#') {
        Some((video, index)) => (video, index.parse().unwrap_or(0)),
        None => (id, 0),
    }
}

/// Codes of each video, clip after clip; names without extension.
fn by_video(clips: &[CodeRow]) -> Vec<VideoCodes> {
    let mut ordered: Vec<&CodeRow> = clips.iter().collect();
    ordered.sort_by_key(|clip| (&clip.video, clip.clip));
    let mut videos: BTreeMap<String, Vec<Vec<u16>>> = BTreeMap::new();
    for clip in ordered {
        videos.entry(clip.video.clone()).or_default().push(clip.codes.clone());
    }
    videos.into_iter().map(|(name, clips)| VideoCodes { name: video_name(&name).to_owned(), clips }).collect()
}

/// A video's path without its extension, which begins with a letter: pre-cut clips of `boat_v1.2` have none left.
fn video_name(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((stem, extension))
            if !(stem.is_empty() || stem.ends_with('/'))
                && extension.starts_with(|c: char| c.is_ascii_alphabetic())
                && extension.chars().all(|c| c.is_ascii_alphanumeric()) =>
        {
            stem
        }
        _ => path,
    }
}

#[cfg(test)]
mod tests;
