//! The exported code data set: plain Parquet that any reader opens.
//!
//! One file is one shard: one row per clip, sorted by id, zstd, provenance in the file's key-value metadata. Equal rows
//! and provenance give equal bytes: no clock, no program version.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListBuilder, StringArray, UInt16Array, UInt16Builder, UInt32Array};
use arrow::datatypes::{DataType, Field, Float32Type, SchemaRef, UInt16Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::columns::{Columns, field, item, list_values, optional, schema};
use crate::{Error, Result};

/// The codes of one clip, as exported.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeRow {
    /// Unique in the data set.
    pub id: String,
    /// Path of the video below the source's root.
    pub video: String,
    /// The clip's position in its video.
    pub clip: u32,
    /// Pair-major: `codes[pair * queries + query]`.
    pub codes: Vec<u16>,
    pub levels: Vec<u16>,
    /// Codes per pair of latent frames.
    pub queries: u16,
    /// Hash of the weights that made the codes.
    pub model: String,
    pub fps: f32,
    pub task: Option<String>,
}

const TABLE: &str = "code data set";

/// The file's columns.
pub fn file_schema() -> SchemaRef {
    schema(vec![
        field("id", DataType::Utf8),
        field("video", DataType::Utf8),
        field("clip", DataType::UInt32),
        field("codes", DataType::List(item(DataType::UInt16))),
        field("levels", DataType::List(item(DataType::UInt16))),
        field("queries", DataType::UInt16),
        field("model", DataType::Utf8),
        field("fps", DataType::Float32),
        Field::new("task", DataType::Utf8, true),
    ])
}

/// One shard's bytes, rows sorted by id. `provenance` becomes key-value metadata (`vw2.pipeline`, …).
/// An error if two rows have the same id.
pub fn to_bytes(rows: &[CodeRow], provenance: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut sorted: Vec<&CodeRow> = rows.iter().collect();
    sorted.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
        let (file, place) = (TABLE.to_owned(), format!("row `{}`", pair[0].id));
        return Err(Error::Format { file, place, reason: "occurs twice; ids must be unique".into() });
    }
    let metadata = provenance.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let properties = WriterProperties::builder()
        .set_created_by("vw2-pipe".into())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(metadata))
        .build();
    let mut bytes = Vec::new();
    let failed = |source: ParquetError| Error::Parquet { file: TABLE.into(), source };
    let mut writer = ArrowWriter::try_new(&mut bytes, file_schema(), Some(properties)).map_err(failed)?;
    writer.write(&batch(&sorted)).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(bytes)
}

fn batch(rows: &[&CodeRow]) -> RecordBatch {
    let strings = |get: fn(&CodeRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| get(row))))
    };
    let lists = |get: fn(&CodeRow) -> &[u16]| -> ArrayRef {
        let mut builder = ListBuilder::new(UInt16Builder::new()).with_field(item(DataType::UInt16));
        for row in rows {
            builder.values().append_slice(get(row));
            builder.append(true);
        }
        Arc::new(builder.finish())
    };
    let columns: Vec<ArrayRef> = vec![
        strings(|row| &row.id),
        strings(|row| &row.video),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.clip))),
        lists(|row| &row.codes),
        lists(|row| &row.levels),
        Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.queries))),
        strings(|row| &row.model),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.fps))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.task.as_deref()))),
    ];
    RecordBatch::try_new(file_schema(), columns).expect("the columns were built in the schema's order and types")
}

/// The rows and the provenance of one shard.
pub fn read(path: &Path) -> Result<(Vec<CodeRow>, BTreeMap<String, String>)> {
    let file = path.display().to_string();
    let failed = |source: ParquetError| Error::Parquet { file: file.clone(), source };
    let opened = File::open(path).map_err(|source| Error::Io { file: file.clone(), source })?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(failed)?;
    let metadata = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let provenance = metadata
        .into_iter()
        .filter(|pair| pair.key != "ARROW:schema")
        .filter_map(|pair| Some((pair.key, pair.value?)))
        .collect();
    let mut rows = Vec::new();
    for batch in builder.build().map_err(failed)? {
        let batch = batch.map_err(|source| failed(source.into()))?;
        let columns = Columns::check(TABLE, &file_schema(), &batch)?;
        let text = |name: &str, row: usize| columns.strings(name).value(row).to_owned();
        let list = |name: &str, row: usize| list_values::<UInt16Type>(columns.list(name), row).to_vec();
        rows.extend((0..batch.num_rows()).map(|row| CodeRow {
            id: text("id", row),
            video: text("video", row),
            clip: columns.primitive::<UInt32Type>("clip").value(row),
            codes: list("codes", row),
            levels: list("levels", row),
            queries: columns.primitive::<UInt16Type>("queries").value(row),
            model: text("model", row),
            fps: columns.primitive::<Float32Type>("fps").value(row),
            task: optional(columns.strings("task"), row).map(str::to_owned),
        }));
    }
    Ok((rows, provenance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::python;

    fn rows() -> Vec<CodeRow> {
        let row = |id: &str, codes: &[u16], task: Option<&str>| CodeRow {
            id: id.into(),
            video: "a.mp4".into(),
            clip: 3,
            codes: codes.to_vec(),
            levels: vec![8, 8],
            queries: 4,
            model: "ff00".into(),
            fps: 7.5,
            task: task.map(str::to_owned),
        };
        vec![row("b#0", &[63, 0, 7, 1], None), row("a#0", &[5], Some("push")), row("c#0", &[], None)]
    }

    fn provenance() -> BTreeMap<String, String> {
        [("vw2.pipeline", "full"), ("vw2.weights", "ab")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn rows_come_back_sorted_with_their_provenance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.parquet");
        for list in [rows(), vec![]] {
            std::fs::write(&path, to_bytes(&list, &provenance()).unwrap()).unwrap();
            let mut sorted = list;
            sorted.sort_by(|a, b| a.id.cmp(&b.id));
            assert_eq!(read(&path).unwrap(), (sorted, provenance()));
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_and_ids_are_unique() {
        let mut list = rows();
        let bytes = to_bytes(&list, &provenance()).unwrap();
        list.rotate_left(1);
        assert_eq!(to_bytes(&list, &provenance()).unwrap(), bytes);
        list.push(list[0].clone());
        let error = to_bytes(&list, &provenance()).unwrap_err().to_string();
        assert!(error.contains("row `a#0`: occurs twice"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_code_data_set_has_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.parquet");
        std::fs::write(&path, b"no parquet").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("shard.parquet"));
    }

    #[test]
    fn pyarrow_opens_it() {
        check(
            &["pyarrow"],
            "import sys, pyarrow.parquet as p\n\
             f = p.ParquetFile(sys.argv[1]); t = f.read()\n\
             print(t.column('codes').to_pylist(), t.column('task').to_pylist(), f.metadata.metadata[b'vw2.pipeline'])",
            "[[5], [63, 0, 7, 1], []] ['push', None, None] b'full'",
        );
    }

    #[test]
    fn duckdb_opens_it() {
        check(
            &["duckdb"],
            "import sys, duckdb\n\
             print(duckdb.sql(f\"select id, clip, len(codes), levels, fps from '{sys.argv[1]}' order by id\").fetchall())",
            "[('a#0', 3, 1, [8, 8], 7.5), ('b#0', 3, 4, [8, 8], 7.5), ('c#0', 3, 0, [8, 8], 7.5)]",
        );
    }

    fn check(modules: &[&str], program: &str, want: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.parquet");
        std::fs::write(&path, to_bytes(&rows(), &provenance()).unwrap()).unwrap();
        if let Some(said) = python(modules, program, &path) {
            assert_eq!(said, want);
        }
    }
}
