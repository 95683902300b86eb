//! Where a published row comes from, and what a store weighs.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, absolute};

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::blobs::entries;
use super::gc::{Freed, size_of};
use super::manifest::Files;
use super::{Payload, Row, Store};
use crate::error::{Error, Result};
use crate::fingerprint::Hash;

/// A published row with what surrounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRow {
    pub pipeline: String,
    pub row: Row,
    /// The run that published it.
    pub run: i64,
}

/// The computation that a row's content is the result of.
#[derive(Clone, Debug, PartialEq)]
pub struct MadeBy {
    pub kind: String,
    /// Time in the operator, for all rows of the unit.
    pub seconds: f64,
    pub run: i64,
    /// Length of the row as Arrow IPC.
    pub size_bytes: u64,
}

/// How a file outside the store compares with what a run last read there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    Unchanged,
    Changed,
    Gone,
    /// It was too fresh to be remembered when it was read.
    Unknown,
}

/// Bytes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// With its log.
    pub manifest_bytes: u64,
    pub blobs: Freed,
    pub scratch_bytes: u64,
}

impl Store {
    /// Published rows of this id in all pipelines and stages.
    pub fn rows_named(&self, id: &str) -> Result<Vec<PublishedRow>> {
        let sql = format!("SELECT {ROW} FROM published WHERE id = ?1 ORDER BY pipeline, stage");
        self.list("find rows", &sql, params![id], published_row)
    }

    /// Published rows of one stage that go back to this file, by id.
    pub fn rows_from(&self, pipeline: &str, stage: &str, origin: &str) -> Result<Vec<PublishedRow>> {
        let sql = format!("SELECT {ROW} FROM published WHERE pipeline = ?1 AND stage = ?2 AND origin = ?3 ORDER BY id");
        self.list("find rows", &sql, params![pipeline, stage, origin], published_row)
    }

    /// Ids of published rows that look like this one, best first, of rows that stages of these kinds made.
    pub fn ids_like(&self, id: &str, kinds: &[&str], count: usize) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT p.id, m.kind FROM published p
                   JOIN memo_row r ON r.content = p.content JOIN memo m USING (key)";
        let ids = self.list("list rows", sql, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let ids = ids.into_iter().filter(|(_, kind)| kinds.contains(&kind.as_str()));
        let mut ids: Vec<(f64, String)> =
            ids.map(|(known, _)| (-strsim::normalized_damerau_levenshtein(id, &known), known)).collect();
        ids.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        ids.dedup();
        Ok(ids.into_iter().take(count).map(|(_, id)| id).collect())
    }

    /// What computed this content; where several units did, one whose stage is named so.
    pub fn made_by(&self, content: &Hash, stage: &str) -> Result<Option<MadeBy>> {
        let sql = "SELECT m.kind, m.seconds, m.run, r.len FROM memo_row r JOIN memo m USING (key)
                   WHERE r.content = ?1 ORDER BY m.stage <> ?2, m.run DESC LIMIT 1";
        let made = self.list("find a result", sql, params![content, stage], |row| {
            let size_bytes = row.get::<_, i64>(3)? as u64;
            Ok(MadeBy { kind: row.get(0)?, seconds: row.get(1)?, run: row.get(2)?, size_bytes })
        });
        Ok(made?.pop())
    }

    /// The blob that a row's bytes are in; `None` where they stand in the manifest.
    pub fn blob_of(&self, content: &Hash) -> Result<Option<Hash>> {
        Ok(match self.payload(content)? {
            Payload::Blob(blob) => Some(blob),
            Payload::Inline(_) => None,
        })
    }

    /// Reads the file unless it is as a run last saw it.
    pub fn seen(&self, path: &Path) -> Result<Seen> {
        let absolute = absolute(path).map_err(Error::io("find", path))?;
        if !absolute.try_exists().map_err(Error::io("look at", path))? {
            return Ok(Seen::Gone);
        }
        let known = {
            let manifest = self.manifest();
            let sql = "SELECT hash FROM seen_file WHERE path = ?1";
            let found =
                manifest.query_row(sql, [absolute.as_os_str().as_bytes()], |row| row.get::<_, Hash>(0)).optional();
            found.map_err(Error::manifest("look up a file"))?
        };
        let Some(known) = known else { return Ok(Seen::Unknown) };
        Ok(if self.file_hash(path)? == known { Seen::Unchanged } else { Seen::Changed })
    }

    pub fn sizes(&self) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        for name in ["manifest.sqlite", "manifest.sqlite-wal"] {
            sizes.manifest_bytes += size_of(&self.dir.join(name));
        }
        for (_, _, size) in self.blobs.list()? {
            sizes.blobs.add(size);
        }
        for folder in entries(&self.dir.join("scratch"))? {
            sizes.scratch_bytes += size_of(&folder);
        }
        Ok(sizes)
    }
}

const ROW: &str = "pipeline, stage, id, content, origin, files, run";

fn published_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<PublishedRow> {
    let Files(files) = row.get(5)?;
    let own = Row { stage: row.get(1)?, id: row.get(2)?, content: row.get(3)?, origin: row.get(4)?, files };
    Ok(PublishedRow { pipeline: row.get(0)?, row: own, run: row.get(6)? })
}
