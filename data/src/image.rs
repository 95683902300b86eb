//! `images`: one row per picture file (start scenes), from its header alone.

use arrow::array::{StringArray, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, one, one_row, one_string, schema};

/// What a picture file's header says; see [`crate::media::image::probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `png`, `jpeg` or `webp`.
    pub format: String,
    pub width: u32,
    pub height: u32,
}

/// A checked batch of table `images`.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    format: &'a StringArray,
    width: &'a UInt32Array,
    height: &'a UInt32Array,
}

impl<'a> Images<'a> {
    pub const NAME: &'static str = "images";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("format", DataType::Utf8),
            field("width", DataType::UInt32),
            field("height", DataType::UInt32),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Images {
            format: columns.strings("format"),
            width: columns.primitive::<UInt32Type>("width"),
            height: columns.primitive::<UInt32Type>("height"),
        })
    }

    /// All columns of one row.
    pub fn info(&self, row: usize) -> ImageInfo {
        ImageInfo {
            format: self.format.value(row).to_owned(),
            width: self.width.value(row),
            height: self.height.value(row),
        }
    }

    pub fn row(info: &ImageInfo) -> Result<RecordBatch> {
        Ok(one_row(
            Self::schema(),
            vec![one_string(&info.format), one::<UInt32Type>(info.width), one::<UInt32Type>(info.height)],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let info = ImageInfo { format: "webp".into(), width: 5, height: 7 };
        let batch = Images::row(&info).unwrap();
        assert_eq!(Images::view(&batch).unwrap().info(0), info);
    }
}
