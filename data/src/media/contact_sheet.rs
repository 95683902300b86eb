//! A few frames side by side in one small PNG, for people who would rather look than read.

use std::io::Cursor;

use image::imageops::FilterType;
use image::{ImageFormat, RgbImage as Canvas, imageops};

use super::MediaError;

/// How a sheet is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sheet {
    /// Frames per row.
    pub columns: u32,
    /// At most as many rows; frames are then taken evenly from all that there are. `None`: all frames.
    pub rows: Option<u32>,
    /// Width of one frame on the sheet in pixels; frames are made smaller, never larger.
    pub frame_width: u32,
}

impl Default for Sheet {
    fn default() -> Self {
        Sheet { columns: 8, rows: None, frame_width: 160 }
    }
}

/// Pixels between frames.
const GAP: u32 = 2;

/// A PNG file's bytes. `pixels` is RGB, row-major `[T, H, W, 3]`; an error if it does not fill the shape.
pub fn contact_sheet(pixels: &[u8], shape: [usize; 4], sheet: Sheet) -> Result<Vec<u8>, MediaError> {
    let failed = |reason: String| MediaError::Encode { path: "contact sheet".into(), reason };
    let [count, height, width, channels] = shape;
    let size = height * width * channels;
    if channels != 3 || size == 0 || count == 0 || pixels.len() != count * size {
        return Err(failed(format!("{} bytes are no RGB frames of shape {shape:?}", pixels.len())));
    }
    let columns = (sheet.columns.max(1) as usize).min(count);
    let shown = sheet.rows.map_or(count, |rows| count.min(columns * rows.max(1) as usize));
    let rows = shown.div_ceil(columns) as u32;
    let small_width = sheet.frame_width.clamp(1, width as u32);
    let small_height = ((height as u64 * u64::from(small_width) / width as u64) as u32).max(1);

    let (step_x, step_y) = (small_width + GAP, small_height + GAP);
    let mut canvas = Canvas::new(columns as u32 * step_x - GAP, rows * step_y - GAP);
    for i in 0..shown {
        let frame = if shown < count { i * (count - 1) / (shown - 1).max(1) } else { i };
        let rgb = Canvas::from_raw(width as u32, height as u32, pixels[frame * size..][..size].to_vec())
            .expect("the length was checked above");
        let small = match small_width == width as u32 {
            true => rgb,
            false => imageops::resize(&rgb, small_width, small_height, FilterType::Triangle),
        };
        let (x, y) = ((i % columns) as i64 * i64::from(step_x), (i / columns) as i64 * i64::from(step_y));
        imageops::replace(&mut canvas, &small, x, y);
    }
    let mut png = Cursor::new(Vec::new());
    canvas.write_to(&mut png, ImageFormat::Png).map_err(|e| failed(e.to_string()))?;
    Ok(png.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frame t is filled with value 10 t.
    fn frames(count: usize) -> Vec<u8> {
        (0..count).flat_map(|t| vec![10 * t as u8; 4 * 6 * 3]).collect()
    }

    #[test]
    fn frames_stand_in_rows_and_are_thinned_evenly() {
        let wide = Sheet { columns: 3, rows: None, frame_width: 100 };
        for (sheet, size, corner, value) in [
            (wide, (3 * 6 + 4, 3 * 4 + 4), (0, 12), 60),
            (Sheet { rows: Some(1), ..wide }, (3 * 6 + 4, 4), (16, 0), 60),
            (Sheet { frame_width: 3, ..wide }, (3 * 3 + 4, 3 * 2 + 4), (5, 4), 40),
        ] {
            let png = contact_sheet(&frames(7), [7, 4, 6, 3], sheet).unwrap();
            let picture = image::load_from_memory(&png).unwrap().into_rgb8();
            assert_eq!(picture.dimensions(), size, "{sheet:?}");
            assert_eq!(picture.get_pixel(corner.0, corner.1).0, [value; 3], "{sheet:?}");
        }
    }

    #[test]
    fn what_is_no_rgb_is_refused() {
        for (length, shape) in [(71, [1, 4, 6, 3]), (96, [1, 4, 6, 4]), (0, [0, 4, 6, 3]), (0, [1, 0, 6, 3])] {
            assert!(contact_sheet(&vec![0; length], shape, Sheet::default()).is_err(), "{shape:?}");
        }
    }
}
