//! A picture as a plain array of numbers, and its RGB levels.
//!
//! Whole numbers are levels of 0..=255. Floats of which none is above 1 are shares of 255, others are levels; both are
//! truncated. One channel is gray, of four the last is transparency, which is left out.
//! Source: spec section 1.3. Differs: a picture with a value that is no level, below 0 or not finite, is bad (upstream lets
//! it overflow); whole numbers up to 1 are dark, and not 255 times as bright.

use vw2_pickle::Dtype;

use super::super::image::{RgbImage, in_bounds};

/// Numbers with their meaning.
pub(super) struct Raster<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    height: usize,
    width: usize,
    channels: usize,
    /// Channel by channel, instead of pixel by pixel.
    planes: bool,
}

impl<'a> Raster<'a> {
    /// From [H, W, C] or [H, W], row-major; the error is a reason.
    pub(super) fn of_still(dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<Raster<'a>, String> {
        match *shape {
            [height, width] => Raster::checked(dtype, bytes, [height, width, 1], false),
            [height, width, channels] => Raster::checked(dtype, bytes, [height, width, channels], false),
            _ => Err(format!("an array of shape {shape:?}; [H, W, 3] is wanted")),
        }
    }

    /// From [C, H, W], row-major; the error is a reason.
    pub(super) fn of_planes(dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<Raster<'a>, String> {
        match *shape {
            [channels, height, width] => Raster::checked(dtype, bytes, [height, width, channels], true),
            _ => Err(format!("frames of shape {shape:?}; [3, H, W] is wanted")),
        }
    }

    fn checked(
        dtype: Dtype,
        bytes: &'a [u8],
        [height, width, channels]: [usize; 3],
        planes: bool,
    ) -> Result<Raster<'a>, String> {
        if !matches!(channels, 1 | 3 | 4) {
            let wanted = if planes { "[3, H, W]" } else { "[H, W, 3]" };
            return Err(format!(
                "{channels} channels of {height} x {width}; a picture has 1, 3 or 4, with shape {wanted}"
            ));
        }
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        in_bounds(side(width), side(height))?;
        Ok(Raster { dtype, bytes, height, width, channels, planes })
    }

    /// The error is a reason.
    pub(super) fn rgb(&self) -> Result<RgbImage, String> {
        let converted;
        let levels = match self.dtype {
            Dtype::U8 => self.bytes,
            _ => {
                converted = self.levels()?;
                &converted
            }
        };
        let pixels = self.height * self.width;
        let place = |pixel: usize, channel: usize| match self.planes {
            true => channel * pixels + pixel,
            false => pixel * self.channels + channel,
        };
        let colours = if self.channels == 1 { [0; 3] } else { [0, 1, 2] };
        let rgb = (0..pixels).flat_map(|pixel| colours.map(|channel| levels[place(pixel, channel)])).collect();
        Ok(RgbImage { width: self.width as u32, height: self.height as u32, pixels: rgb })
    }

    fn levels(&self) -> Result<Vec<u8>, String> {
        let values: Vec<f64> = match self.dtype {
            Dtype::F64 => self.bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            dtype => dtype.f32s(self.bytes).into_iter().map(f64::from).collect(),
        };
        if let Some(odd) = values.iter().find(|value| !(0.0..256.0).contains(*value)) {
            return Err(format!("the value {odd} in an array of {:?}; levels are 0 to 255", self.dtype));
        }
        let shares = self.dtype.is_float() && values.iter().all(|value| *value <= 1.0);
        Ok(match (shares, self.dtype) {
            (false, _) => values.into_iter().map(|value| value as u8).collect(),
            (true, Dtype::F64) => values.into_iter().map(|value| (value * 255.0) as u8).collect(),
            // In the array's own precision, where a product may be rounded up to the next level.
            (true, _) => values.into_iter().map(|value| (value as f32 * 255.0) as u8).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Vec<u8>, String> {
        Raster::of_still(dtype, shape, bytes)?.rgb().map(|image| image.pixels)
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn gray_colour_and_transparency_become_rgb_in_their_order() {
        assert_eq!(rgb(Dtype::U8, &[1, 2], &[7, 9]).unwrap(), [7, 7, 7, 9, 9, 9]);
        assert_eq!(rgb(Dtype::U8, &[1, 2, 1], &[7, 9]).unwrap(), [7, 7, 7, 9, 9, 9]);
        assert_eq!(rgb(Dtype::U8, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(rgb(Dtype::U8, &[2, 1, 4], &[1, 2, 3, 0, 4, 5, 6, 9]).unwrap(), [1, 2, 3, 4, 5, 6]);
        let planes = Raster::of_planes(Dtype::U8, &[3, 1, 2], &[1, 2, 3, 4, 5, 6]).unwrap().rgb().unwrap();
        assert_eq!((planes.width, planes.height, planes.pixels), (2, 1, vec![1, 3, 5, 2, 4, 6]));
    }

    #[test]
    fn floats_up_to_1_are_shares_and_others_are_levels() {
        let cases: [(&[f32], &[u8]); 4] = [
            (&[0.0, 0.5, 1.0], &[0, 127, 255]),
            (&[0.0, 0.5, 1.5], &[0, 0, 1]),
            (&[12.9, 255.0, 255.9], &[12, 255, 255]),
            (&[0.1, 0.2, 0.3], &[25, 51, 76]),
        ];
        for (values, levels) in cases {
            assert_eq!(rgb(Dtype::F32, &[1, 1, 3], &floats(values)).unwrap(), levels, "{values:?}");
        }
        let wide: Vec<u8> = [0.1f64, 0.2, 0.3].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(rgb(Dtype::F64, &[1, 1, 3], &wide).unwrap(), [25, 51, 76]);
        // Whole numbers are levels, however dark.
        assert_eq!(rgb(Dtype::U8, &[1, 1, 3], &[0, 1, 1]).unwrap(), [0, 1, 1]);
        assert_eq!(rgb(Dtype::I16, &[1, 1, 3], &[1, 0, 255, 0, 0, 0]).unwrap(), [1, 255, 0]);
    }

    #[test]
    fn what_is_no_picture_has_a_reason() {
        for (values, told) in
            [([-0.1, 0.0, 0.5], "the value -0.1"), ([f32::NAN, 0.0, 0.5], "NaN"), ([0.0, 300.0, 1.0], "300")]
        {
            let reason = rgb(Dtype::F32, &[1, 1, 3], &floats(&values)).unwrap_err();
            assert!(reason.contains(told), "{reason}");
        }
        for (shape, told) in [
            (&[3, 96, 96][..], "96 channels of 3 x 96"),
            (&[1, 1, 2], "2 channels"),
            (&[3], "an array of shape [3]"),
            (&[0, 4, 3], "beyond what is decoded"),
        ] {
            let reason = Raster::of_still(Dtype::U8, shape, &[0; 3]).err().unwrap();
            assert!(reason.contains(told), "{reason}");
        }
    }
}
