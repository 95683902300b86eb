//! `videos`: one row per video file, from its header alone.

use arrow::array::{Float64Array, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::columns::{Columns, field, one, one_row, one_string, schema};
use crate::{Result, media};

/// What a video file's header says; see [`crate::media::probe`].
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// `mp4`, `pickle` (an episode), or what ffprobe calls the format.
    pub container: String,
    /// `h264`, what ffprobe calls the codec, or how an episode's pictures are kept: `jpeg`, `png`, `webp` or `raw`.
    pub codec: String,
    /// Shown width in pixels, after cropping; rotation in the header is not applied.
    pub width: u32,
    /// Shown height in pixels.
    pub height: u32,
    /// Mean frames per second, as a reduced fraction.
    pub fps_num: u32,
    pub fps_den: u32,
    /// Frames that a player shows; they are numbered from 0 in the order in which they are shown.
    pub frames: u32,
    pub duration_s: f64,
    /// Who decodes the file here: `h264` and `image` (embedded), or `ffmpeg`. Decoders may differ in bits.
    pub decoder: String,
    /// Frames of the file that cannot be read, and are left out and not counted: pictures of an episode. A video with one
    /// is rejected as a whole.
    pub bad_frames: u32,
}

impl VideoInfo {
    /// Mean frames per second.
    pub fn fps(&self) -> f64 {
        f64::from(self.fps_num) / f64::from(self.fps_den)
    }

    /// The same frames at another rate, in steps of a thousandth.
    pub fn at_fps(self, fps: f64) -> VideoInfo {
        let (fps_num, fps_den) = media::reduced((fps * 1000.0).round() as u64, 1000);
        let duration_s = f64::from(self.frames) * f64::from(fps_den) / f64::from(fps_num);
        VideoInfo { fps_num, fps_den, duration_s, ..self }
    }
}

/// A checked batch of table `videos`.
#[derive(Clone, Copy)]
pub struct Videos<'a> {
    container: &'a StringArray,
    codec: &'a StringArray,
    width: &'a UInt32Array,
    height: &'a UInt32Array,
    fps_num: &'a UInt32Array,
    fps_den: &'a UInt32Array,
    frames: &'a UInt32Array,
    duration_s: &'a Float64Array,
    decoder: &'a StringArray,
    bad_frames: &'a UInt32Array,
}

impl<'a> Videos<'a> {
    pub const NAME: &'static str = "videos";

    pub fn schema() -> SchemaRef {
        schema(vec![
            field("container", DataType::Utf8),
            field("codec", DataType::Utf8),
            field("width", DataType::UInt32),
            field("height", DataType::UInt32),
            field("fps_num", DataType::UInt32),
            field("fps_den", DataType::UInt32),
            field("frames", DataType::UInt32),
            field("duration_s", DataType::Float64),
            field("decoder", DataType::Utf8),
            field("bad_frames", DataType::UInt32),
        ])
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Videos {
            container: columns.strings("container"),
            codec: columns.strings("codec"),
            width: columns.primitive::<UInt32Type>("width"),
            height: columns.primitive::<UInt32Type>("height"),
            fps_num: columns.primitive::<UInt32Type>("fps_num"),
            fps_den: columns.primitive::<UInt32Type>("fps_den"),
            frames: columns.primitive::<UInt32Type>("frames"),
            duration_s: columns.primitive::<Float64Type>("duration_s"),
            decoder: columns.strings("decoder"),
            bad_frames: columns.primitive::<UInt32Type>("bad_frames"),
        })
    }

    /// All columns of one row.
    pub fn info(&self, row: usize) -> VideoInfo {
        VideoInfo {
            container: self.container.value(row).to_owned(),
            codec: self.codec.value(row).to_owned(),
            width: self.width.value(row),
            height: self.height.value(row),
            fps_num: self.fps_num.value(row),
            fps_den: self.fps_den.value(row),
            frames: self.frames.value(row),
            duration_s: self.duration_s.value(row),
            decoder: self.decoder.value(row).to_owned(),
            bad_frames: self.bad_frames.value(row),
        }
    }

    pub fn row(info: &VideoInfo) -> Result<RecordBatch> {
        Ok(one_row(
            Self::schema(),
            vec![
                one_string(&info.container),
                one_string(&info.codec),
                one::<UInt32Type>(info.width),
                one::<UInt32Type>(info.height),
                one::<UInt32Type>(info.fps_num),
                one::<UInt32Type>(info.fps_den),
                one::<UInt32Type>(info.frames),
                one::<Float64Type>(info.duration_s),
                one_string(&info.decoder),
                one::<UInt32Type>(info.bad_frames),
            ],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let info = VideoInfo {
            container: "mp4".into(),
            codec: "h264".into(),
            width: 96,
            height: 64,
            fps_num: 30000,
            fps_den: 1001,
            frames: 33,
            duration_s: 1.1011,
            decoder: "ffmpeg".into(),
            bad_frames: 2,
        };
        let batch = Videos::row(&info).unwrap();
        assert_eq!(Videos::view(&batch).unwrap().info(0), info);
        assert!((info.fps() - 29.97).abs() < 0.001);
        let slow = info.at_fps(7.5);
        assert_eq!((slow.fps_num, slow.fps_den, slow.duration_s, slow.frames), (15, 2, 4.4, 33));
    }
}
