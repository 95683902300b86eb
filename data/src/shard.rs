//! `shards`: one exported file of a code dataset, as a row that points into a hashed file.

use arrow::array::{StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, one, one_row, one_string, schema};

/// An exported file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Clips in the file.
    pub clips: u32,
    pub size_bytes: u64,
    /// Hash of the file, in hexadecimal.
    pub blob: String,
}

/// A checked batch of table `shards`.
#[derive(Clone, Copy)]
pub struct Shards<'a> {
    clips: &'a UInt32Array,
    size_bytes: &'a UInt64Array,
    blob: &'a StringArray,
}

impl<'a> Shards<'a> {
    pub const NAME: &'static str = "shards";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("clips", DataType::UInt32),
            field("size_bytes", DataType::UInt64),
            field("blob", DataType::Utf8),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Shards {
            clips: columns.primitive::<UInt32Type>("clips"),
            size_bytes: columns.primitive::<UInt64Type>("size_bytes"),
            blob: columns.strings("blob"),
        })
    }

    /// All columns of one row.
    pub fn shard(&self, row: usize) -> Shard {
        Shard {
            clips: self.clips.value(row),
            size_bytes: self.size_bytes.value(row),
            blob: self.blob.value(row).to_owned(),
        }
    }

    pub fn row(shard: &Shard) -> Result<RecordBatch> {
        Ok(one_row(
            Self::schema(),
            vec![one::<UInt32Type>(shard.clips), one::<UInt64Type>(shard.size_bytes), one_string(&shard.blob)],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let shard = Shard { clips: 3, size_bytes: 4096, blob: "00ff".into() };
        let batch = Shards::row(&shard).unwrap();
        assert_eq!(Shards::view(&batch).unwrap().shard(0), shard);
    }
}
