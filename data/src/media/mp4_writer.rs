//! RGB frames to an MP4 that browsers play: H.264 (baseline, 4:2:0), index before the pictures, colour tagged.
//!
//! The file is built in memory (a minute of 480 x 832 at the default quality is about 20 MB) and has equal bytes for
//! equal input: one encoder thread, fixed quantizer, no clock. Colour is BT.601 of limited range, and says so.

use std::path::PathBuf;

use muxide::api::{Muxer, MuxerBuilder, VideoCodec};
use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode,
    VuiConfig,
};
use openh264::formats::YUVSlices;

use super::MediaError;

/// What kind of MP4 to write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mp4Options {
    /// Size of the pushed frames. The video has the next even size, at least 16; the last column and row are repeated.
    pub width: u32,
    pub height: u32,
    /// Frames per second, at most 1000.
    pub fps: f64,
    /// The quantizer, 12 (nearly lossless) to 51 (worst). 6 steps halve the size.
    pub quantizer: u8,
}

impl Mp4Options {
    /// With the default quality: no difference is seen at normal size.
    pub fn new(width: u32, height: u32, fps: f64) -> Self {
        Mp4Options { width, height, fps, quantizer: 20 }
    }
}

/// Takes frames one at a time.
pub struct Mp4Writer {
    options: Mp4Options,
    encoder: Encoder,
    muxer: Muxer<Vec<u8>>,
    planes: Planes,
    frames: u32,
}

impl Mp4Writer {
    /// An error if the options name a size or rate that H.264 cannot hold.
    pub fn new(options: Mp4Options) -> Result<Mp4Writer, MediaError> {
        let Mp4Options { width, height, fps, quantizer } = options;
        let (long, short) = (width.max(height), width.min(height));
        if short == 0 || long > 3840 || short > 2160 {
            return Err(failed(format!(
                "cannot encode frames of {width} x {height} pixels; 1 to 3840 x 2160 is possible"
            )));
        }
        if !(fps > 0.0 && fps <= 1000.0) {
            return Err(failed(format!(
                "cannot encode {fps} frames per second; more than 0 and at most 1000 is possible"
            )));
        }
        if !(12..=51).contains(&quantizer) {
            return Err(failed(format!("quantizer {quantizer} is not in 12 to 51")));
        }
        let planes = Planes::new(width as usize, height as usize);
        let config = EncoderConfig::new()
            // With a range of one value, rate control has nothing left to decide: the quantizer is fixed. Without rate
            // control the encoder would ignore the range.
            .rate_control_mode(RateControlMode::Bufferbased)
            .bitrate(BitRate::from_bps(100_000_000))
            .qp(QpRange::new(quantizer, quantizer))
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            // Two seconds: what a player must decode at most when a viewer jumps.
            .intra_frame_period(IntraFramePeriod::from_num_frames((fps * 2.0).ceil() as u32))
            .complexity(Complexity::High)
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .num_threads(1)
            .vui(VuiConfig::bt601());
        let encoder =
            Encoder::with_api_config(OpenH264API::from_source(), config).map_err(|e| failed(e.to_string()))?;
        let muxer = MuxerBuilder::new(Vec::new())
            .video(VideoCodec::H264, planes.width as u32, planes.height as u32, fps)
            .with_fast_start(true)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        Ok(Mp4Writer { options, encoder, muxer, planes, frames: 0 })
    }

    /// One frame, RGB, row-major `[H, W, 3]` in the options' size.
    pub fn push(&mut self, rgb: &[u8]) -> Result<(), MediaError> {
        let (width, height) = (self.options.width as usize, self.options.height as usize);
        if rgb.len() != width * height * 3 {
            return Err(failed(format!("a frame of {width} x {height} RGB pixels has {} bytes", rgb.len())));
        }
        self.planes.fill(rgb, width, height);
        let coded = self.encoder.encode(&self.planes.slices()).map_err(|e| failed(e.to_string()))?;
        let is_key = matches!(coded.frame_type(), FrameType::IDR | FrameType::I);
        let bytes = coded.to_vec();
        if bytes.is_empty() {
            return Err(failed(format!("the encoder left out frame {}", self.frames)));
        }
        let time_s = f64::from(self.frames) / self.options.fps;
        self.muxer.write_video(time_s, &bytes, is_key).map_err(|e| failed(e.to_string()))?;
        self.frames += 1;
        Ok(())
    }

    /// The MP4's bytes. An error if there was no frame.
    pub fn finish(mut self) -> Result<Vec<u8>, MediaError> {
        if self.frames == 0 {
            return Err(failed("an MP4 needs at least one frame".into()));
        }
        self.muxer.finish_in_place().map_err(|e| failed(e.to_string()))?;
        Ok(self.muxer.into_writer())
    }
}

fn failed(reason: String) -> MediaError {
    MediaError::Encode { path: PathBuf::from("MP4"), reason }
}

/// Y, U, V of one frame, at an even size.
struct Planes {
    width: usize,
    height: usize,
    y: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

/// BT.601, limited range, times 2^16: rows Y, U, V; columns R, G, B. U and V sum to 0, so that gray stays gray.
const WEIGHTS: [[i32; 3]; 3] = [[16829, 33039, 6416], [-9714, -19070, 28784], [28784, -24103, -4681]];

impl Planes {
    fn new(width: usize, height: usize) -> Planes {
        let (width, height) = (width.next_multiple_of(2).max(16), height.next_multiple_of(2).max(16));
        let chroma = vec![0; width / 2 * (height / 2)];
        Planes { width, height, y: vec![0; width * height], u: chroma.clone(), v: chroma }
    }

    /// Converts a frame, repeating its last column and row where the planes are larger. Chroma is the mean of 2 x 2.
    fn fill(&mut self, rgb: &[u8], width: usize, height: usize) {
        let pixel = |x: usize, y: usize| {
            let at = (y.min(height - 1) * width + x.min(width - 1)) * 3;
            [i32::from(rgb[at]), i32::from(rgb[at + 1]), i32::from(rgb[at + 2])]
        };
        let weighed = |weights: [i32; 3], rgb: [i32; 3]| -> i32 { weights.iter().zip(rgb).map(|(w, c)| w * c).sum() };
        for by in 0..self.height / 2 {
            for bx in 0..self.width / 2 {
                let mut sum = [0; 3];
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let (x, y) = (bx * 2 + dx, by * 2 + dy);
                    let rgb = pixel(x, y);
                    self.y[y * self.width + x] = (((weighed(WEIGHTS[0], rgb) + (1 << 15)) >> 16) + 16) as u8;
                    for (total, value) in sum.iter_mut().zip(rgb) {
                        *total += value;
                    }
                }
                let at = by * (self.width / 2) + bx;
                self.u[at] = (((weighed(WEIGHTS[1], sum) + (1 << 17)) >> 18) + 128) as u8;
                self.v[at] = (((weighed(WEIGHTS[2], sum) + (1 << 17)) >> 18) + 128) as u8;
            }
        }
    }

    fn slices(&self) -> YUVSlices<'_> {
        let half = self.width / 2;
        YUVSlices::new((&self.y, &self.u, &self.v), (self.width, self.height), (self.width, half, half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Matrix, Range, VideoReader};
    use crate::test_support::ffprobe_entries;

    /// A ramp that moves by one pixel per frame.
    fn frame(t: usize, width: usize, height: usize) -> Vec<u8> {
        let pixel = |i: usize| [(i % width * 3 + t) as u8, (i / width * 2) as u8, (40 + 5 * t) as u8];
        (0..width * height).flat_map(pixel).collect()
    }

    fn film(options: Mp4Options, frames: usize) -> Vec<u8> {
        let mut writer = Mp4Writer::new(options).unwrap();
        for t in 0..frames {
            writer.push(&frame(t, options.width as usize, options.height as usize)).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn known_colours() {
        let mut planes = Planes::new(16, 16);
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [81, 90, 240]),
            ([0, 255, 0], [145, 54, 34]),
            ([0, 0, 255], [41, 240, 110]),
        ] {
            planes.fill(&rgb.repeat(256), 16, 16);
            assert_eq!([planes.y[0], planes.u[0], planes.v[0]], yuv, "{rgb:?}");
        }
    }

    #[test]
    fn what_was_pushed_comes_back_nearly() {
        let options = Mp4Options { quantizer: 14, ..Mp4Options::new(33, 31, 12.5) };
        let bytes = film(options, 40);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.mp4");
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = VideoReader::open_with(&path, None).unwrap();
        let info = reader.info().clone();
        assert_eq!((info.width, info.height, info.frames, info.decoder.as_str()), (34, 32, 40, "h264"));
        assert_eq!((info.fps_num, info.fps_den, info.duration_s), (25, 2, 3.2));

        let wanted: Vec<u32> = (0..40).collect();
        let (mut seen, mut worst) = (0, 0);
        let mut planes = Planes::new(33, 31);
        reader
            .read(&wanted, &mut |t, picture| {
                planes.fill(&frame(t as usize, 33, 31), 33, 31);
                for (have, want) in picture.planes.iter().zip([&planes.y, &planes.u, &planes.v]) {
                    worst = have.data.iter().zip(want).map(|(a, b)| a.abs_diff(*b)).fold(worst, u8::max);
                }
                assert_eq!((picture.matrix, picture.range), (Matrix::Bt601, Range::Limited));
                seen += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, 40);
        assert!(worst <= 12, "a sample is off by {worst}");
    }

    #[test]
    fn equal_frames_give_equal_bytes_and_a_coarser_quantizer_fewer() {
        let options = Mp4Options::new(160, 128, 10.0);
        let bytes = film(options, 9);
        assert_eq!(bytes, film(options, 9));
        let coarse = film(Mp4Options { quantizer: 40, ..options }, 9);
        assert!(coarse.len() < bytes.len() * 2 / 3, "{} and {} bytes", coarse.len(), bytes.len());
        let find = |name: &[u8]| bytes.windows(4).position(|window| window == name).unwrap();
        assert!(find(b"moov") < find(b"mdat"), "players must read the whole file before they start");
    }

    #[test]
    fn ffprobe_agrees() {
        let folder = tempfile::tempdir().unwrap();
        for (frames, fps) in [(1, 30.0), (25, 10.0), (70, 24.0)] {
            let path = folder.path().join("film.mp4");
            std::fs::write(&path, film(Mp4Options::new(96, 64, fps), frames)).unwrap();
            let entries = "stream=codec_name,pix_fmt,width,height,color_range,color_space,nb_read_frames";
            let Some(said) = ffprobe_entries(&path, entries) else { return };
            let want = format!("h264|96|64|yuv420p|tv|smpte170m|{frames}");
            assert_eq!(said, want);
        }
    }

    #[test]
    fn impossible_options_are_refused() {
        let good = Mp4Options::new(64, 64, 10.0);
        for options in [
            Mp4Options { width: 0, ..good },
            Mp4Options { height: 5000, ..good },
            Mp4Options { fps: 0.0, ..good },
            Mp4Options { fps: f64::NAN, ..good },
            Mp4Options { quantizer: 3, ..good },
        ] {
            assert!(Mp4Writer::new(options).is_err(), "{options:?}");
        }
        assert!(Mp4Writer::new(good).unwrap().push(&[0; 5]).is_err());
        assert!(Mp4Writer::new(good).unwrap().finish().is_err());
    }
}
