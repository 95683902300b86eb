//! `checkpoints`: a trained model as a row that points into a hashed file.

use arrow::array::{StringArray, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, one, one_row, one_string, schema};

/// A trained model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which model: `vae`, `dldm` or `ar`.
    pub model: String,
    /// Hash of the weights' file, in hexadecimal.
    pub blob: String,
    /// The model's configuration, JSON.
    pub config: String,
    /// Optimizer updates that made it.
    pub steps: u32,
    /// Losses and the like at the end, JSON.
    pub metrics: String,
}

/// A checked batch of table `checkpoints`.
#[derive(Clone, Copy)]
pub struct Checkpoints<'a> {
    model: &'a StringArray,
    blob: &'a StringArray,
    config: &'a StringArray,
    steps: &'a UInt32Array,
    metrics: &'a StringArray,
}

impl<'a> Checkpoints<'a> {
    pub const NAME: &'static str = "checkpoints";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("model", DataType::Utf8),
            field("blob", DataType::Utf8),
            field("config", DataType::Utf8),
            field("steps", DataType::UInt32),
            field("metrics", DataType::Utf8),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Checkpoints {
            model: columns.strings("model"),
            blob: columns.strings("blob"),
            config: columns.strings("config"),
            steps: columns.primitive::<UInt32Type>("steps"),
            metrics: columns.strings("metrics"),
        })
    }

    /// All columns of one row.
    pub fn checkpoint(&self, row: usize) -> Checkpoint {
        Checkpoint {
            model: self.model.value(row).to_owned(),
            blob: self.blob.value(row).to_owned(),
            config: self.config.value(row).to_owned(),
            steps: self.steps.value(row),
            metrics: self.metrics.value(row).to_owned(),
        }
    }

    pub fn row(checkpoint: &Checkpoint) -> Result<RecordBatch> {
        Ok(one_row(
            Self::schema(),
            vec![
                one_string(&checkpoint.model),
                one_string(&checkpoint.blob),
                one_string(&checkpoint.config),
                one::<UInt32Type>(checkpoint.steps),
                one_string(&checkpoint.metrics),
            ],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let checkpoint = Checkpoint {
            model: "ar".into(),
            blob: "00ff".into(),
            config: r#"{"layers":4}"#.into(),
            steps: 300,
            metrics: r#"{"loss":1.5}"#.into(),
        };
        let batch = Checkpoints::row(&checkpoint).unwrap();
        assert_eq!(Checkpoints::view(&batch).unwrap().checkpoint(0), checkpoint);
    }
}
