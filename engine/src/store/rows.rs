//! A table row as bytes: Arrow IPC of a batch of one row, the same for the same values.
//!
//! Metadata is stripped (it belongs to the stage's table, not to a row) and comes back from the stage's schema on
//! reading. Buffers are copied to start at the row, so a row cut out of a large batch has neither
//! that batch's size nor any bit of it.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, UInt32Array, make_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;

use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, Hash};

/// Rows shorter than this stand in the manifest, longer ones are blobs.
pub(super) const INLINE_BYTES: usize = 64 << 10;

/// Names what a row holds: its bytes and the files that go with it.
pub(super) fn content(bytes: &[u8], files: &[(String, Hash)]) -> Hash {
    let mut hash = Fingerprint::new();
    hash.text("row").part(bytes);
    files.iter().for_each(|(path, blob)| {
        hash.text(path).hash(blob);
    });
    hash.finish()
}

pub(super) fn to_bytes(batch: &RecordBatch) -> Result<Vec<u8>> {
    let fail = || Error::arrow("written");
    let all: UInt32Array = (0..batch.num_rows() as u32).collect();
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let field = stripped_field(field);
        columns.push(retype(take(column, &all, None).map_err(fail())?, field.data_type())?);
        fields.push(field);
    }
    let schema = Arc::new(Schema::new(fields));
    let plain = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(fail())?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(fail())?;
    writer.write(&plain).map_err(fail())?;
    writer.into_inner().map_err(fail())
}

pub(super) fn from_bytes(bytes: &[u8], schema: &SchemaRef) -> Result<RecordBatch> {
    let fail = || Error::arrow("read back");
    let mut reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(fail())?;
    let corrupt = |reason: String| Error::Corrupt { what: "a row".to_owned(), reason };
    let batch = reader.next().ok_or_else(|| corrupt("it has no batch".to_owned()))?.map_err(fail())?;
    let wanted = Schema::new(schema.fields().iter().map(stripped_field).collect::<Vec<_>>());
    if batch.schema_ref().fields() != wanted.fields() {
        let names = |schema: &Schema| schema.fields().iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", ");
        return Err(corrupt(format!(
            "its columns are [{}], and the stage yields [{}]",
            names(batch.schema_ref()),
            names(&wanted)
        )));
    }
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| retype(Arc::clone(column), field.data_type()));
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?).map_err(fail())
}

fn stripped_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), stripped_type(field.data_type()), field.is_nullable()))
}

/// The type without the metadata of the fields inside it.
fn stripped_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::List(field) => DataType::List(stripped_field(field)),
        DataType::LargeList(field) => DataType::LargeList(stripped_field(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(stripped_field(field), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(stripped_field).collect()),
        DataType::Map(field, sorted) => DataType::Map(stripped_field(field), *sorted),
        other => other.clone(),
    }
}

/// The same values under a type that differs only in the metadata of fields inside it.
fn retype(array: ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        return Ok(array);
    }
    Ok(make_array(retype_data(array.to_data(), data_type).map_err(Error::arrow("given its type"))?))
}

fn retype_data(data: ArrayData, data_type: &DataType) -> arrow::error::Result<ArrayData> {
    let fields: Vec<&FieldRef> = match data_type {
        DataType::List(field) | DataType::LargeList(field) => vec![field],
        DataType::FixedSizeList(field, _) | DataType::Map(field, _) => vec![field],
        DataType::Struct(fields) => fields.iter().collect(),
        _ => Vec::new(),
    };
    let mut children = data.child_data().to_vec();
    for (child, field) in children.iter_mut().zip(fields) {
        *child = retype_data(child.clone(), field.data_type())?;
    }
    data.into_builder().data_type(data_type.clone()).child_data(children).build()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{BooleanArray, FixedSizeListArray, Float32Array, ListArray, StringArray, StructArray};
    use arrow::datatypes::{Float32Type, UInt16Type};

    use super::*;

    fn metadata(seed: usize) -> HashMap<String, String> {
        (0..20).map(|i| (format!("key {}", (i + seed) % 20), "x".repeat(i % 3))).collect()
    }

    /// Eight rows with every kind of buffer: bits, offsets, nested lists, nulls.
    fn wide() -> RecordBatch {
        let inner = Field::new("item", DataType::UInt16, true).with_metadata(metadata(3));
        let codes = (0..8u16).map(|i| Some((0..i % 3).map(Some)));
        let codes = ListArray::from_iter_primitive::<UInt16Type, _, _>(codes).to_data();
        let codes = codes.into_builder().data_type(DataType::List(Arc::new(inner))).build().unwrap();
        let latents = (0..8).map(|i| (i != 5).then(|| vec![Some(i as f32); 4]));
        let latents = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(latents, 4);
        let size: ArrayRef = Arc::new(Float32Array::from_iter((0..8).map(|i| (i % 2 == 0).then_some(i as f32))));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(StringArray::from_iter_values((0..8).map(|i| format!("clip {i}"))))),
            ("good", Arc::new(BooleanArray::from_iter((0..8).map(|i| (i != 3).then_some(i % 3 == 0))))),
            ("codes", make_array(codes)),
            ("latents", Arc::new(latents)),
            ("size", Arc::new(StructArray::from(vec![(Arc::new(Field::new("w", DataType::Float32, true)), size)]))),
        ];
        let fields =
            columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true).with_metadata(metadata(1)));
        let schema = Schema::new(fields.collect::<Vec<_>>()).with_metadata(metadata(2));
        RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, c)| c).collect()).unwrap()
    }

    #[test]
    fn a_row_comes_back_equal_with_its_schema() {
        let wide = wide();
        for index in 0..8 {
            let row = wide.slice(index, 1);
            assert_eq!(from_bytes(&to_bytes(&row).unwrap(), &wide.schema()).unwrap(), row, "row {index}");
        }
    }

    #[test]
    fn bytes_depend_on_values_alone() {
        let wide = wide();
        let shuffled = take_rows(&wide, &[6, 3, 3, 5, 0, 7, 1, 2, 4, 5]);
        for (at, index) in [6, 3, 3, 5, 0, 7, 1, 2, 4, 5].into_iter().enumerate() {
            let other = shuffled.slice(at, 1);
            let schema = Arc::new(other.schema().as_ref().clone().with_metadata(metadata(at)));
            let other = RecordBatch::try_new(schema, other.columns().to_vec()).unwrap();
            assert_eq!(to_bytes(&wide.slice(index, 1)).unwrap(), to_bytes(&other).unwrap(), "row {index} at {at}");
        }
        let lengths: Vec<_> = (0..8).map(|i| to_bytes(&wide.slice(i, 1)).unwrap().len()).collect();
        let large = take_rows(&wide, &[1; 10_000]);
        assert_eq!(to_bytes(&large.slice(5_000, 1)).unwrap().len(), lengths[1], "a slice does not carry its batch");
        assert_ne!(to_bytes(&wide.slice(0, 1)).unwrap(), to_bytes(&wide.slice(1, 1)).unwrap());
    }

    #[test]
    fn another_schema_is_told_by_its_columns() {
        let bytes = to_bytes(&wide().slice(0, 1)).unwrap();
        let other = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, true)]));
        let message = from_bytes(&bytes, &other).unwrap_err().to_string();
        assert!(message.contains("the stage yields"), "{message}");
    }

    fn take_rows(batch: &RecordBatch, rows: &[u32]) -> RecordBatch {
        let rows = UInt32Array::from(rows.to_vec());
        let columns = batch.columns().iter().map(|column| take(column, &rows, None).unwrap());
        RecordBatch::try_new(batch.schema(), columns.collect()).unwrap()
    }
}
