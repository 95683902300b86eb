//! Places at which tests cut a run short, to prove that the next run heals it.
//!
//! Each durable write passes exactly one named point just before it takes effect: whatever another process, or the next run,
//! reads under a name that counts. Files under names that nobody reads (being written, being built) are no such writes, and
//! folders without anything in them neither. The test below reads this crate's sources and finds a write without a point.
//!
//! Tests arm a countdown in a child
//! process; the process dies at the point where it reaches zero. Unarmed, a point costs one relaxed load.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// All points, in the order in which a run first reaches them; those of a store's upkeep follow.
pub const FAIL_POINTS: &[&str] = &[
    "lock.write",
    "manifest.format",
    "blob.stale",
    "run.begin",
    "file_hash.flush",
    "scratch.rename",
    "scratch.clear",
    "blob.rename",
    "commit",
    "publish",
    "quarantine",
    "place.claim",
    "place.file",
    "place.remove",
    "place.version",
    "place.latest",
    "place.record",
    "run.finish",
    "quarantine.retry",
    "verify.aside",
    "verify.forget",
    "gc.manifest",
    "gc.file",
    "gc.scratch",
    "gc.compact",
];

/// 0: unarmed.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// The process aborts at the `nth` point (counted from 1) that it passes from now on; 0 disarms.
pub fn abort_at(nth: u64) {
    LEFT.store(nth, Ordering::SeqCst);
}

pub(crate) fn fail_point(name: &str) {
    debug_assert!(FAIL_POINTS.contains(&name), "`{name}` is missing in FAIL_POINTS");
    if LEFT.load(Ordering::Relaxed) != 0 && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        // Past the test harness, which would keep the line to itself.
        let _ = writeln!(std::io::stderr(), "dies at {name}");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Calls by which files, names and tables change.
    const WRITES: &[&str] = &[
        "fs::write(",
        "File::create(",
        "OpenOptions::new()",
        ".set_len(",
        "io::copy(",
        ".persist(",
        "fs::rename(",
        "fs::hard_link(",
        "symlink(",
        "fs::remove_file(",
        "fs::remove_dir(",
        "fs::remove_dir_all(",
        ".commit()",
        "VACUUM",
    ];

    /// Calls without a point of their own, each with the reason.
    const NO_POINT: &[(&str, &str)] = &[
        ("let open = OpenOptions::new()", "makes the lock's file; an empty one says nothing"),
        (
            "fs::remove_file(path).map_err(Error::io(\"remove\", path))?;",
            "a temporary file whose blob is there already",
        ),
        ("io::copy(&mut from, &mut temp.as_file())", "writes a temporary file"),
        ("fs::remove_dir_all(&building)", "clears what a crash left of a version that was being built"),
        ("fs::hard_link(&from, &to).is_ok()", "into a version that is being built"),
        ("symlink(&name, &aside)", "under a name that nobody reads; `place.latest` renames it"),
        ("File::create(&aside)", "under a name that nobody reads; `place.file` renames it"),
        ("let _ = fs::remove_file(&aside);", "the same after an error"),
        ("fs::remove_dir(self.root.join(folder))", "an empty folder, after `place.remove`"),
        ("match fs::remove_file(path) {", "called after `place.remove`, and for a link that nobody reads"),
    ];

    /// This crate's code by line, without tests.
    fn sources() -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                let name = path.display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.ends_with("tests.rs") && !name.ends_with("fail.rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                    found.push((name, lines.map(str::to_owned).collect()));
                }
            }
        }
        found
    }

    #[test]
    fn every_durable_write_has_a_point_and_every_point_has_one_place() {
        let (mut without, mut excused) = (Vec::new(), BTreeMap::new());
        let mut places: BTreeMap<&str, usize> = FAIL_POINTS.iter().map(|point| (*point, 0)).collect();
        for (file, lines) in sources() {
            for (at, line) in lines.iter().enumerate() {
                for point in FAIL_POINTS {
                    *places.get_mut(point).unwrap() += line.matches(&format!("\"{point}\"")).count();
                }
                if !WRITES.iter().any(|write| line.contains(write)) {
                    continue;
                }
                let has_point = lines[at.saturating_sub(4)..=at].iter().any(|line| line.contains("fail_point("));
                match NO_POINT.iter().find(|(excused, _)| line.contains(excused)) {
                    Some((line, _)) => *excused.entry(*line).or_insert(0) += 1,
                    None if has_point => {}
                    None => without.push(format!("{file}: {}", line.trim())),
                }
            }
        }
        assert!(without.is_empty(), "writes without a fail point: {without:#?}");
        assert!(places.values().all(|count| *count == 1), "each point belongs to one kind of write: {places:?}");
        let idle: Vec<_> = NO_POINT.iter().filter(|(line, _)| !excused.contains_key(line)).collect();
        assert!(idle.is_empty(), "excused, and not there: {idle:?}");
    }
}
