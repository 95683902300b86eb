//! Figures of a training run as Parquet: a row per step, a column per figure, null where it was not taken.
//!
//! `step` counts optimizer updates; 0 is before the first. Equal figures give equal bytes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::{Error, Result};

/// A named figure: values by step, steps rising.
pub type Column<'a> = (&'a str, &'a [(u32, f64)]);

/// The table of these columns, behind its first column `step`.
pub fn table(columns: &[Column<'_>]) -> RecordBatch {
    let steps: BTreeSet<u32> = columns.iter().flat_map(|(_, points)| points.iter().map(|point| point.0)).collect();
    let mut fields = vec![Field::new("step", DataType::UInt32, false)];
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from_iter_values(steps.iter().copied()))];
    for (name, points) in columns {
        let mut points = points.iter().peekable();
        let values = steps.iter().map(|step| points.next_if(|point| point.0 == *step).map(|point| point.1));
        fields.push(Field::new(*name, DataType::Float64, true));
        arrays.push(Arc::new(values.collect::<Float64Array>()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("each array was made of its field's type")
}

/// The table as a Parquet file.
///
/// # Errors
/// Parquet refuses the columns, as where two have one name.
pub fn to_bytes(columns: &[Column<'_>]) -> Result<Vec<u8>> {
    batch_to_bytes(&table(columns))
}

/// Any table as a Parquet file.
///
/// # Errors
/// As [`to_bytes`].
pub fn batch_to_bytes(table: &RecordBatch) -> Result<Vec<u8>> {
    let properties = WriterProperties::builder()
        .set_created_by("vw2-pipe".into())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let failed = |source: ParquetError| Error::Parquet { file: "metrics".into(), source };
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), Some(properties)).map_err(failed)?;
    writer.write(table).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Float64Type;

    use super::*;

    #[test]
    fn a_figure_that_was_not_taken_is_null() {
        let (loss, held) = ([(1, 0.5), (2, 0.25), (3, f64::NAN)], [(0, 4.0), (2, 3.0)]);
        let columns: [Column<'_>; 2] = [("loss", &loss), ("held_out", &held)];
        let table = table(&columns);
        assert_eq!((table.num_rows(), table.num_columns()), (4, 3));
        let column = |name: &str| table.column_by_name(name).unwrap().as_primitive::<Float64Type>().clone();
        let (loss, held) = (column("loss"), column("held_out"));
        assert_eq!([loss.null_count(), held.null_count()], [1, 2]);
        assert_eq!((loss.value(1), held.value(0), held.value(2)), (0.5, 4.0, 3.0));
        assert!(loss.is_valid(3) && loss.value(3).is_nan(), "a loss that is no number is one that was taken");
        assert_eq!(to_bytes(&columns).unwrap(), to_bytes(&columns).unwrap());
    }
}
