//! Broken and odd files, and what has to become of each.
//!
//! The table is used twice: file by file beside the decoder, and all files together by the workspace's suite. What needs
//! the ffmpeg program to be made is left out where there is none.

mod boxes;
mod table;

use std::fs;
use std::path::Path;
use std::process::Command;

use boxes::Mp4;

/// One file.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    made: Made,
    pub(crate) want: Want,
}

enum Made {
    /// From a good MP4: H.264 with B-frames, 33 frames, an edit list, the index in front.
    Sample(fn(Mp4) -> Mp4),
    /// By ffmpeg, from 20 moving frames of 96 x 64 pixels, with these options.
    Ffmpeg(&'static str),
    /// The same as H.264, 4:2:0, with more options.
    H264(&'static str),
    /// By ffmpeg with inputs of its own; runs in the folder.
    Inputs(&'static str),
    /// From an earlier file of the table.
    Changed(&'static str, fn(Mp4) -> Mp4),
}

/// What has to become of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Want {
    /// Every frame is what ffmpeg gives in this pixel format.
    Equal(&'static str),
    /// The same within one level, where ffmpeg gives more than 8 bits.
    Near(&'static str),
    /// An error that says this.
    Bad(&'static str),
}

use Made::{Changed, Ffmpeg, H264, Inputs, Sample};

const H264_CODEC: &str = "-c:v libx264 -preset veryfast -threads 1 -pix_fmt yuv420p";

/// Makes all files in a folder, and gives those that could be made, in the table's order.
pub(crate) fn make(sample: &Path, ffmpeg: Option<&Path>, folder: &Path) -> Vec<Case> {
    let sample = fs::read(sample).unwrap();
    let mut cases = table::cases();
    if let Some(ffmpeg) = ffmpeg {
        // One call for many files: the program takes longer to start than to make one.
        let mut all = quiet(ffmpeg);
        all.args(["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25"]);
        for case in &cases {
            let (codec, options) = match case.made {
                Ffmpeg(options) => ("", options),
                H264(options) => (H264_CODEC, options),
                _ => continue,
            };
            let options = codec.split_whitespace().chain(options.split_whitespace());
            all.args(["-frames:v", "20"]).args(options).arg(folder.join(case.name));
        }
        succeed(&mut all);
    }
    cases.retain(|case| {
        let path = folder.join(case.name);
        match case.made {
            Sample(change) => fs::write(path, change(Mp4(sample.clone())).0).unwrap(),
            Changed(from, change) => match fs::read(folder.join(from)) {
                Ok(bytes) => fs::write(path, change(Mp4(bytes)).0).unwrap(),
                Err(_) => return false,
            },
            Ffmpeg(_) | H264(_) => return ffmpeg.is_some(),
            Inputs(options) => {
                let Some(ffmpeg) = ffmpeg else { return false };
                succeed(quiet(ffmpeg).current_dir(folder).args(options.split_whitespace()).arg(path));
            }
        }
        true
    });
    cases
}

fn quiet(ffmpeg: &Path) -> Command {
    let mut command = Command::new(ffmpeg);
    command.args(["-nostdin", "-v", "error", "-y", "-threads", "1"]);
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
