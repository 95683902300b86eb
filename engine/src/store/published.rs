//! The rows that pipelines publish: what each stage of a pipeline yields now.
//!
//! A run compares millions of them with what it wants, and most are the same. So there each stands for 16 bytes, its
//! [`RowName`], and those alone are spelt out that come or go.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::Store;
use super::manifest::{Files, files_text, now_ms};
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, Hash};

/// A published row: what a pipeline's stage yields now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    pub stage: String,
    /// Unique within pipeline and stage.
    pub id: String,
    pub content: Hash,
    /// The file that the row goes back to.
    pub origin: Option<String>,
    pub files: Vec<(String, Hash)>,
}

/// Stands for a published row with all that it says: the first half of a hash over it.
pub(crate) type RowName = u128;

/// A row where it is read, without being copied.
pub(crate) struct RowView<'a> {
    pub(crate) stage: &'a str,
    id: &'a str,
    content: Hash,
    origin: Option<&'a str>,
    /// As in the manifest.
    files: &'a str,
}

impl RowView<'_> {
    pub(crate) fn name(&self) -> RowName {
        row_name(self.stage, self.id, &self.content, self.origin, self.files)
    }

    pub(crate) fn to_row(&self) -> Result<Row> {
        let files = match self.files {
            "[]" => Vec::new(),
            text => serde_json::from_str(text).map_err(|error| Error::Corrupt {
                what: format!("the published row `{}` of stage `{}`", self.id, self.stage),
                reason: format!("its list of files is unreadable: {error}"),
            })?,
        };
        let [stage, id] = [self.stage, self.id].map(str::to_owned);
        Ok(Row { stage, id, content: self.content, origin: self.origin.map(str::to_owned), files })
    }
}

/// The name of a row of these values.
pub(crate) fn name_of(
    stage: &str,
    id: &str,
    content: &Hash,
    origin: Option<&str>,
    files: &[(String, Hash)],
) -> RowName {
    match files {
        [] => row_name(stage, id, content, origin, "[]"),
        files => row_name(stage, id, content, origin, &files_text(files)),
    }
}

fn row_name(stage: &str, id: &str, content: &Hash, origin: Option<&str>, files: &str) -> RowName {
    let mut name = Fingerprint::new();
    name.text(stage).text(id).hash(content).text(files);
    origin.into_iter().for_each(|origin| _ = name.text(origin));
    let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = name.finish().0;
    u128::from_le_bytes(first)
}

impl Store {
    /// All rows that the pipeline publishes, sorted by stage and id.
    pub fn published(&self, pipeline: &str) -> Result<Vec<Row>> {
        let sql = "SELECT stage, id, content, origin, files FROM published WHERE pipeline = ?1 ORDER BY stage, id";
        self.list("read published rows", sql, params![pipeline], |row| {
            let Files(files) = row.get(4)?;
            Ok(Row { stage: row.get(0)?, id: row.get(1)?, content: row.get(2)?, origin: row.get(3)?, files })
        })
    }

    /// Shows all rows that the pipeline publishes, sorted by stage and id. Nobody else gets at the manifest meanwhile.
    pub(crate) fn each_published(
        &self,
        pipeline: &str,
        mut look: impl FnMut(&RowView<'_>) -> Result<()>,
    ) -> Result<()> {
        let fail = || Error::manifest("read published rows");
        let manifest = self.manifest();
        let sql = "SELECT stage, id, content, origin, files FROM published WHERE pipeline = ?1 ORDER BY stage, id";
        let mut find = manifest.prepare_cached(sql).map_err(fail())?;
        let mut rows = find.query([pipeline]).map_err(fail())?;
        while let Some(row) = rows.next().map_err(fail())? {
            let view = || {
                Ok(RowView {
                    stage: row.get_ref(0)?.as_str()?,
                    id: row.get_ref(1)?.as_str()?,
                    content: row.get(2)?,
                    origin: row.get_ref(3)?.as_str_or_null()?,
                    files: row.get_ref(4)?.as_str()?,
                })
            };
            look(&view().map_err(fail())?)?;
        }
        Ok(())
    }

    /// Changes what the pipeline publishes, in one transaction that also stamps the run: first `remove`, then `add`.
    /// `Err` where a row to remove is not published so, or a row to add has the id of another.
    pub fn publish(&self, pipeline: &str, run: i64, add: &[Row], remove: &[Row]) -> Result<()> {
        let mut wrong = None;
        let result = self.change("publish rows", "publish", |manifest| {
            let sql = "DELETE FROM published WHERE pipeline = ?1 AND stage = ?2 AND id = ?3 AND content = ?4";
            let mut delete = manifest.prepare_cached(sql)?;
            let mut retire =
                manifest.prepare_cached("INSERT OR REPLACE INTO retired (content, run) VALUES (?1, ?2)")?;
            for row in remove {
                retire.execute(params![row.content, run])?;
                if delete.execute(params![pipeline, row.stage, row.id, row.content])? == 0 {
                    wrong = Some(format!("stage `{}`: row `{}` is to be removed and is not there", row.stage, row.id));
                    return Err(rusqlite::Error::StatementChangedRows(0));
                }
            }
            let sql = "INSERT INTO published (pipeline, stage, id, content, origin, files, run)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
            let mut insert = manifest.prepare_cached(sql)?;
            for Row { stage, id, content, origin, files } in add {
                if insert.execute(params![pipeline, stage, id, content, origin, files_text(files), run])? == 0 {
                    wrong = Some(format!("stage `{stage}` yields two rows named `{id}`; ids must differ"));
                    return Err(rusqlite::Error::StatementChangedRows(0));
                }
            }
            manifest.execute("UPDATE run SET published_ms = ?2 WHERE id = ?1", params![run, now_ms()])?;
            Ok(())
        });
        match wrong {
            Some(reason) => Err(Error::Failed(reason)),
            None => result,
        }
    }

    /// Stages of the pipeline with the count of rows that each publishes, sorted by stage.
    pub fn counts(&self, pipeline: &str) -> Result<Vec<(String, u64)>> {
        let sql = "SELECT stage, count(*) FROM published WHERE pipeline = ?1 GROUP BY stage ORDER BY stage";
        self.list("count rows", sql, params![pipeline], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))
    }
}
