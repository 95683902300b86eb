//! MP4 with H.264, read in process: container by [`super::mp4`], pictures by the crate `rust_h264`.
//!
//! The order in which frames are shown comes from the container, not from the stream. Reading starts only at pictures
//! after which nothing refers back (IDR), so that every frame is exact wherever reading began.
//! The decoder reports damage in the first slice of a picture only, and leaves macroblocks that it never reached at zero.
//! [`unreached`] finds those, so that a lost or damaged later slice, or one that ends early, is an error as well.
//! Not seen: damage that decodes to other valid pictures (H.264 has no checksum), and, in monochrome, unreached rows; see
//! also [`H264Reader::hides_damage`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rust_h264::decoder::{ChromaFormat, Decoder, Frame};
use rust_h264::nal::{NalUnit, NalUnitType, parse_avcc, parse_avcc_config};

use super::mp4::{self, Found, Track, read_at};
use super::sps::{self, Sps};
use super::{MAX_PIXELS, Matrix, MediaError, Picture, PixelFormat, Plane, Range};
use crate::VideoInfo;

/// What a file turned out to be.
pub(super) enum Opened {
    Here(VideoInfo, Box<H264Reader>),
    /// What it is, for a message.
    Elsewhere(String),
}

/// An open file and, once something was read, a decoder somewhere in it.
pub(super) struct H264Reader {
    path: PathBuf,
    file: File,
    track: Track,
    length_size: usize,
    sps: Sps,
    matrix: Matrix,
    range: Range,
    hides_damage: bool,
    running: Option<Running>,
}

struct Running {
    decoder: Decoder,
    /// The next sample to decode.
    next: usize,
    /// Frames that came out of the decoder but may still be asked for by the next read: the last wanted one (clips share
    /// their boundary frame) and those shown after it. At most as many as B-frames can be reordered.
    kept: BTreeMap<u32, Picture>,
    /// Picture parameter sets by number: whether slices that name them are coded arithmetically.
    is_arithmetic: BTreeMap<u32, bool>,
    /// Places in the stream's own order of showing, to frames by the container's: see [`Running::check_order`].
    order: BTreeMap<i32, u32>,
}

pub(super) fn open(path: &Path) -> Result<Opened, MediaError> {
    let mut file = File::open(path).map_err(|e| MediaError::io(path, e))?;
    let track = match mp4::read_index(path, &mut file)? {
        Found::Track(track) => track,
        Found::Elsewhere(what) => return Ok(Opened::Elsewhere(what)),
    };
    let broken = |reason: &str| MediaError::broken(path, reason);
    let length_size = usize::from(track.avcc.get(4).copied().unwrap_or(0) & 3) + 1;
    let config = parse_avcc_config(&track.avcc).map_err(broken)?;
    let hides_damage =
        !config.pps_nals.iter().all(|set| sps::coding(&set.rbsp).is_some_and(|(_, arithmetic)| arithmetic));
    let sps = match first_sps(&track.avcc) {
        Some(nal) => sps::parse(nal).map_err(broken)?,
        None => return Ok(Opened::Elsewhere("H.264 with its parameters inside the stream".into())),
    };
    if sps.coded[0].saturating_mul(sps.coded[1]) > MAX_PIXELS || sps.width == 0 || sps.height == 0 {
        let [width, height] = sps.coded;
        return Err(broken(&format!(
            "pictures of {width} x {height} pixels are beyond what is decoded ({MAX_PIXELS})"
        )));
    }
    if let Some(what) = not_embedded(&sps) {
        return Ok(Opened::Elsewhere(what));
    }
    let largest = 4 * sps.coded[0] * sps.coded[1] + OTHER_BYTES;
    if let Some((at, sample)) = track.samples.iter().enumerate().find(|(_, sample)| u64::from(sample.size) > largest) {
        let (size, [width, height]) = (sample.size, sps.coded);
        return Err(broken(&format!(
            "sample {at} has {size} bytes, more than a picture of {width} x {height} pixels can take; the file is damaged"
        )));
    }
    let matrix = sps.matrix.or(track.matrix).unwrap_or(Matrix::Bt601);
    // As ffmpeg has it, grey alone is full range unless the file says otherwise.
    let unstated = if sps.chroma.is_some() { Range::Limited } else { Range::Full };
    let range = sps.range.or(track.range).unwrap_or(unstated);
    let info = describe(&track, &sps);
    let path = path.to_owned();
    let mut reader = H264Reader { path, file, track, length_size, sps, matrix, range, hides_damage, running: None };
    let first = reader.sample(0)?;
    let is_later_slice = |nal: &NalUnit| {
        // A slice that begins with another macroblock than the first has a 0 for its first bit.
        let is_slice = matches!(nal.nal_unit_type, NalUnitType::Slice | NalUnitType::SliceIdr);
        is_slice && nal.rbsp.first().is_some_and(|byte| byte & 0x80 == 0)
    };
    reader.hides_damage |= parse_avcc(&first, length_size).iter().any(is_later_slice);
    if !reader.is_idr(0)? {
        return Ok(Opened::Elsewhere("H.264 that does not begin with a keyframe".into()));
    }
    Ok(Opened::Here(info, Box::new(reader)))
}

/// What a sample may hold beside its picture: parameter sets and messages. Uncompressed pictures of 4:2:2 and 10 bits take
/// 2.5 bytes per pixel, and escapes half as much again.
const OTHER_BYTES: u64 = 1 << 20;

/// Why the embedded decoder does not take a stream, if so.
fn not_embedded(sps: &Sps) -> Option<String> {
    let chroma = match sps.chroma {
        Some(PixelFormat::I444) => return Some("H.264 with 4:4:4 chroma".into()),
        _ => sps.bits,
    };
    if !matches!(chroma, 8 | 10) {
        return Some(format!("H.264 with {} bits", sps.bits));
    }
    if !sps.plain {
        return Some("H.264 with a lossless or mixed-depth profile".into());
    }
    (sps.profile == 88).then(|| "H.264 Extended profile".into())
}

fn describe(track: &Track, sps: &Sps) -> VideoInfo {
    let frames = track.shown.len() as u32;
    let timescale = u64::from(track.timescale);
    let (fps_num, fps_den) = reduced(timescale * u64::from(frames), track.ticks);
    VideoInfo {
        container: "mp4".into(),
        codec: "h264".into(),
        width: sps.width,
        height: sps.height,
        fps_num,
        fps_den,
        frames,
        duration_s: track.ticks as f64 / timescale as f64,
        decoder: "h264".into(),
        bad_frames: 0,
    }
}

/// A fraction with both parts below 2^32. Unknown rates are 24, as in VideoWorld 2.
pub(crate) fn reduced(mut num: u64, mut den: u64) -> (u32, u32) {
    if num == 0 || den == 0 {
        return (24, 1);
    }
    let (mut a, mut b) = (num, den);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (num, den) = (num / a, den / a);
    while num > u64::from(u32::MAX) || den > u64::from(u32::MAX) {
        (num, den) = ((num / 2).max(1), (den / 2).max(1));
    }
    (num as u32, den as u32)
}

/// The first sequence parameter set of a decoder configuration record.
fn first_sps(avcc: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*avcc.get(6)?, *avcc.get(7)?]));
    (avcc.get(5)? & 31 > 0).then_some(())?;
    avcc.get(8..8 + length)
}

impl H264Reader {
    /// The decoder checks little in later slices of a picture, and in slices that are not coded arithmetically: of flipped
    /// bits that ffmpeg sees it misses about 5 in 6 and about half, else 1 in 30.
    pub(super) fn hides_damage(&self) -> bool {
        self.hides_damage
    }

    /// See [`super::VideoReader::read`]; `wanted` are frames of the video.
    pub(super) fn read(
        &mut self,
        mut wanted: BTreeSet<u32>,
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        let Some(&last) = wanted.last() else { return Ok(()) };
        if let Some(running) = &self.running {
            for (&frame, picture) in &running.kept {
                if wanted.remove(&frame) {
                    sink(frame, picture)?;
                }
            }
        }
        let mut places: Vec<usize> = wanted.iter().map(|&frame| self.track.shown[frame as usize] as usize).collect();
        places.sort_unstable();
        for place in places {
            self.go_towards(place)?;
            self.decode_to(place, last, &wanted, sink)?;
        }
        if let Some(running) = &mut self.running {
            running.kept.retain(|&frame, _| frame >= last);
        }
        Ok(())
    }

    /// Makes the decoder stand at or before `place`, with nothing that `place` needs behind it.
    fn go_towards(&mut self, place: usize) -> Result<(), MediaError> {
        let next = self.running.as_ref().map(|running| running.next).filter(|&next| next <= place);
        // Starting anew only pays at a keyframe that lies ahead of where the decoder stands.
        let floor = next.map_or(0, |next| next + 1);
        let mut start = None;
        for candidate in (floor..=place).rev() {
            if (candidate == 0 || self.track.samples[candidate].is_sync) && self.is_idr(candidate)? {
                start = Some(candidate);
                break;
            }
        }
        let start = match (start, next) {
            (Some(start), _) => start,
            (None, Some(_)) => return Ok(()),
            (None, None) => return Err(self.broken(0, "is no keyframe any more; the file changed while it was read")),
        };
        let mut running = Running::new(start);
        let config = parse_avcc_config(&self.track.avcc).map_err(|e| MediaError::broken(&self.path, e))?;
        for nal in config.sps_nals.into_iter().chain(config.pps_nals) {
            running.decode(nal).map_err(|e| MediaError::broken(&self.path, format!("parameter set {e}")))?;
        }
        self.running = Some(running);
        Ok(())
    }

    /// Decodes up to the sample at `place` and hands over what is wanted on the way.
    fn decode_to(
        &mut self,
        place: usize,
        last: u32,
        wanted: &BTreeSet<u32>,
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        // Whatever goes wrong leaves a decoder in an unknown state behind; the next read starts anew.
        let Some(mut running) = self.running.take() else { return Ok(()) };
        while running.next <= place {
            let at = running.next;
            let (picture, turn) = self.decode_sample(&mut running, at)?;
            running.next += 1;
            let Some(frame) = self.track.samples[at].frame else { continue };
            if let Some(other) = running.check_order(turn, frame) {
                return Err(self.broken(
                    at,
                    &format!(
                        "is frame {frame} by the index, but the stream shows it on the other side of frame {other}; \
                         write the file anew from its stream"
                    ),
                ));
            }
            if wanted.contains(&frame) {
                sink(frame, &picture)?;
            }
            if frame >= last {
                running.kept.insert(frame, picture);
            }
        }
        self.running = Some(running);
        Ok(())
    }

    fn decode_sample(&mut self, running: &mut Running, at: usize) -> Result<(Picture, Turn), MediaError> {
        let bytes = self.sample(at)?;
        let mut frames = Vec::new();
        let mut starts_anew = false;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length =
                rest.get(..self.length_size).map(|b| b.iter().fold(0usize, |n, &byte| n << 8 | usize::from(byte)));
            let end = length.and_then(|length| length.checked_add(self.length_size)).filter(|&end| end <= rest.len());
            let Some(end) = end else {
                return Err(self.broken(at, "holds a unit that runs past the sample's end; the file is damaged"));
            };
            let (unit, after) = rest.split_at(end);
            rest = after;
            if unit.len() == self.length_size {
                return Err(self.broken(at, "holds an empty unit; the file is damaged"));
            }
            if unit[self.length_size] & 0x80 != 0 {
                return Err(self.broken(at, "holds a unit whose first bit is set; the file is damaged"));
            }
            self.check_same_size(at, &unit[self.length_size..])?;
            for nal in parse_avcc(unit, self.length_size) {
                starts_anew |= nal.nal_unit_type == NalUnitType::SliceIdr;
                frames.extend(running.decode(nal).map_err(|reason| self.broken(at, &reason))?);
            }
        }
        // One sample is one picture, so that nothing is lost by closing the picture here.
        frames.extend(guarded(|| running.decoder.flush()).map_err(|reason| self.broken(at, &reason))?);
        let count = frames.len();
        match <[Frame; 1]>::try_from(frames) {
            Ok([frame]) => {
                let place = frame.pic_order_cnt;
                // Beside an IDR picture, one that clears all references has place 0.
                let turn = Turn { place, starts_anew: starts_anew || place == 0 };
                Ok((self.picture(at, frame)?, turn))
            }
            Err(_) => Err(self.broken(at, &format!("gave {count} pictures instead of one"))),
        }
    }

    /// A stream that changes its size midway is refused; the check also keeps a damaged set from asking for memory.
    fn check_same_size(&self, at: usize, nal: &[u8]) -> Result<(), MediaError> {
        if nal[0] & 31 != 7 {
            return Ok(());
        }
        let sps = sps::parse(nal).map_err(|reason| self.broken(at, reason))?;
        if (sps.coded, sps.width, sps.height) == (self.sps.coded, self.sps.width, self.sps.height) {
            return Ok(());
        }
        let (from, to) = ([self.sps.width, self.sps.height], [sps.width, sps.height]);
        Err(self.broken(at, &format!("changes the size from {from:?} to {to:?}; cut the file there")))
    }

    fn picture(&self, at: usize, frame: Frame) -> Result<Picture, MediaError> {
        let (width, height) = (frame.width, frame.height);
        if (width, height) != (self.sps.width, self.sps.height) {
            let reason = format!("has {width} x {height} pixels instead of {} x {}", self.sps.width, self.sps.height);
            return Err(self.broken(at, &reason));
        }
        let format = match frame.chroma_format {
            ChromaFormat::Yuv420 => PixelFormat::I420,
            ChromaFormat::Yuv422 => PixelFormat::I422,
        };
        let chroma_stride = frame.chroma_width() as usize;
        let deep = frame.bit_depth > 8;
        let plane = |data: Vec<u8>, stride| Plane { data: if deep { rounded(&data) } else { data }, stride };
        let planes = [plane(frame.y, width as usize), plane(frame.u, chroma_stride), plane(frame.v, chroma_stride)];
        let picture = Picture { width, height, format, planes, matrix: self.matrix, range: self.range };
        match unreached(&picture).filter(|_| self.sps.chroma.is_some()) {
            None => Ok(picture),
            Some(row) => {
                Err(self.broken(at, &format!("leaves pixels of row {row} out; a part of the picture is damaged")))
            }
        }
    }

    /// Does the sample at `at` hold an IDR picture?
    fn is_idr(&mut self, at: usize) -> Result<bool, MediaError> {
        let bytes = self.sample(at)?;
        Ok(parse_avcc(&bytes, self.length_size).iter().any(|nal| nal.nal_unit_type == NalUnitType::SliceIdr))
    }

    fn sample(&mut self, at: usize) -> Result<Vec<u8>, MediaError> {
        let sample = self.track.samples[at];
        read_at(&mut self.file, sample.offset, sample.size as usize).map_err(|e| MediaError::io(&self.path, e))
    }

    fn broken(&self, at: usize, reason: &str) -> MediaError {
        let (of, byte) = (self.track.samples.len(), self.track.samples[at].offset);
        MediaError::broken(&self.path, format!("sample {at} of {of} at byte {byte} {reason}"))
    }
}

/// When a picture is shown, by the stream.
struct Turn {
    /// Its place among those since the last picture that starts anew.
    place: i32,
    starts_anew: bool,
}

/// Pictures whose order is compared; the stream can move a picture past 16 others at most.
const ORDERED: usize = 64;

/// Follows the data of arithmetically coded slices. Of a damaged slice, decoding may run past the end, where the decoder
/// would read zeros and go on; of ones, it reads that the slice ends, and [`unreached`] finds what is missing. A sound
/// slice is not read that far. As many as one macroblock can take.
const BEHIND_THE_END: [u8; 4096] = [0xff; 4096];

impl Running {
    fn new(next: usize) -> Running {
        let (kept, is_arithmetic, order) = Default::default();
        Running { decoder: Decoder::new(), next, kept, is_arithmetic, order }
    }

    /// Hands a unit to the decoder, which may give back the picture before; the error says why it cannot be decoded.
    fn decode(&mut self, mut nal: NalUnit<'_>) -> Result<Option<Frame>, String> {
        match nal.nal_unit_type {
            NalUnitType::Pps => self.is_arithmetic.extend(sps::coding(&nal.rbsp)),
            NalUnitType::Slice | NalUnitType::SliceIdr => {
                let set = sps::named_by_slice(&nal.rbsp).and_then(|id| self.is_arithmetic.get(&id));
                if set == Some(&true) {
                    nal.rbsp.to_mut().extend_from_slice(&BEHIND_THE_END);
                }
            }
            _ => {}
        }
        guarded(|| self.decoder.decode_nal(&nal))?.map_err(|error| format!("cannot be decoded: {error}"))
    }

    /// Compares the order of frames by the container with that of the stream; a frame that stands on the other side.
    fn check_order(&mut self, turn: Turn, frame: u32) -> Option<u32> {
        if turn.starts_anew {
            self.order.clear();
        }
        let before = self.order.range(..turn.place).next_back().filter(|(_, other)| **other > frame);
        let after = self.order.range(turn.place + 1..).next().filter(|(_, other)| **other < frame);
        let other = before.or(after).map(|(_, other)| *other);
        self.order.insert(turn.place, frame);
        if self.order.len() > ORDERED {
            self.order.pop_first();
        }
        other
    }
}

/// A row with pixels that the decoder never wrote. They are zero in all three planes, which is no colour: every RGB value
/// has more chroma or more luma. One place of each macroblock is looked at, where no filter reaches from its neighbours.
fn unreached(picture: &Picture) -> Option<usize> {
    let [luma, blue, red] = &picture.planes;
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (_, chroma_height) = picture.format.chroma_size(picture.width, picture.height);
    let chroma_rows = chroma_height as usize;
    (0..height).find(|&y| {
        let chroma_y = y * chroma_rows / height;
        let (luma, blue, red) =
            (&luma.data[y * luma.stride..], &blue.data[chroma_y * blue.stride..], &red.data[chroma_y * red.stride..]);
        (0..width)
            .step_by(16)
            .map(|x| (x + 8).min(width - 1))
            .any(|x| luma[x] == 0 && blue[x / 2] == 0 && red[x / 2] == 0)
    })
}

/// 10-bit samples, two bytes each, as 8 bits.
fn rounded(wide: &[u8]) -> Vec<u8> {
    let round = |pair: &[u8]| (u16::from_le_bytes([pair[0], pair[1]]).saturating_add(2) >> 2).min(255) as u8;
    wide.chunks_exact(2).map(round).collect()
}

/// Runs the decoder, which may panic on damaged streams; the error says so with the panic's message.
fn guarded<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("made the decoder fail: {text}")
    })
}
