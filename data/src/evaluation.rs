//! `evaluations`: how close one way of drawing a clip comes to the clip itself.

use arrow::array::{Float32Array, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, one, one_optional, one_row, one_string, optional, schema};

/// One clip, drawn in one way. The first frame, which is given, does not count.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// `repeat`, `coarse`, `shuffled`, `rollout`, `diffusion`.
    pub method: String,
    /// Peak signal-to-noise ratio of the mean squared error over all frames.
    pub psnr_db: f32,
    /// Structural similarity, mean over frames.
    pub ssim: f32,
    /// Gradient energy over that of the true clip: 1 is as sharp, less is blurred.
    pub sharpness: f32,
    /// Hash of a picture of the clip in all ways, in hexadecimal; the last way of a clip has it.
    pub picture: Option<String>,
}

/// A checked batch of table `evaluations`.
#[derive(Clone, Copy)]
pub struct Evaluations<'a> {
    method: &'a StringArray,
    psnr_db: &'a Float32Array,
    ssim: &'a Float32Array,
    sharpness: &'a Float32Array,
    picture: &'a StringArray,
}

impl<'a> Evaluations<'a> {
    pub const NAME: &'static str = "evaluations";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("method", DataType::Utf8),
            field("psnr_db", DataType::Float32),
            field("ssim", DataType::Float32),
            field("sharpness", DataType::Float32),
            Field::new("picture", DataType::Utf8, true),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Evaluations {
            method: columns.strings("method"),
            psnr_db: columns.primitive::<Float32Type>("psnr_db"),
            ssim: columns.primitive::<Float32Type>("ssim"),
            sharpness: columns.primitive::<Float32Type>("sharpness"),
            picture: columns.strings("picture"),
        })
    }

    /// All columns of one row.
    pub fn evaluation(&self, row: usize) -> Evaluation {
        Evaluation {
            method: self.method.value(row).to_owned(),
            psnr_db: self.psnr_db.value(row),
            ssim: self.ssim.value(row),
            sharpness: self.sharpness.value(row),
            picture: optional(self.picture, row).map(str::to_owned),
        }
    }

    pub fn row(evaluation: &Evaluation) -> RecordBatch {
        one_row(
            Self::schema(),
            vec![
                one_string(&evaluation.method),
                one::<Float32Type>(evaluation.psnr_db),
                one::<Float32Type>(evaluation.ssim),
                one::<Float32Type>(evaluation.sharpness),
                one_optional(evaluation.picture.as_deref()),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        for picture in [None, Some("00ff".to_owned())] {
            let evaluation = Evaluation { method: "coarse".into(), psnr_db: 24.5, ssim: 0.9, sharpness: 0.5, picture };
            let batch = Evaluations::row(&evaluation);
            assert_eq!(Evaluations::view(&batch).unwrap().evaluation(0), evaluation);
        }
    }
}
