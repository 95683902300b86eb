//! Every file of [`super::lying`] by itself: probed and decoded, or refused with a reason.

use std::sync::mpsc;
use std::time::Duration;

use super::lying::{self, Want};
use super::*;

/// Long for a file that takes milliseconds, short for a person who waits for one that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most of the time goes to starting ffmpeg.
const THREADS: usize = 4;

/// What `work` gives; panics, if it panics, or takes too long.
fn in_time<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, done) = mpsc::channel();
    let thread = std::thread::spawn(move || send.send(work()).ok());
    match done.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name}: nothing happened for {PATIENCE:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("the thread ended without an answer"),
        },
    }
}

/// All frames, or why not.
fn frames(path: &Path) -> Result<BTreeMap<u32, Vec<u8>>, MediaError> {
    let mut reader = VideoReader::open(path)?;
    let all: Vec<u32> = (0..reader.info().frames).collect();
    let mut pictures = BTreeMap::new();
    let mut sink = |frame, picture: &Picture| {
        pictures.insert(frame, packed(picture));
        Ok(())
    };
    reader.read(&all, &mut sink)?;
    assert_eq!(pictures.len(), all.len(), "{}: frames were left out", path.display());
    Ok(pictures)
}

/// What is wrong with the result, if anything.
fn fault(path: &Path, want: Want) -> Option<String> {
    let have = {
        let path = path.to_owned();
        in_time(&path.display().to_string(), move || frames(&path))
    };
    let (pixels, bytes, near) = match want {
        Want::Equal(pixels) => (pixels, 1, 0),
        Want::Near(pixels) => (pixels, 2, 1),
        Want::Bad(part) => {
            return match have {
                Ok(_) => Some(format!("was decoded, but should say `{part}`")),
                Err(error) if error.is_transient() => Some(format!("would be tried again: {error}")),
                Err(error) if !error.to_string().contains(part) => {
                    Some(format!("should say `{part}`, but says: {error}"))
                }
                Err(_) => None,
            };
        }
    };
    let have = match have {
        // Of monochrome ffmpeg gives luma only.
        Ok(have) if pixels == "gray" => have.into_values().flat_map(|f| f[..f.len() * 2 / 3].to_vec()).collect(),
        Ok(have) => have.into_values().flatten().collect::<Vec<u8>>(),
        Err(error) => return Some(error.to_string()),
    };
    let path = path.to_str().unwrap();
    let input = ["-noautorotate", "-i", path, "-map", "0:v:0", "-f", "rawvideo", "-fps_mode", "passthrough"];
    let want = ffmpeg(&[&input[..], &["-pix_fmt", pixels, "-"]].concat())?;
    if want.len() != bytes * have.len() {
        return Some(format!("{} bytes of pixels, but ffmpeg gives {}", have.len(), want.len() / bytes));
    }
    let levels: Vec<i32> = match bytes {
        1 => want.iter().map(|&level| i32::from(level)).collect(),
        _ => want.chunks_exact(2).map(|b| (i32::from(b[0]) + 256 * i32::from(b[1]) + 2) / 4).collect(),
    };
    let differs = have.iter().zip(levels).position(|(&have, want)| (i32::from(have) - want.min(255)).abs() > near);
    differs.map(|at| format!("differs from ffmpeg's pictures at byte {at} of {}", have.len()))
}

#[test]
fn every_lying_file_is_decoded_as_ffmpeg_does_or_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let programs = programs();
    let cases =
        lying::make(&samples().join("ep_0000.mp4"), programs.as_ref().map(|p| p.ffmpeg.as_path()), folder.path());
    let check = |case: &lying::Case| {
        let needs_ffmpeg = match case.want {
            Want::Bad(part) => part.contains("ffmpeg") || part.contains("ffprobe"),
            Want::Equal(_) | Want::Near(_) => true,
        };
        let can_run = programs.is_some() || !needs_ffmpeg;
        let fault = can_run.then(|| fault(&folder.path().join(case.name), case.want))??;
        Some(format!("{}: {fault}", case.name))
    };
    let faults: Vec<String> = std::thread::scope(|scope| {
        let shares = cases.chunks(cases.len().div_ceil(THREADS));
        let threads: Vec<_> =
            shares.map(|share| scope.spawn(|| share.iter().filter_map(check).collect::<Vec<String>>())).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect::<Vec<_>>()
    });
    assert!(faults.is_empty(), "{} of {} files:\n{}", faults.len(), cases.len(), faults.join("\n"));

    // Where no program looks for damage, what was never decoded is seen all the same.
    let lost = ["slice_3_of_4_lost.mp4", "slice_4_of_4_ones.mp4", "cavlc_slice_3_of_4_lost.mp4"];
    for name in lost.iter().filter(|_| programs.is_some()) {
        let mut reader = VideoReader::open_with(&folder.path().join(name), None).unwrap();
        let all: Vec<u32> = (0..reader.info().frames).collect();
        let error = reader.read(&all, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("leaves pixels of row"), "{error}");
    }
}
