//! Pictures from PNG, JPEG and WebP files, as RGB.
//!
//! Gray becomes RGB, alpha is dropped (colours as stored, as PIL's `convert("RGB")` does), 16 bits become 8. Rotation in
//! EXIF data is not applied.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use image::error::ImageError;
use image::{ImageFormat, ImageReader, Limits};

use super::{MAX_PIXELS, MediaError};
use crate::ImageInfo;

/// An RGB picture, row-major `[H, W, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}

/// Reads a picture file's header.
pub fn probe(path: &Path) -> Result<ImageInfo, MediaError> {
    let (format, reader) = open(path)?;
    let (width, height) = reader.into_dimensions().map_err(|e| broken(path, e))?;
    in_bounds(width, height).map_err(|reason| MediaError::broken(path, reason))?;
    Ok(ImageInfo { format: format.into(), width, height })
}

/// Decodes a picture file.
pub fn decode(path: &Path) -> Result<RgbImage, MediaError> {
    probe(path)?;
    let (_, reader) = open(path)?;
    decoded(reader).map_err(|e| broken(path, e))
}

/// Decodes a picture that is all of `bytes`, and tells its format; the error is a reason.
pub(super) fn decode_bytes(bytes: &[u8]) -> Result<(&'static str, RgbImage), String> {
    let reader = || ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string());
    let format = format(&reader()?).ok_or(UNKNOWN)?;
    // The decoder fills what is missing with gray and says nothing.
    if format == "jpeg" && !jpeg_is_whole(bytes) {
        return Err("the JPEG picture ends too early".into());
    }
    let (width, height) = reader()?.into_dimensions().map_err(|error| error.to_string())?;
    in_bounds(width, height)?;
    Ok((format, decoded(reader()?).map_err(|error| error.to_string())?))
}

/// Does the end of the picture follow its last scan? Within a scan, the marker's bytes do not occur.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xFF, marker]);
    last(0xD9).is_some_and(|end| last(0xDA).is_some_and(|scan| scan < end))
}

fn decoded<R: BufRead + Seek>(mut reader: ImageReader<R>) -> Result<RgbImage, ImageError> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 16);
    reader.limits(limits);
    let rgb = reader.decode()?.into_rgb8();
    let (width, height) = rgb.dimensions();
    Ok(RgbImage { width, height, pixels: rgb.into_raw() })
}

const UNKNOWN: &str = "this is no PNG, JPEG or WebP picture; convert it to one of them";

fn format<R: BufRead + Seek>(reader: &ImageReader<R>) -> Option<&'static str> {
    match reader.format() {
        Some(ImageFormat::Png) => Some("png"),
        Some(ImageFormat::Jpeg) => Some("jpeg"),
        Some(ImageFormat::WebP) => Some("webp"),
        _ => None,
    }
}

/// The format is told by the file's first bytes, not by its name.
fn open(path: &Path) -> Result<(&'static str, ImageReader<BufReader<File>>), MediaError> {
    let file = File::open(path).map_err(|e| MediaError::io(path, e))?;
    if file.metadata().map_err(|e| MediaError::io(path, e))?.len() == 0 {
        return Err(MediaError::broken(path, "the file is empty"));
    }
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|e| MediaError::io(path, e))?;
    match format(&reader) {
        Some(format) => Ok((format, reader)),
        None => Err(MediaError::broken(path, UNKNOWN)),
    }
}

/// The error is a reason.
pub(super) fn in_bounds(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("a picture of {width} x {height} pixels is beyond what is decoded ({MAX_PIXELS})"));
    }
    Ok(())
}

fn broken(path: &Path, error: ImageError) -> MediaError {
    match error {
        ImageError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            MediaError::io(path, source)
        }
        error => MediaError::broken(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgba};

    #[test]
    fn gray_and_alpha_become_rgb() {
        let folder = tempfile::tempdir().unwrap();
        let gray = DynamicImage::ImageLuma8(ImageBuffer::from_pixel(3, 2, Luma([9])));
        let gray_alpha = DynamicImage::ImageLumaA8(ImageBuffer::from_pixel(3, 2, LumaA([9, 0])));
        let alpha = DynamicImage::ImageRgba8(ImageBuffer::from_pixel(3, 2, Rgba([9, 9, 9, 100])));
        let deep = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(3, 2, Luma([9 * 257])));
        for (name, picture) in [("a.png", gray), ("b.png", gray_alpha), ("c.webp", alpha), ("d.png", deep)] {
            let path = folder.path().join(name);
            picture.save(&path).unwrap();
            let rgb = decode(&path).unwrap();
            assert_eq!((rgb.width, rgb.height, rgb.pixels), (3, 2, vec![9; 18]), "{name}");
            assert_eq!(probe(&path).unwrap().format, name[2..]);
        }
    }

    #[test]
    fn the_content_tells_the_format_and_damage_has_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let check = |bytes: &[u8], part: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = decode(&path).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.is_transient(), "{error}");
        };
        check(b"", "the file is empty");
        check(b"no picture at all", "this is no PNG, JPEG or WebP picture");

        let jpeg = folder.path().join("picture.jpg");
        ImageBuffer::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 5, 77])).save(&jpeg).unwrap();
        let bytes = std::fs::read(&jpeg).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(probe(&path).unwrap().format, "jpeg");
        check(&bytes[..60], "");
    }
}
