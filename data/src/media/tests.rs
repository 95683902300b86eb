//! Decoding against the ffmpeg program, on good files, odd files and damaged ones.

mod lying;
mod lying_media;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::test_support::{ffmpeg, ffprobe_entries, programs, samples, shared_data};

/// The planes of wanted frames, without padding.
fn read(reader: &mut VideoReader, wanted: &[u32]) -> BTreeMap<u32, Vec<u8>> {
    let mut pictures = BTreeMap::new();
    let mut sink = |frame, picture: &Picture| {
        assert!(pictures.insert(frame, packed(picture)).is_none(), "frame {frame} came twice");
        Ok(())
    };
    reader.read(wanted, &mut sink).unwrap();
    pictures
}

fn packed(picture: &Picture) -> Vec<u8> {
    let chroma = picture.format.chroma_size(picture.width, picture.height);
    let sizes = [(picture.width, picture.height), chroma, chroma];
    let rows = picture.planes.iter().zip(sizes).flat_map(|(plane, (width, height))| {
        (0..height as usize).flat_map(move |row| plane.data[row * plane.stride..][..width as usize].iter().copied())
    });
    rows.collect()
}

/// All frames by ffmpeg, in a pixel format.
fn reference(path: &Path, pixels: &str) -> Option<Vec<u8>> {
    let path = path.to_str().unwrap();
    ffmpeg(&["-noautorotate", "-i", path, "-f", "rawvideo", "-pix_fmt", pixels, "-fps_mode", "passthrough", "-"])
}

/// Every frame equals ffmpeg's, and there are equally many; false without ffmpeg.
fn check_equal(path: &Path, pixels: &str) -> bool {
    check_reader(path, pixels, VideoReader::open(path).unwrap())
}

fn check_reader(path: &Path, pixels: &str, mut reader: VideoReader) -> bool {
    let Some(want) = reference(path, pixels) else { return false };
    let frames = reader.info().frames;
    let have = read(&mut reader, &(0..frames).collect::<Vec<_>>());
    let size = have[&0].len();
    assert_eq!(want.len() / size, frames as usize, "{}: count of frames", path.display());
    for (frame, picture) in have {
        let want = &want[frame as usize * size..][..size];
        assert!(picture == want, "{}: frame {frame} differs from ffmpeg's", path.display());
    }
    true
}

/// A short clip made by ffmpeg.
fn made(folder: &Path, name: &str, options: &[&str]) -> Option<PathBuf> {
    let path = folder.join(name);
    let source = ["-f", "lavfi", "-i", "testsrc2=size=144x98:rate=25:duration=2.4"];
    ffmpeg(&[&source[..], options, &[path.to_str().unwrap()]].concat())?;
    Some(path)
}

const X264: &str = "-c:v libx264 -pix_fmt yuv420p -preset veryfast";

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn shipped_clips_equal_ffmpeg() {
    let paths = std::fs::read_dir(samples()).unwrap().map(|entry| entry.unwrap().path());
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "mp4")) {
        let info = probe(&path).unwrap();
        assert_eq!((info.width, info.height, info.frames, info.fps()), (96, 96, 33, 10.0), "{}", path.display());
        if !check_equal(&path, "yuv420p") {
            return;
        }
    }
}

#[test]
fn real_clips_equal_ffmpeg() {
    let Some(folder) = shared_data() else { return };
    for set in ["real_clips", "pusht/videos", "metaworld_push/videos"] {
        for entry in std::fs::read_dir(folder.join(set)).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(probe(&path).unwrap().decoder, "h264", "{}", path.display());
            if !check_equal(&path, "yuv420p") {
                return;
            }
        }
    }
}

#[test]
fn odd_h264_is_decoded_here_and_equals_ffmpeg() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options, pixels) in [
        ("bframes.mp4", "-bf 4 -b_strategy 0 -g 12", "yuv420p"),
        ("open_gop.mp4", "-bf 3 -g 10 -x264-params open-gop=1:keyint=10:min-keyint=5", "yuv420p"),
        ("baseline.mp4", "-profile:v baseline", "yuv420p"),
        ("slices.mp4", "-x264-params slices=4", "yuv420p"),
        ("interlaced.mp4", "-vf scale=144:96 -flags +ilme+ildct -x264-params tff=1", "yuv420p"),
        ("cavlc.mp4", "-x264-params cabac=0:8x8dct=0 -bf 2", "yuv420p"),
        ("weighted.mp4", "-x264-params weightp=2:weightb=1:ref=6 -bf 3", "yuv420p"),
        ("edit_list.mp4", "-ss 0.5 -t 1 -bf 2", "yuv420p"),
        ("variable_rate.mp4", "-vf select=not(mod(n\\,3))+lt(n\\,20) -fps_mode vfr", "yuv420p"),
        ("faststart.mp4", "-movflags +faststart", "yuv420p"),
        ("quicktime.mov", "-bf 2", "yuv420p"),
        ("422.mp4", "-pix_fmt yuv422p -bf 2", "yuv422p"),
        ("full_range.mp4", "-pix_fmt yuvj420p", "yuvj420p"),
    ] {
        let Some(path) = made(folder.path(), name, &[words(X264), words(options)].concat()) else { return };
        let reader = VideoReader::open_with(&path, None).unwrap();
        assert_eq!(reader.info().decoder, "h264", "{name}");
        check_reader(&path, pixels, reader);
        // Where the ffmpeg program has to look for damage, it gives the same.
        let hides = ["baseline.mp4", "slices.mp4", "cavlc.mp4"].contains(&name);
        assert_eq!(probe(&path).unwrap().decoder, if hides { "ffmpeg" } else { "h264" }, "{name}");
        check_equal(&path, pixels);
    }
    // A copy that starts between keyframes: the packets before are decoded, and left out by the edit list.
    let source = folder.path().join("bframes.mp4");
    let copy = folder.path().join("cut.mp4");
    ffmpeg(&["-ss", "0.7", "-i", source.to_str().unwrap(), "-c", "copy", copy.to_str().unwrap()]).unwrap();
    let (whole, cut) = (probe(&source).unwrap(), probe(&copy).unwrap());
    assert!(cut.frames < whole.frames - 12, "{} of {} frames", cut.frames, whole.frames);
    check_equal(&copy, "yuv420p");
}

#[test]
fn ten_bits_are_rounded_to_eight() {
    let folder = tempfile::tempdir().unwrap();
    let options = [words(X264), words("-pix_fmt yuv420p10le -bf 2")].concat();
    let Some(path) = made(folder.path(), "deep.mp4", &options) else { return };
    let mut reader = VideoReader::open(&path).unwrap();
    assert_eq!(reader.info().decoder, "h264");
    let have = read(&mut reader, &[0, 7]);
    let want = reference(&path, "yuv420p10le").unwrap();
    for (frame, picture) in have {
        let want = want[frame as usize * picture.len() * 2..].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        assert!(picture.iter().zip(want).all(|(&have, want)| u16::from(have) == ((want + 2) / 4).min(255)), "{frame}");
    }
}

#[test]
fn everything_else_goes_through_ffmpeg() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options, pixels) in [
        ("hevc.mp4", "-c:v libx265 -pix_fmt yuv420p -x265-params log-level=none:keyint=15", "yuv420p"),
        ("vp9.webm", "-c:v libvpx-vp9 -pix_fmt yuv420p -deadline realtime -cpu-used 8 -g 20", "yuv420p"),
        ("h264.mkv", "-c:v libx264 -bf 3 -g 12 -pix_fmt yuv420p", "yuv420p"),
        (
            "open_gop.mkv",
            "-c:v libx264 -bf 3 -x264-params open-gop=1:keyint=10:min-keyint=5 -pix_fmt yuv420p",
            "yuv420p",
        ),
        ("444.mp4", "-c:v libx264 -pix_fmt yuv444p -g 12", "yuv444p"),
        ("odd.mkv", "-c:v ffv1 -pix_fmt yuv420p -vf scale=35:17", "yuv420p"),
        ("mpeg4.avi", "-c:v mpeg4 -g 12", "yuv420p"),
        ("mjpeg.mov", "-c:v mjpeg -pix_fmt yuvj422p", "yuvj422p"),
        ("stream.ts", "-c:v mpeg2video -bf 2", "yuv420p"),
        ("fragments.mp4", "-c:v libx264 -pix_fmt yuv420p -g 12 -movflags +frag_keyframe+empty_moov", "yuv420p"),
    ] {
        let Some(path) = made(folder.path(), name, &words(options)) else { return };
        let info = probe(&path).unwrap();
        assert_eq!((info.decoder.as_str(), info.fps()), ("ffmpeg", 25.0), "{name}");
        check_equal(&path, pixels);
        // Of the containers that are sought in, and of those that are not.
        if ["hevc.mp4", "vp9.webm", "h264.mkv", "open_gop.mkv", "stream.ts"].contains(&name) {
            check_order(&path);
        }
    }
}

#[test]
fn damage_in_what_ffmpeg_reads_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("hevc.mp4", "-c:v libx265 -pix_fmt yuv420p -x265-params log-level=none:keyint=15"),
        ("h264.mkv", "-c:v libx264 -bf 3 -g 12 -pix_fmt yuv420p"),
    ] {
        let Some(path) = made(folder.path(), name, &words(options)) else { return };
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 3000].fill(0x55);
        std::fs::write(&path, &bytes).unwrap();
        let read = VideoReader::open(&path).and_then(|mut reader| {
            let all: Vec<u32> = (0..reader.info().frames).collect();
            reader.read(&all, &mut |_, _| Ok(()))
        });
        let error = read.err().unwrap_or_else(|| panic!("{name} was read in spite of damage"));
        assert!(!error.is_transient() && error.to_string().contains(name), "{error}");

        std::fs::write(&path, &good[..middle]).unwrap();
        let error = probe(&path).unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("cut off"), "{error}");
    }
}

#[test]
fn other_layouts_become_eight_bit_yuv() {
    let folder = tempfile::tempdir().unwrap();
    for (pixels, format) in [
        ("rgb24", PixelFormat::I444),
        ("gray", PixelFormat::I444),
        ("yuv422p10le", PixelFormat::I422),
        ("nv12", PixelFormat::I420),
    ] {
        let options = ["-c:v", "rawvideo", "-pix_fmt", pixels];
        let Some(path) = made(folder.path(), "raw.nut", &options) else { return };
        let mut reader = VideoReader::open(&path).unwrap();
        let mut seen = Vec::new();
        let mut sink = |frame, picture: &Picture| {
            seen.push((frame, picture.format, picture.range, picture.width, picture.height));
            Ok(())
        };
        reader.read(&[59, 3], &mut sink).unwrap();
        assert_eq!(seen, [3, 59].map(|frame| (frame, format, Range::Limited, 144, 98)), "{pixels}");
    }
}

#[test]
fn reading_in_any_order_gives_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    check_order(&samples().join("ep_0000.mp4"));
    for (name, options) in [
        ("bframes.mp4", "-bf 4 -b_strategy 0 -g 12"),
        ("open_gop.mp4", "-bf 3 -x264-params open-gop=1:keyint=10:min-keyint=5"),
    ] {
        let Some(path) = made(folder.path(), name, &[words(X264), words(options)].concat()) else { return };
        check_order(&path);
    }
}

/// Clips with a shared boundary frame, single frames backwards, repeats and random sets, all with one reader.
fn check_order(path: &Path) {
    let mut reader = VideoReader::open(path).unwrap();
    let frames = reader.info().frames;
    let all = read(&mut reader, &(0..frames).collect::<Vec<_>>());
    let mut check = |wanted: &[u32]| {
        let have = read(&mut reader, wanted);
        for frame in wanted {
            assert!(have[frame] == all[frame], "{}: frame {frame} of {wanted:?}", path.display());
        }
        let mut distinct = wanted.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(have.len(), distinct.len());
    };
    for start in (0..frames - 8).step_by(8) {
        check(&(start..=start + 8).collect::<Vec<_>>());
    }
    for frame in (0..frames).rev().step_by(13) {
        check(&[frame]);
    }
    check(&[5, 5, 2, 30]);
    let mut seed = 0x2545_F491u32;
    for _ in 0..3 {
        let wanted: Vec<u32> = (0..4).map(|_| random(&mut seed) % frames).collect();
        check(&wanted);
    }
}

fn random(seed: &mut u32) -> u32 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    *seed
}

#[test]
fn colour_comes_from_the_stream_or_the_container_or_is_601() {
    let folder = tempfile::tempdir().unwrap();
    for (options, colour) in [
        ("", (Matrix::Bt601, Range::Limited)),
        ("-x264-params colormatrix=bt709", (Matrix::Bt709, Range::Limited)),
        ("-x264-params colormatrix=bt2020nc:fullrange=on", (Matrix::Bt2020, Range::Full)),
        ("-x264-params colormatrix=smpte170m:fullrange=off", (Matrix::Bt601, Range::Limited)),
    ] {
        let Some(path) = made(folder.path(), "colour.mp4", &[words(X264), words(options)].concat()) else { return };
        let mut seen = Vec::new();
        let mut sink = |_, picture: &Picture| {
            seen.push((picture.matrix, picture.range));
            Ok(())
        };
        VideoReader::open(&path).unwrap().read(&[0], &mut sink).unwrap();
        assert_eq!(seen, [colour], "{options}");
    }
}

#[test]
fn the_header_agrees_with_ffprobe() {
    let Some(folder) = shared_data() else { return };
    for name in ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"] {
        let path = folder.join("real_clips").join(name);
        let info = probe(&path).unwrap();
        let have =
            format!("{}|{}|{}|{}/{}|{}", info.codec, info.width, info.height, info.fps_num, info.fps_den, info.frames);
        let Some(want) = ffprobe_entries(&path, "stream=codec_name,width,height,avg_frame_rate,nb_read_frames") else {
            return;
        };
        assert_eq!(have, want, "{name}");
    }
}

#[test]
fn files_that_are_no_video_have_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let clip = std::fs::read(samples().join("ep_0000.mp4")).unwrap();
    let moov = clip.windows(4).position(|window| window == b"moov").unwrap();
    let unfinished = [&clip[..moov - 4], b"\x00\x01\x00\x00mdat and pictures"].concat();
    let check = |bytes: &[u8], part: &str| {
        let path = folder.path().join("film.mp4");
        std::fs::write(&path, bytes).unwrap();
        let error = probe(&path).unwrap_err();
        assert!(error.to_string().contains(part) && error.to_string().contains("film.mp4"), "{error}");
        assert!(!error.is_transient(), "{error}");
    };
    check(b"", "the file is empty");
    check(b"this is a text file", "this is text and no video: it begins with `this is a text file`");
    check(&[0xff, 0xd8, 0xff], "too few for a video");
    check(&clip[..moov - 4], "the index (`moov`) is missing: the recording was never finished");
    check(&unfinished, "but its box `mdat` reaches to byte");
    check(&clip[..moov + 100], "but its box `moov` reaches to byte");
    let cut = clip.len() - clip.len() / 4;
    check(&clip[..cut], &format!("file ends at byte {cut}, but sample "));
    let error = probe(&folder.path().join("nowhere.mp4")).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("nowhere.mp4"), "{error}");
}

#[test]
fn a_wanted_frame_beyond_the_end_is_named() {
    let mut reader = VideoReader::open(&samples().join("ep_0000.mp4")).unwrap();
    let error = reader.read(&[3, 33], &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.ends_with("frame 33 is wanted, but the video has frames 0 to 32"), "{error}");
    let stop = |_, _: &Picture| Err(MediaError::Sink("enough".into()));
    assert_eq!(reader.read(&[3], &mut { stop }).unwrap_err().to_string(), "enough");
    assert_eq!(read(&mut reader, &[3]).len(), 1, "the reader works after an error");
}

/// Damage of any kind is an error or some pictures, never a panic that reaches the caller, and never too few frames.
#[test]
fn damaged_files_never_panic_and_never_leave_frames_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.mp4");
    let clip = std::fs::read(samples().join("ep_0000.mp4")).unwrap();
    let moov = clip.windows(4).position(|window| window == b"moov").unwrap();
    let try_read = |bytes: &[u8], what: &dyn std::fmt::Display| {
        std::fs::write(&path, bytes).unwrap();
        let reader = std::panic::catch_unwind(|| h264::open(&path)).unwrap_or_else(|_| panic!("open: {what}"));
        let Ok(h264::Opened::Here(info, mut reader)) = reader else { return false };
        let wanted = (0..info.frames).collect();
        let mut count = 0;
        let mut sink = |_, _: &Picture| {
            count += 1;
            Ok(())
        };
        let read = std::panic::AssertUnwindSafe(|| reader.read(wanted, &mut sink));
        let read = std::panic::catch_unwind(read).unwrap_or_else(|_| panic!("read: {what}"));
        assert!(read.is_err() || count == info.frames, "{count} of {} frames: {what}", info.frames);
        read.is_ok()
    };
    for length in (0..clip.len()).step_by(97) {
        assert!(!try_read(&clip[..length], &format!("cut to {length} bytes")), "{length} of {} bytes", clip.len());
    }
    for seed in 1..=150u32 {
        let mut state = seed.wrapping_mul(0x9E37_79B9);
        let mut bytes = clip.clone();
        // Half of the seeds hit the index, half the pictures.
        let (start, end) = if seed % 2 == 0 { (0, moov) } else { (moov, bytes.len()) };
        for _ in 0..1 + random(&mut state) % 8 {
            let at = start + random(&mut state) as usize % (end - start);
            bytes[at] ^= 1 << (random(&mut state) % 8);
        }
        try_read(&bytes, &format!("seed {seed}"));
    }
}

#[test]
fn a_missing_program_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.webm");
    std::fs::write(&path, b"\x1a\x45\xdf\xa3 and nothing that ffprobe knows").unwrap();
    let error = VideoReader::open_with(&path, None).err().unwrap();
    assert!(error.to_string().ends_with(
        "film.webm: container matroska needs the `ffmpeg` program, which is not on PATH; install it or convert the file to H.264 MP4"
    ));
    if programs().is_some() {
        let error = probe(&path).unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("no video that ffprobe knows"), "{error}");
    }
}

/// What a file becomes while a reader is in it.
#[test]
fn a_file_that_changes_while_it_is_read_is_an_error_that_may_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (clip, other) = (samples().join("ep_0000.mp4"), samples().join("ep_0001.mp4"));
    let here = folder.path().join("clip.mp4");
    let mut files = vec![clip.clone()];
    files.extend(made(folder.path(), "clip.mkv", &words(X264)));
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let changes: [(&str, &dyn Fn()); 5] = [
            ("removed", &|| std::fs::remove_file(&here).unwrap()),
            ("cut", &|| std::fs::write(&here, &bytes[..bytes.len() / 2]).unwrap()),
            ("grown", &|| std::fs::write(&here, [&bytes[..], b"more"].concat()).unwrap()),
            ("overwritten", &|| std::fs::write(&here, std::fs::read(&other).unwrap()).unwrap()),
            ("replaced", &|| {
                std::fs::copy(&other, folder.path().join("new")).unwrap();
                std::fs::rename(folder.path().join("new"), &here).unwrap();
            }),
        ];
        for (what, change) in changes {
            std::fs::write(&here, &bytes).unwrap();
            let mut reader = VideoReader::open(&here).unwrap();
            assert!(reader.is_current());
            let mut count = 0;
            let mut sink = |_, _: &Picture| {
                if count == 3 {
                    change();
                }
                count += 1;
                Ok(())
            };
            let all: Vec<u32> = (0..reader.info().frames).collect();
            let error = reader.read(&all, &mut sink).unwrap_err();
            let told = error.to_string().contains("the file changed while it was read");
            assert!(told && error.is_transient() && !reader.is_current(), "{what}: {error}");
            let again = reader.read(&[0], &mut |_, _| Ok(()));
            assert!(again.is_err_and(|error| error.is_transient()), "{what}: the old reader reads on");
        }
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("folder.mp4")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.mp4")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.mp4")).unwrap();
    symlink(Path::new("/dev").join("zero"), at("zero.mp4")).unwrap();
    symlink(at("loop.mp4"), at("loop.mp4")).unwrap();
    for (name, reason, may_pass) in [
        ("folder.mp4", "this is a folder and no file", false),
        ("pipe.mp4", "this is a pipe and no file", false),
        ("socket.mp4", "this is a socket and no file", false),
        ("zero.mp4", "this is a device and no file", false),
        ("loop.mp4", "symbolic links", true),
    ] {
        let error = probe(&at(name)).unwrap_err();
        assert!(error.to_string().contains(reason) && error.is_transient() == may_pass, "{name}: {error}");
    }
}
