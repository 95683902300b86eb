//! What tests need from outside: programs and data that may be missing.
//!
//! A test that cannot run prints "skipped: …" and passes, unless `VW2_REQUIRE` (a list such as `ffmpeg,python,data`)
//! names what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::media::Programs;

fn missing<T>(name: &str, what: &str) -> Option<T> {
    let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word.trim() == name), "VW2_REQUIRE names {name}, but there is no {what}");
    eprintln!("skipped: no {what}");
    None
}

/// The ffmpeg and ffprobe programs.
pub(crate) fn programs() -> Option<Programs> {
    Programs::find().or_else(|| missing("ffmpeg", "ffmpeg program"))
}

/// Runs ffmpeg; its standard output.
pub(crate) fn ffmpeg<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Option<Vec<u8>> {
    run(Command::new(programs()?.ffmpeg).args(["-nostdin", "-v", "error", "-y"]).args(arguments))
}

/// Values of the first video stream, as ffprobe prints them, with frames counted by decoding.
pub(crate) fn ffprobe_entries(path: &Path, entries: &str) -> Option<String> {
    let mut command = Command::new(programs()?.ffprobe);
    command.args(["-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries", entries]);
    let output = run(command.args(["-of", "compact=p=0:nk=1"]).arg(path))?;
    Some(String::from_utf8(output).unwrap().trim().to_owned())
}

fn run(command: &mut Command) -> Option<Vec<u8>> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// A folder of test data outside the repository, `VW2_SHARED_DATA`.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let folder = std::env::var_os("VW2_SHARED_DATA").map(PathBuf::from).filter(|folder| folder.is_dir());
    folder.or_else(|| missing("data", "folder in VW2_SHARED_DATA"))
}

/// The shipped PushT clips.
pub(crate) fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/pusht")
}

/// Runs a Python program that needs `modules`; its standard output. `VW2_PYTHON` names the interpreter.
pub(crate) fn python(modules: &[&str], program: &str, argument: &Path) -> Option<String> {
    let python = std::env::var("VW2_PYTHON").unwrap_or("python3".into());
    let import = format!("import {}", modules.join(","));
    let found = Command::new(&python).args(["-c", &import]).output().is_ok_and(|output| output.status.success());
    if !found {
        // PyTorch is too large to ask of every machine that has Python, so it goes by a name of its own.
        let name = if modules.contains(&"torch") { "torch" } else { "python" };
        return missing(name, &format!("Python with {}", modules.join(" and ")));
    }
    let output = run(Command::new(&python).args(["-c", program]).arg(argument))?;
    Some(String::from_utf8(output).unwrap().trim().to_owned())
}
