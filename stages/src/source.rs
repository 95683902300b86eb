//! Lists the files below a folder: what the source stages `videos`, `images` and `openx` share.

use std::path::Path;

use vw2_data::media;
use vw2_engine::stage::{Scan, StageError};
use walkdir::WalkDir;

/// Adds every file below `root` whose extension is listed, in the order of its path. The id is the path below `root`,
/// with `/`. Entries that cannot be read, loops of symbolic links, pipes and devices, and names that are not UTF-8 go to
/// quarantine: a folder with one bad entry still yields all the others. A folder is searched, whatever its name. A root
/// that is a file stands for itself.
pub(crate) fn scan_folder(root: &Path, extensions: &[String], found: &mut Scan) -> Result<(), StageError> {
    scan_below(root, "", extensions, found)
}

/// As [`scan_folder`], with `before` in front of each id.
pub(crate) fn scan_below(root: &Path, before: &str, extensions: &[String], found: &mut Scan) -> Result<(), StageError> {
    let named = |id: String| format!("{before}{id}");
    let id_below = |path: &Path| id_below(root, path).map(named).map_err(named);
    if root.is_file() {
        match root.file_name().map(|name| name.to_str().ok_or_else(|| name.to_string_lossy().into_owned())) {
            Some(Ok(name)) => found.file(named(name.to_owned()), root),
            Some(Err(lossy)) => found.reject(named(lossy), root, "the name is not UTF-8; rename the file"),
            None => {}
        }
        return Ok(());
    }
    if !root.is_dir() {
        return Err(format!("{}: no such folder; set `root` to the folder that holds the files", root.display()).into());
    }
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                found.reject(id_below(&path).unwrap_or_else(|lossy| lossy), path, error.to_string());
                continue;
            }
        };
        let wanted = entry.path().extension().is_some_and(|extension| {
            let extension = extension.to_string_lossy().to_ascii_lowercase();
            extensions.iter().any(|e| e.trim_start_matches('.').eq_ignore_ascii_case(&extension))
        });
        if !wanted || entry.file_type().is_dir() {
            continue;
        }
        // Reading a pipe would wait for its writer, and a device may never end.
        match (id_below(entry.path()), media::kind_of(entry.file_type())) {
            (Ok(id), None) => found.file(id, entry.path()),
            (Ok(id), Some(kind)) => found.reject(id, entry.path(), format!("this is {kind} and no file")),
            (Err(lossy), _) => found.reject(lossy, entry.path(), "the name is not UTF-8; rename the file"),
        }
    }
    Ok(())
}

/// The path below the root with `/`; `Err` holds a readable form of a name that is not UTF-8.
fn id_below(root: &Path, path: &Path) -> Result<String, String> {
    let below = path.strip_prefix(root).unwrap_or(path);
    match below.to_str() {
        Some(text) => Ok(text.replace(std::path::MAIN_SEPARATOR, "/")),
        None => Err(below.to_string_lossy().into_owned()),
    }
}
