//! `frames`: the pixels of one clip, RGB u8 `[T, H, W, 3]`. Large, so usually transient.

use arrow::datatypes::{SchemaRef, UInt8Type};
use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::clip::{Origin, Origins};
use crate::columns::{Columns, one_row, schema};
use crate::tensor::{Tensors, one_tensor, tensor_field};

/// A checked batch of table `frames`.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    pixels: Tensors<'a, 4>,
    origin: Origins<'a>,
}

impl<'a> Frames<'a> {
    pub const NAME: &'static str = "frames";

    pub fn schema() -> SchemaRef {
        let mut fields = vec![tensor_field::<UInt8Type>("pixels", &["T", "H", "W", "C"], false)];
        fields.extend(Origins::fields());
        schema(fields)
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        let pixels = Tensors::check(Self::NAME, "pixels", columns.array("pixels"))?;
        Ok(Frames { pixels, origin: Origins::of(columns) })
    }

    /// RGB, row-major `[T, H, W, 3]`.
    pub fn pixels(&self, row: usize) -> &'a [u8] {
        self.pixels.values::<UInt8Type>(row)
    }

    /// `[T, H, W, 3]`.
    pub fn shape(&self, row: usize) -> [usize; 4] {
        self.pixels.shape(row)
    }

    pub fn origin(&self, row: usize) -> Origin {
        self.origin.get(row)
    }

    /// `pixels` is taken over without a copy. An error if it does not fill `shape`, or is 2 GiB or more.
    pub fn row(pixels: Vec<u8>, shape: [usize; 4], origin: &Origin) -> Result<RecordBatch> {
        let mut columns = vec![one_tensor::<UInt8Type, 4>(Self::NAME, "pixels", pixels, shape)?];
        columns.extend(Origins::columns(origin));
        Ok(one_row(Self::schema(), columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_takes_pixels_over_and_gives_them_back() {
        let origin = Origin { index: 2, fps: 10.0, task: None };
        let pixels: Vec<u8> = (0..2 * 3 * 4 * 3).collect();
        let address = pixels.as_ptr();
        let batch = Frames::row(pixels.clone(), [2, 3, 4, 3], &origin).unwrap();
        let frames = Frames::view(&batch).unwrap();
        assert_eq!((frames.pixels(0), frames.shape(0), frames.origin(0)), (&pixels[..], [2, 3, 4, 3], origin.clone()));

        let batch = Frames::row(pixels, [2, 3, 4, 3], &origin).unwrap();
        assert_eq!(Frames::view(&batch).unwrap().pixels(0).as_ptr(), address, "pixels were copied");
    }

    #[test]
    fn pixels_that_do_not_fill_the_shape_are_refused() {
        let origin = Origin { index: 0, fps: 1.0, task: None };
        let error = Frames::row(vec![0; 35], [1, 3, 4, 3], &origin).err().unwrap().to_string();
        assert_eq!(error, "table `frames`: column `pixels`: 35 values do not fill the shape [1, 3, 4, 3]");
    }
}
