//! A disk with little room, where the system lets a test mount one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// A mounted tmpfs; unmounted when it is dropped.
pub(crate) struct FullDisk(PathBuf);

impl FullDisk {
    /// A disk at `path` with a copy of this folder and so much room beside it. `None`, and a line that says so: no test may
    /// mount anything here.
    pub(crate) fn with(path: &Path, folder: &Path, left_kib: u64) -> Option<FullDisk> {
        std::fs::create_dir_all(path).unwrap();
        let quiet = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let (used, is_file) = (|path: &Path| std::fs::metadata(path).unwrap().len(), |path: &Path| path.is_file());
        let mut folders = vec![folder.to_owned()];
        let mut used_kib = 64;
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                // In whole pages.
                used_kib += if is_file(&path) { used(&path).div_ceil(4096) * 4 } else { 4 };
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        let size = format!("size={}k", used_kib + left_kib);
        if !quiet(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path)) {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| eprintln!("skipped: no full disk, as nothing can be mounted here"));
            return None;
        }
        let disk = FullDisk(path.to_owned());
        copy(folder, &path.join(folder.file_name().unwrap()));
        Some(disk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // Lazily: a child that another thread is just starting holds copies of open files until its exec.
        Command::new("umount").arg("--lazy").arg(&self.0).status().unwrap();
    }
}
