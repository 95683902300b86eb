//! Every other video, through the `ffmpeg` and `ffprobe` programs as children.
//!
//! Found on PATH, or where `VW2_FFMPEG` says (a path to `ffmpeg`, with `ffprobe` beside it; a path that does not exist
//! means that there is none). `ffprobe` lists the packets' times, so that frames have numbers; `ffmpeg` writes raw planes
//! to a pipe. Planar 8-bit YUV comes through untouched; other layouts are converted to 8-bit YUV of limited range.
//! A child ends with its reader, and is killed when it gives nothing for [`SILENCE`].

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{MAX_PIXELS, Matrix, MediaError, Picture, PixelFormat, Plane, Range};
use crate::VideoInfo;

/// How long a child may stay silent.
pub(super) const SILENCE: Duration = Duration::from_secs(120);

/// How much of a child's complaints is kept.
const MAX_COMPLAINT_BYTES: usize = 4096;
const MAX_COMPLAINTS: usize = 4;

/// The containers that are opened. Left out are lists of other files, whose content no key would cover, still pictures, and
/// text, which ffmpeg would all read as video.
const CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,ogg,flv,live_flv,gif,asf,asf_o,mpeg,mpegts,mpegvideo,\
                          mpegtsraw,m4v,h264,hevc,vc1,av1,obu,ivf,mjpeg,mjpeg_2000,yuv4mpegpipe,nut,dv,mxf,gxf,rm,wtv,h263,\
                          h261,swf,nsv,nuv,vob,apng,ea,bink,smk,dirac,cavsvideo,evc,vvc";

/// The two programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) ffmpeg: PathBuf,
    pub(crate) ffprobe: PathBuf,
}

impl Programs {
    /// As the environment says.
    pub(crate) fn find() -> Option<Programs> {
        Self::find_in(std::env::var_os("VW2_FFMPEG"), std::env::var_os("PATH"))
    }

    fn find_in(named: Option<OsString>, path: Option<OsString>) -> Option<Programs> {
        let exe = |name: &str| format!("{name}{}", std::env::consts::EXE_SUFFIX);
        let both = |ffmpeg: PathBuf| {
            let ffprobe = ffmpeg.with_file_name(exe("ffprobe"));
            (ffmpeg.is_file() && ffprobe.is_file()).then_some(Programs { ffmpeg, ffprobe })
        };
        match named {
            Some(named) => both(PathBuf::from(named)),
            None => std::env::split_paths(&path?).find_map(|folder| both(folder.join(exe("ffmpeg")))),
        }
    }
}

/// A video that ffmpeg reads, and a child somewhere in it once something was read.
pub(super) struct FfmpegReader {
    path: PathBuf,
    programs: Programs,
    stream: Stream,
    running: Option<Running>,
}

/// What ffprobe tells of the first video stream.
#[derive(Debug, Default)]
struct Stream {
    container: String,
    codec: String,
    width: u32,
    height: u32,
    pixels: String,
    range: String,
    matrix: String,
    mean_rate: (u64, u64),
    time_base: (u64, u64),
    /// When the file's time begins, in seconds.
    start_s: f64,
    duration_s: f64,
    /// Presentation times of the frames in units of `time_base`, ascending; with a mark on keyframes.
    times: Vec<(i64, bool)>,
    /// Every packet has a time, so that frames can be sought.
    timed: bool,
}

pub(super) fn open(path: &Path, programs: Programs) -> Result<(VideoInfo, FfmpegReader), MediaError> {
    let stream = examine(path, &programs)?;
    let info = describe(&stream);
    Ok((info, FfmpegReader { path: path.to_owned(), programs, stream, running: None }))
}

fn describe(stream: &Stream) -> VideoInfo {
    let (fps_num, fps_den) = super::h264::reduced(stream.mean_rate.0, stream.mean_rate.1);
    let frames = stream.times.len() as u32;
    let by_rate = f64::from(frames) * f64::from(fps_den) / f64::from(fps_num);
    VideoInfo {
        container: stream.container.clone(),
        codec: stream.codec.clone(),
        width: stream.width,
        height: stream.height,
        fps_num,
        fps_den,
        frames,
        duration_s: if stream.duration_s > 0.0 { stream.duration_s } else { by_rate },
        decoder: "ffmpeg".into(),
        bad_frames: 0,
    }
}

/// Runs ffprobe over the whole file (it unpacks packets, and decodes nothing).
fn examine(path: &Path, programs: &Programs) -> Result<Stream, MediaError> {
    let entries = "stream=codec_name,width,height,pix_fmt,color_range,color_space,avg_frame_rate,time_base,duration\
                   :format=format_name,start_time,duration:packet=pts,flags";
    let mut command = Command::new(&programs.ffprobe);
    command.args(["-v", "error", "-format_whitelist", CONTAINERS, "-select_streams", "v:0"]);
    command.args(["-show_entries", entries, "-of", "compact"]).arg(as_file(path));
    let mut child = Running::start(path, command)?;
    let mut stream = Stream { timed: true, ..Stream::default() };
    let mut seen = false;
    let mut text = Vec::new();
    while let Some(bytes) = child.next(path)? {
        text.extend_from_slice(&bytes);
        let complete = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for line in text.drain(..complete).collect::<Vec<u8>>().split(|&byte| byte == b'\n') {
            seen |= stream.take(&String::from_utf8_lossy(line));
        }
    }
    let complaint = child.finish(path);
    let broken = |reason: String| MediaError::broken(path, reason);
    let why = |complaint: &str| if complaint.is_empty() { String::new() } else { format!(": {complaint}") };
    if !seen {
        return Err(broken(format!("no video that ffprobe knows{}", why(&complaint))));
    }
    if stream.times.is_empty() {
        return Err(broken(format!("the video stream has no frames{}", why(&complaint))));
    }
    if stream.width == 0 || stream.height == 0 || stream.pixels.is_empty() || stream.pixels == "unknown" {
        return Err(broken(format!("ffprobe finds no picture in it{}", why(&complaint))));
    }
    if u64::from(stream.width) * u64::from(stream.height) > MAX_PIXELS {
        let (width, height) = (stream.width, stream.height);
        return Err(broken(format!("pictures of {width} x {height} pixels are beyond what is decoded ({MAX_PIXELS})")));
    }
    // Of a damaged file ffprobe lists the packets that are left, complains, and calls that a success. Complaints in the
    // container's name mean lost packets; what a codec says while it guesses parameters may be harmless.
    if complaint.contains(&format!("[{}]", stream.container)) || complaint.contains("prematurely") {
        return Err(broken(format!("the file is damaged or was cut off; copy it again{}", why(&complaint))));
    }
    if u32::try_from(stream.times.len()).is_err() {
        return Err(broken("it has more than 2^32 frames".into()));
    }
    stream.times.sort_unstable();
    Ok(stream)
}

impl Stream {
    /// One line of ffprobe's compact form; true if it describes the stream.
    fn take(&mut self, line: &str) -> bool {
        let mut parts = line.trim().split('|');
        let section = parts.next().unwrap_or_default();
        let values: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let value = |key: &str| values.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v);
        match section {
            "packet" => {
                let flags = value("flags");
                // A packet outside the edit list is decoded and not shown.
                if !flags.contains('D') {
                    let time = value("pts").parse();
                    self.timed &= time.is_ok();
                    self.times.push((time.unwrap_or(i64::MAX), flags.contains('K')));
                }
            }
            "stream" => {
                self.codec = value("codec_name").to_owned();
                self.width = value("width").parse().unwrap_or(0);
                self.height = value("height").parse().unwrap_or(0);
                self.pixels = value("pix_fmt").to_owned();
                self.range = value("color_range").to_owned();
                self.matrix = value("color_space").to_owned();
                self.mean_rate = fraction(value("avg_frame_rate"));
                self.time_base = fraction(value("time_base"));
                self.duration_s = value("duration").parse().unwrap_or(self.duration_s);
                return true;
            }
            "format" => {
                self.container = value("format_name").to_owned();
                self.start_s = value("start_time").parse().unwrap_or(0.0);
                if self.duration_s <= 0.0 {
                    self.duration_s = value("duration").parse().unwrap_or(0.0);
                }
            }
            _ => {}
        }
        false
    }

    /// The pixel format to ask for, whether ffmpeg must convert, and how the result is read.
    fn layout(&self) -> Layout {
        let plain = [
            ("yuv420p", PixelFormat::I420, Range::Limited),
            ("yuv422p", PixelFormat::I422, Range::Limited),
            ("yuv444p", PixelFormat::I444, Range::Limited),
            ("yuvj420p", PixelFormat::I420, Range::Full),
            ("yuvj422p", PixelFormat::I422, Range::Full),
            ("yuvj444p", PixelFormat::I444, Range::Full),
        ];
        let matrix = match self.matrix.as_str() {
            "bt709" | "smpte240m" => Matrix::Bt709,
            "bt2020nc" | "bt2020c" => Matrix::Bt2020,
            _ => Matrix::Bt601,
        };
        if let Some(&(name, format, range)) = plain.iter().find(|(name, ..)| *name == self.pixels) {
            let range = if self.range == "pc" { Range::Full } else { range };
            return Layout { name, format, matrix, range, converts: false };
        }
        let is_yuv =
            ["yuv", "nv", "p0", "p2", "p4", "yuyv", "uyvy", "y2"].iter().any(|start| self.pixels.starts_with(start));
        let (name, format) = match () {
            () if self.pixels.starts_with("yuv444") || !is_yuv => ("yuv444p", PixelFormat::I444),
            () if self.pixels.contains("422") || self.pixels.starts_with("nv16") => ("yuv422p", PixelFormat::I422),
            () if self.pixels.starts_with("yuyv") || self.pixels.starts_with("uyvy") => ("yuv422p", PixelFormat::I422),
            () => ("yuv420p", PixelFormat::I420),
        };
        // What is RGB becomes BT.601, whatever the file calls its (unused) matrix.
        let matrix = if is_yuv { matrix } else { Matrix::Bt601 };
        Layout { name, format, matrix, range: Range::Limited, converts: true }
    }
}

struct Layout {
    name: &'static str,
    format: PixelFormat,
    matrix: Matrix,
    range: Range,
    converts: bool,
}

/// `30000/1001`; 0/0 where it is none.
fn fraction(text: &str) -> (u64, u64) {
    let parse = |(num, den): (&str, &str)| Some((num.parse().ok()?, den.parse().ok()?));
    text.split_once('/').and_then(parse).unwrap_or((0, 0))
}

/// Keeps a name from being read as an option or a protocol.
fn as_file(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

impl FfmpegReader {
    /// See [`super::VideoReader::read`]; `wanted` are frames of the video.
    pub(super) fn read(
        &mut self,
        wanted: BTreeSet<u32>,
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        for frame in wanted {
            // Whatever goes wrong leaves a child in an unknown state behind; the next read starts anew.
            let (mut child, picture) = match self.running.take() {
                Some(child) if child.last.as_ref().is_some_and(|(last, _)| *last == frame) => (child, None),
                Some(child) if child.next <= frame && self.key_before(frame) <= child.next => (child, Some(frame)),
                _ => (self.start_at(self.key_before(frame))?, Some(frame)),
            };
            if picture.is_some() {
                while child.next <= frame {
                    self.advance(&mut child)?;
                }
            }
            let (_, picture) = child.last.as_ref().expect("the loop above read a frame");
            sink(frame, picture)?;
            self.running = Some(child);
        }
        Ok(())
    }

    /// The frame at or before `frame` where a child may start.
    fn key_before(&self, frame: u32) -> u32 {
        // Only these containers are sure to seek to a keyframe at or before the time that is asked for.
        let seeks = ["matroska", "mov"].iter().any(|name| self.stream.container.contains(name));
        if !seeks || !self.stream.timed || self.stream.time_base.1 == 0 {
            return 0;
        }
        (0..=frame).rev().find(|&i| self.stream.times[i as usize].1).unwrap_or(0)
    }

    fn start_at(&self, frame: u32) -> Result<Running, MediaError> {
        let layout = self.stream.layout();
        let mut command = Command::new(&self.programs.ffmpeg);
        command.args(["-nostdin", "-v", "error", "-xerror", "-threads", "1", "-noautorotate"]);
        command.args(["-format_whitelist", CONTAINERS]);
        if frame > 0 {
            // Half a frame early: the frame itself is the first that is not left out.
            let (at, before) = (self.stream.times[frame as usize].0, self.stream.times[frame as usize - 1].0);
            let (num, den) = self.stream.time_base;
            let middle_s = (at as f64 + before as f64) / 2.0 * num as f64 / den as f64;
            command.args(["-ss", &format!("{:.6}", (middle_s - self.stream.start_s).max(0.0))]);
        }
        command.arg("-i").arg(as_file(&self.path)).args(["-map", "0:v:0", "-an", "-sn", "-dn"]);
        // ffmpeg would scale pictures of another size to that of the first; this filter fails instead.
        let (width, height) = (self.stream.width, self.stream.height);
        let mut filters = format!("crop=w=if(eq(iw\\,{width})*eq(ih\\,{height})\\,iw\\,-1):h=ih:x=0:y=0:exact=1");
        if layout.converts {
            let matrix = match layout.matrix {
                Matrix::Bt601 => "bt601",
                Matrix::Bt709 => "bt709",
                Matrix::Bt2020 => "bt2020",
            };
            filters += &format!(
                ",scale=out_range=limited:out_color_matrix={matrix}:flags=bicubic+accurate_rnd+full_chroma_int"
            );
        }
        command.args(["-vf", &filters]);
        command.args(passthrough(&self.programs)).args(["-f", "rawvideo", "-pix_fmt", layout.name, "-"]);
        let mut running = Running::start(&self.path, command)?;
        running.next = frame;
        Ok(running)
    }

    /// Takes the next frame from the child.
    fn advance(&self, child: &mut Running) -> Result<(), MediaError> {
        let layout = self.stream.layout();
        let (width, height) = (self.stream.width, self.stream.height);
        let (chroma_width, chroma_height) = layout.format.chroma_size(width, height);
        let sizes = [(width, height), (chroma_width, chroma_height), (chroma_width, chroma_height)];
        let mut planes = Vec::with_capacity(3);
        for (width, height) in sizes {
            let mut data = vec![0; width as usize * height as usize];
            if !child.fill(&self.path, &mut data)? {
                let (got, of) = (child.next, self.stream.times.len());
                let complaint = child.finish(&self.path);
                let why = if complaint.is_empty() { "it gave no reason".into() } else { complaint };
                let reason = format!("the file lists {of} frames, but ffmpeg gave none after frame {got}: {why}");
                return Err(MediaError::broken(&self.path, reason));
            }
            planes.push(Plane { data, stride: width as usize });
        }
        let planes: [Plane; 3] = planes.try_into().expect("one plane for each of three sizes");
        let Layout { format, matrix, range, .. } = layout;
        child.last = Some((child.next, Picture { width, height, format, planes, matrix, range }));
        child.next += 1;
        Ok(())
    }
}

/// Complaints without what differs from run to run and from copy to copy, addresses and the file's name, and each once.
fn on_one_line(complaints: &str, file: &str) -> String {
    let mut told: Vec<String> = Vec::new();
    for line in complaints.lines() {
        let line = line.trim().replace(&format!("{file}: "), "");
        let line = match line.split_once(" @ 0x") {
            Some((name, rest)) => format!("{name}{}", rest.trim_start_matches(|c: char| c.is_ascii_hexdigit())),
            None => line,
        };
        if !line.is_empty() && !line.starts_with("Last message repeated") && !told.contains(&line) {
            told.push(line);
        }
    }
    let left_out = told.len().saturating_sub(MAX_COMPLAINTS);
    told.truncate(MAX_COMPLAINTS);
    if left_out > 0 {
        told.push(format!("and {left_out} more"));
    }
    told.join("; ")
}

/// The option that neither drops nor repeats frames. It was renamed in version 5.1; the program is asked once.
fn passthrough(programs: &Programs) -> [&'static str; 2] {
    static IS_NEW: OnceLock<bool> = OnceLock::new();
    let is_new = *IS_NEW.get_or_init(|| {
        let help = Command::new(&programs.ffmpeg).args(["-hide_banner", "-h", "long"]).stdin(Stdio::null()).output();
        help.is_ok_and(|output| output.stdout.windows(8).any(|window| window == b"fps_mode"))
    });
    if is_new { ["-fps_mode", "passthrough"] } else { ["-vsync", "passthrough"] }
}

/// A child, the threads that empty its pipes, and what came out last.
struct Running {
    child: Child,
    output: Option<Receiver<std::io::Result<Vec<u8>>>>,
    /// A piece of output of which a part was taken.
    piece: Vec<u8>,
    taken: usize,
    complaints: Option<JoinHandle<Vec<u8>>>,
    /// The frame that comes next.
    next: u32,
    last: Option<(u32, Picture)>,
}

impl Running {
    fn start(path: &Path, mut command: Command) -> Result<Running, MediaError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |what: String| MediaError::Ffmpeg { path: path.to_owned(), reason: what };
        let program = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("ffmpeg")).to_owned();
        let mut child = command.spawn().map_err(|e| failed(format!("cannot start `{}`: {e}", program.display())))?;
        let mut stdout = child.stdout.take().expect("stdout was asked for as a pipe");
        let stderr = child.stderr.take().expect("stderr was asked for as a pipe");
        // At most four pieces wait, so that a child does not run ahead of its reader.
        let (send, output) = sync_channel(4);
        std::thread::spawn(move || {
            loop {
                let mut piece = vec![0; 1 << 18];
                let read = stdout.read(&mut piece);
                let end = !matches!(read, Ok(1..));
                let sent = send.send(read.map(|length| {
                    piece.truncate(length);
                    piece
                }));
                if end || sent.is_err() {
                    break;
                }
            }
        });
        let complaints = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while matches!(lines.by_ref().take(MAX_COMPLAINT_BYTES as u64).read_until(b'\n', &mut line), Ok(1..)) {
                if kept.len() + line.len() <= MAX_COMPLAINT_BYTES {
                    kept.append(&mut line);
                }
                line.clear();
            }
            kept
        });
        let complaints = Some(complaints);
        Ok(Running { child, output: Some(output), piece: Vec::new(), taken: 0, complaints, next: 0, last: None })
    }

    /// The next piece of output; `None` at its end.
    fn next(&mut self, path: &Path) -> Result<Option<Vec<u8>>, MediaError> {
        let Some(output) = &self.output else { return Ok(None) };
        match output.recv_timeout(SILENCE) {
            Ok(Ok(piece)) if piece.is_empty() => Ok(None),
            Ok(Ok(piece)) => Ok(Some(piece)),
            Ok(Err(error)) => Err(MediaError::io(path, error)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let reason = format!("ffmpeg gave nothing for {} s", SILENCE.as_secs());
                Err(MediaError::Ffmpeg { path: path.to_owned(), reason })
            }
        }
    }

    /// Fills `target` from the output; false if the output ends before.
    fn fill(&mut self, path: &Path, target: &mut [u8]) -> Result<bool, MediaError> {
        let mut at = 0;
        while at < target.len() {
            if self.taken == self.piece.len() {
                match self.next(path)? {
                    Some(piece) => (self.piece, self.taken) = (piece, 0),
                    None => return Ok(false),
                }
            }
            let length = (target.len() - at).min(self.piece.len() - self.taken);
            target[at..at + length].copy_from_slice(&self.piece[self.taken..self.taken + length]);
            (at, self.taken) = (at + length, self.taken + length);
        }
        Ok(true)
    }

    /// Ends the child and gives its complaints, on one line.
    fn finish(&mut self, path: &Path) -> String {
        self.end();
        let kept = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        on_one_line(&String::from_utf8_lossy(&kept), &as_file(path).to_string_lossy())
    }

    fn end(&mut self) {
        // Dropping the receiver lets the thread that empties the pipe end; killing a child that has ended does nothing.
        self.output = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_program_wins_and_needs_its_companion() {
        let folder = tempfile::tempdir().unwrap();
        let (exe, here) = (std::env::consts::EXE_SUFFIX, folder.path());
        let ffmpeg = here.join(format!("ffmpeg{exe}"));
        std::fs::write(&ffmpeg, "").unwrap();
        let path = Some(here.as_os_str().to_owned());
        assert_eq!(Programs::find_in(None, path.clone()), None, "no ffprobe beside it");
        std::fs::write(here.join(format!("ffprobe{exe}")), "").unwrap();
        assert_eq!(Programs::find_in(None, path.clone()).unwrap().ffmpeg, ffmpeg);
        assert_eq!(Programs::find_in(Some(ffmpeg.clone().into()), None).unwrap().ffmpeg, ffmpeg);
        assert_eq!(Programs::find_in(Some("/nowhere/ffmpeg".into()), path), None);
        assert_eq!(Programs::find_in(None, None), None);
    }

    #[test]
    fn complaints_are_the_same_in_every_run() {
        let text = "[hevc @ 0x557ef01a65c0] no ref 1\n    Last message repeated 1 times\n[hevc @ 0x55ab] no ref 1\n\
                    file:a/b.ts: corrupt\n";
        assert_eq!(on_one_line(text, "file:a/b.ts"), "[hevc] no ref 1; corrupt");
        let many: String = (0..9).map(|i| format!("complaint {i}\n")).collect();
        assert!(on_one_line(&many, "x").ends_with("complaint 3; and 5 more"));
    }

    #[test]
    fn what_is_converted_and_what_is_not() {
        for (pixels, range, want, full) in [
            ("yuv420p", "tv", ("yuv420p", false), Range::Limited),
            ("yuv420p", "pc", ("yuv420p", false), Range::Full),
            ("yuvj420p", "pc", ("yuvj420p", false), Range::Full),
            ("yuv444p", "", ("yuv444p", false), Range::Limited),
            ("yuv420p10le", "pc", ("yuv420p", true), Range::Limited),
            ("yuv422p10le", "tv", ("yuv422p", true), Range::Limited),
            ("p010le", "tv", ("yuv420p", true), Range::Limited),
            ("yuyv422", "tv", ("yuv422p", true), Range::Limited),
            ("yuva444p12le", "tv", ("yuv420p", true), Range::Limited),
            ("gbrp", "pc", ("yuv444p", true), Range::Limited),
            ("pal8", "", ("yuv444p", true), Range::Limited),
            ("gray", "pc", ("yuv444p", true), Range::Limited),
        ] {
            let layout = Stream { pixels: pixels.into(), range: range.into(), ..Stream::default() }.layout();
            assert_eq!(((layout.name, layout.converts), layout.range), (want, full), "{pixels} {range}");
        }
    }
}
