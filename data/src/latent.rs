//! `latents`: what the VAE makes of one clip, f32 `[C, T', H', W']`.

use arrow::array::UInt32Array;
use arrow::datatypes::{DataType, Float32Type, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::columns::{Columns, field, one, one_row, schema};
use crate::tensor::{Tensors, one_tensor, tensor_field};

/// A checked batch of table `latents`.
#[derive(Clone, Copy)]
pub struct Latents<'a> {
    tensor: Tensors<'a, 4>,
    index: &'a UInt32Array,
}

impl<'a> Latents<'a> {
    pub const NAME: &'static str = "latents";

    pub fn schema() -> SchemaRef {
        schema(vec![
            tensor_field::<Float32Type>("tensor", &["C", "T", "H", "W"], false),
            field("index", DataType::UInt32),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Latents {
            tensor: Tensors::check(Self::NAME, "tensor", columns.array("tensor"))?,
            index: columns.primitive::<UInt32Type>("index"),
        })
    }

    /// Row-major `[C, T', H', W']`.
    pub fn values(&self, row: usize) -> &'a [f32] {
        self.tensor.values::<Float32Type>(row)
    }

    /// `[C, T', H', W']`.
    pub fn shape(&self, row: usize) -> [usize; 4] {
        self.tensor.shape(row)
    }

    /// The clip's position in its video.
    pub fn index(&self, row: usize) -> u32 {
        self.index.value(row)
    }

    /// An error if `values` do not fill `shape`.
    pub fn row(values: Vec<f32>, shape: [usize; 4], index: u32) -> Result<RecordBatch> {
        let tensor = one_tensor::<Float32Type, 4>(Self::NAME, "tensor", values, shape)?;
        Ok(one_row(Self::schema(), vec![tensor, one::<UInt32Type>(index)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let values: Vec<f32> = (0..16).map(|v| v as f32 / 3.0).collect();
        let batch = Latents::row(values.clone(), [2, 2, 4, 1], 9).unwrap();
        let latents = Latents::view(&batch).unwrap();
        assert_eq!((latents.values(0), latents.shape(0), latents.index(0)), (&values[..], [2, 2, 4, 1], 9));
    }
}
