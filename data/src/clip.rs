//! `clips`: which frames of a video make one clip. No pixel yet.

use std::sync::Arc;

use arrow::array::{Float32Array, ListArray, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Float32Type, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, item, list_values, one, one_list, one_optional, one_row, optional, schema};

/// What the later forms of a clip (frames, codes) carry on from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The clip's position in its video, from 0.
    pub index: u32,
    /// Frames per second of the clip's frames, after sampling.
    pub fps: f32,
    /// What the video shows, if its annotation says so.
    pub task: Option<String>,
}

/// One clip of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Numbers of the video's frames, in the clip's order; a number may repeat.
    pub frames: Vec<u32>,
    pub origin: Origin,
}

/// A checked batch of table `clips`.
#[derive(Clone, Copy)]
pub struct Clips<'a> {
    frames: &'a ListArray,
    origin: Origins<'a>,
}

impl<'a> Clips<'a> {
    pub const NAME: &'static str = "clips";

    pub fn schema() -> SchemaRef {
        let mut fields = vec![field("frames", DataType::List(item(DataType::UInt32)))];
        fields.extend(Origins::fields());
        schema(fields)
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Clips { frames: columns.list("frames"), origin: Origins::of(columns) })
    }

    /// The clip's frames, as numbers in its video.
    pub fn frames(&self, row: usize) -> &'a [u32] {
        list_values::<UInt32Type>(self.frames, row)
    }

    pub fn origin(&self, row: usize) -> Origin {
        self.origin.get(row)
    }

    /// All columns of one row.
    pub fn clip(&self, row: usize) -> Clip {
        Clip { frames: self.frames(row).to_vec(), origin: self.origin(row) }
    }

    pub fn row(clip: &Clip) -> Result<RecordBatch> {
        let mut columns = vec![Arc::new(one_list::<UInt32Type>(Self::NAME, clip.frames.clone())?) as _];
        columns.extend(Origins::columns(&clip.origin));
        Ok(one_row(Self::schema(), columns))
    }
}

/// The columns `index`, `fps`, `task`, which several tables share.
#[derive(Clone, Copy)]
pub(crate) struct Origins<'a> {
    index: &'a UInt32Array,
    fps: &'a Float32Array,
    task: &'a StringArray,
}

impl<'a> Origins<'a> {
    pub(crate) fn fields() -> [Field; 3] {
        [field("index", DataType::UInt32), field("fps", DataType::Float32), Field::new("task", DataType::Utf8, true)]
    }

    pub(crate) fn of(columns: Columns<'a>) -> Self {
        Origins {
            index: columns.primitive::<UInt32Type>("index"),
            fps: columns.primitive::<Float32Type>("fps"),
            task: columns.strings("task"),
        }
    }

    pub(crate) fn get(&self, row: usize) -> Origin {
        Origin {
            index: self.index.value(row),
            fps: self.fps.value(row),
            task: optional(self.task, row).map(str::to_owned),
        }
    }

    pub(crate) fn columns(origin: &Origin) -> [arrow::array::ArrayRef; 3] {
        [one::<UInt32Type>(origin.index), one::<Float32Type>(origin.fps), one_optional(origin.task.as_deref())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        for task in [None, Some("fold a boat".to_owned())] {
            let clip = Clip { frames: vec![3, 5, 5, 0], origin: Origin { index: 4, fps: 7.5, task } };
            let batch = Clips::row(&clip).unwrap();
            assert_eq!(Clips::view(&batch).unwrap().clip(0), clip);
        }
    }
}
