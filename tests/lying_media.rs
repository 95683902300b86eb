//! Broken, odd and changing files among good ones: a run neither ends nor waits for them, and no good clip notices.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::media::watch_memory;
use super::project::{self, PIPELINE, Project, Report, finished, sample, wait_for};

#[path = "../data/src/media/tests/lying/mod.rs"]
mod lying;

use lying::Want;

/// Far longer than the runs here take.
const PATIENCE: Duration = Duration::from_secs(240);

/// Clips are cut so that each video that can be decoded gives one, however long it is.
fn project(good: usize) -> Project {
    let project = Project::with_clips(good);
    project.edit("frames = 17", "frames = 17\nsampling = { uniform = true }");
    project
}

/// Runs up to the codes, and kills nothing: a run that hangs fails the test.
fn run(project: &Project, store: &str) -> (Report, u64) {
    let child = project.command(&["run", PIPELINE, "--json", "--only", "codes", "--store", store]).spawn().unwrap();
    let peak = watch_memory(&child);
    let (send, done) = mpsc::channel();
    std::thread::spawn(move || send.send(finished(child)).ok());
    let done = done.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the run did not end within {PATIENCE:?}"));
    assert_eq!(done.code, 0, "{done:#?}");
    (Report(done.json()), peak.join().unwrap())
}

/// Hashes of all codes by clip.
fn codes(project: &Project, store: &str) -> BTreeMap<String, String> {
    let manifest = rusqlite::Connection::open(project.path(store).join("manifest.sqlite")).unwrap();
    let mut rows = manifest.prepare("SELECT id, hex(content) FROM published WHERE stage = 'codes'").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Quarantine rows: file below the folder of videos, class, reason.
fn quarantine(report: &Report) -> Vec<[String; 3]> {
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = report.0["quarantined"].as_array().unwrap().iter();
    let file = |row| text(row, "path").split_once("videos/").map(|(_, file)| file.to_owned()).unwrap_or_default();
    rows.map(|row| [file(row), text(row, "class"), text(row, "reason")]).collect()
}

/// What no program writes but a file system holds, in `folder`: its name in quarantine, and what is said of it.
fn odd_entries(folder: &Path) -> Vec<(&'static str, &'static str)> {
    fs::create_dir_all(folder.join("folder.mp4")).unwrap();
    fs::copy(sample(4), folder.join("folder.mp4/inside.mp4")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.join("pipe.mp4")).status().unwrap().success());
    // The file stays when the listener is gone.
    drop(UnixListener::bind(folder.join("socket.mp4")).unwrap());
    symlink(Path::new("/dev").join("zero"), folder.join("zero.mp4")).unwrap();
    symlink("self.mp4", folder.join("self.mp4")).unwrap();
    symlink("nowhere", folder.join("dangling.mp4")).unwrap();
    symlink("../odd", folder.join("around.mp4")).unwrap();
    fs::copy(sample(4), folder.join(OsStr::from_bytes(b"name-\xff.mp4"))).unwrap();
    let mut entries = vec![
        ("pipe.mp4", "this is a pipe and no file"),
        ("socket.mp4", "this is a socket and no file"),
        ("zero.mp4", "this is a device and no file"),
        ("self.mp4", "symbolic links"),
        ("dangling.mp4", "No such file"),
        ("around.mp4", "loop"),
        ("name-\u{fffd}.mp4", "the name is not UTF-8"),
    ];
    fs::copy(sample(4), folder.join("secret.mp4")).unwrap();
    fs::set_permissions(folder.join("secret.mp4"), fs::Permissions::from_mode(0o000)).unwrap();
    match fs::read(folder.join("secret.mp4")) {
        Err(_) => entries.push(("secret.mp4", "ermission denied")),
        Ok(_) => {
            eprintln!("skipped: an unreadable file, as this user reads every file");
            fs::remove_file(folder.join("secret.mp4")).unwrap();
        }
    }
    entries
}

#[test]
fn a_folder_of_lying_files_costs_no_good_clip_and_each_is_decoded_or_told() {
    if !project::ffmpeg() {
        return;
    }
    let alone = project(3);
    run(&alone, "store");
    let good = codes(&alone, "store");
    assert_eq!(good.len(), 3);

    let project = project(3);
    fs::create_dir_all(project.path("videos/lying")).unwrap();
    let cases = lying::make(&sample(0), Some(Path::new("ffmpeg")), &project.path("videos/lying"));
    let odd = odd_entries(&project.path("videos/odd"));
    // Transport streams and the like are looked at as well.
    let extensions: BTreeSet<&str> = cases.iter().filter_map(|case| case.name.rsplit('.').next()).collect();
    let extensions = Vec::from_iter(extensions);
    project.edit("root = \"videos\"", &format!("root = \"videos\"\nextensions = {extensions:?}"));

    let (first, peak_mib) = run(&project, "store");
    let found = codes(&project, "store");
    for (clip, content) in &good {
        assert_eq!(found.get(clip), Some(content), "{clip} beside lying files");
    }
    let told = quarantine(&first);
    let mut faults = Vec::new();
    let mut check = |file: String, reason: Option<&str>| {
        let rows: Vec<_> = told.iter().filter(|row| row[0] == file).collect();
        let has_codes = found.contains_key(&format!("{file}#0"));
        let is_right = match reason {
            Some(part) => !has_codes && rows.len() == 1 && rows[0][2].contains(part),
            None => has_codes && rows.is_empty(),
        };
        if !is_right {
            faults.push(format!("{file}: codes {has_codes}, rows {rows:?}, wanted {reason:?}"));
        }
    };
    for case in &cases {
        let reason = if let Want::Bad(part) = case.want { Some(part) } else { None };
        check(format!("lying/{}", case.name), reason);
    }
    for (name, reason) in &odd {
        check(format!("odd/{name}"), Some(reason));
    }
    check("odd/folder.mp4/inside.mp4".into(), None);
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len() + odd.len(), faults.join("\n"));
    let bad = cases.iter().filter(|case| matches!(case.want, Want::Bad(_))).count() + odd.len();
    assert_eq!(told.len(), bad, "a row that belongs to no file: {told:#?}");
    assert!(peak_mib < 1024, "peak memory {peak_mib} MiB; none of these files is larger than 3 MiB");
    println!("{} files, {bad} in quarantine, peak memory {peak_mib} MiB", cases.len() + odd.len());

    let (second, _) = run(&project, "store");
    assert_eq!(second.executed(), "");
    assert_eq!(quarantine(&second), told);
    assert_eq!(codes(&project, "store"), found);
}

/// Files are removed, cut, replaced and still written while the run reads them. What is published then is what the file held
/// at one moment; what is left out is told; the next run gives what an empty store gives.
#[test]
fn files_that_change_during_a_run_are_told_or_come_out_whole() {
    let project = project(12);
    run(&project, "before");
    let before = codes(&project, "before");

    let is_over = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (is_over, path, bytes) =
            (is_over.clone(), project.path("videos/growing.mp4"), fs::read(sample(19)).unwrap());
        move || {
            let mut length = 0;
            while !is_over.load(Relaxed) {
                length = (length + bytes.len() / 50) % bytes.len();
                fs::write(&path, &bytes[..length]).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
            fs::write(&path, &bytes).unwrap();
        }
    });
    let child = project.command(&["run", PIPELINE, "--json", "--only", "codes", "--store", "during"]).spawn().unwrap();
    let manifest = project.path("during/manifest.sqlite");
    wait_for("the first unit", PATIENCE, || count(&manifest, "memo") > 0);
    let video = |index: usize| project.path(format!("videos/ep_{index:04}.mp4"));
    for index in [2, 6, 10] {
        fs::remove_file(video(index)).unwrap();
        let bytes = fs::read(video(index - 1)).unwrap();
        fs::write(video(index - 1), &bytes[..bytes.len() / 2]).unwrap();
        fs::copy(sample(20 + index), project.path("new")).unwrap();
        fs::rename(project.path("new"), video(index + 1)).unwrap();
    }
    let done = finished(child);
    is_over.store(true, Relaxed);
    writer.join().unwrap();
    assert_eq!(done.code, 0, "{done:#?}");
    let during = codes(&project, "during");
    let rows = quarantine(&Report(done.json()));
    println!("told during the run: {rows:?}");
    let is_told = |clip: &str| rows.iter().any(|row| format!("{}#0", row[0]) == clip);
    let replaced = ["ep_0003.mp4#0", "ep_0007.mp4#0", "ep_0011.mp4#0"];
    for (clip, old) in &before {
        let has = during.get(clip);
        assert_eq!(has.is_none(), is_told(clip), "{clip} has codes and a reason, or neither");
        let is_sound = has.is_none_or(|has| has == old) || replaced.contains(&clip.as_str());
        assert!(is_sound, "{clip} has codes of something that the file never held");
    }
    assert!(is_told("growing.mp4#0") && !during.contains_key("growing.mp4#0"), "half a file has codes: {rows:?}");

    let (after, _) = run(&project, "during");
    let (fresh, _) = run(&project, "fresh");
    assert_eq!(codes(&project, "during"), codes(&project, "fresh"));
    assert_eq!(quarantine(&after), quarantine(&fresh));
    let cut: Vec<String> = quarantine(&fresh).into_iter().map(|[file, ..]| file).collect();
    assert_eq!(cut, ["ep_0001.mp4", "ep_0005.mp4", "ep_0009.mp4"]);
    assert!(codes(&project, "fresh").contains_key("growing.mp4#0"));
}

/// Rows of a table; 0 while there is none.
fn count(manifest: &Path, table: &str) -> u64 {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let Ok(manifest) = rusqlite::Connection::open_with_flags(manifest, flags) else { return 0 };
    let counted = manifest.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0));
    counted.unwrap_or(0) as u64
}
