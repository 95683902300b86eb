//! `rollouts`: a generated video as a row that points into a hashed MP4, with the codes that led to it.

use std::sync::Arc;

use arrow::array::{Float32Array, ListArray, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Float32Type, SchemaRef, UInt16Type, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, item, list_values, one, one_list, one_row, one_string, schema};

/// A rolled-out video.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Clips that were chained.
    pub clips: u32,
    /// Frames of the MP4.
    pub frames: u32,
    pub width: u32,
    pub height: u32,
    pub fps: f32,
    /// The codes of all clips, in order.
    pub codes: Vec<u16>,
    /// Hash of the MP4, in hexadecimal.
    pub blob: String,
}

/// A checked batch of table `rollouts`.
#[derive(Clone, Copy)]
pub struct Rollouts<'a> {
    clips: &'a UInt32Array,
    frames: &'a UInt32Array,
    width: &'a UInt32Array,
    height: &'a UInt32Array,
    fps: &'a Float32Array,
    codes: &'a ListArray,
    blob: &'a StringArray,
}

impl<'a> Rollouts<'a> {
    pub const NAME: &'static str = "rollouts";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("clips", DataType::UInt32),
            field("frames", DataType::UInt32),
            field("width", DataType::UInt32),
            field("height", DataType::UInt32),
            field("fps", DataType::Float32),
            field("codes", DataType::List(item(DataType::UInt16))),
            field("blob", DataType::Utf8),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Rollouts {
            clips: columns.primitive::<UInt32Type>("clips"),
            frames: columns.primitive::<UInt32Type>("frames"),
            width: columns.primitive::<UInt32Type>("width"),
            height: columns.primitive::<UInt32Type>("height"),
            fps: columns.primitive::<Float32Type>("fps"),
            codes: columns.list("codes"),
            blob: columns.strings("blob"),
        })
    }

    /// All columns of one row.
    pub fn rollout(&self, row: usize) -> Rollout {
        Rollout {
            clips: self.clips.value(row),
            frames: self.frames.value(row),
            width: self.width.value(row),
            height: self.height.value(row),
            fps: self.fps.value(row),
            codes: list_values::<UInt16Type>(self.codes, row).to_vec(),
            blob: self.blob.value(row).to_owned(),
        }
    }

    pub fn row(rollout: &Rollout) -> Result<RecordBatch> {
        Ok(one_row(
            Self::schema(),
            vec![
                one::<UInt32Type>(rollout.clips),
                one::<UInt32Type>(rollout.frames),
                one::<UInt32Type>(rollout.width),
                one::<UInt32Type>(rollout.height),
                one::<Float32Type>(rollout.fps),
                Arc::new(one_list::<UInt16Type>(Self::NAME, rollout.codes.clone())?),
                one_string(&rollout.blob),
            ],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let rollout =
            Rollout { clips: 2, frames: 33, width: 64, height: 48, fps: 10.0, codes: vec![5, 6, 7], blob: "ab".into() };
        let batch = Rollouts::row(&rollout).unwrap();
        assert_eq!(Rollouts::view(&batch).unwrap().rollout(0), rollout);
    }
}
