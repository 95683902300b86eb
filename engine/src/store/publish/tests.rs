use std::os::unix::fs::MetadataExt;

use super::*;

struct Case {
    dir: tempfile::TempDir,
    store: Store,
    placement: Placement,
}

fn case(versioned: bool) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let placement = Placement { path: dir.path().join("out"), versioned };
    Case { dir, store, placement }
}

impl Case {
    /// Places files given as (path, text).
    fn place(&self, files: &[(&str, &str)]) -> Placed {
        self.try_place(files).unwrap()
    }

    fn try_place(&self, files: &[(&str, &str)]) -> Result<Placed> {
        let put = |text: &str| self.store.blobs().put(text.as_bytes()).unwrap();
        let files = files.iter().map(|(file, text)| (file.to_string(), put(text))).collect();
        place(&self.store, "p", "codes", &self.placement, &files)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.placement.path.join(file)).unwrap_or_else(|e| format!("{:?}", e.kind()))
    }

    fn inode(&self, file: &str) -> u64 {
        fs::metadata(self.placement.path.join(file)).unwrap().ino()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.placement.path).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_flat_folder_follows_what_is_wanted() {
    let case = case(false);
    assert!(case.place(&[("a.txt", "one"), ("deep/er/b.txt", "two")]).changed);
    assert_eq!((case.read("a.txt").as_str(), case.read("deep/er/b.txt").as_str()), ("one", "two"));
    let inode = case.inode("a.txt");
    assert!(!case.place(&[("a.txt", "one"), ("deep/er/b.txt", "two")]).changed);
    fs::write(case.placement.path.join("foreign"), "mine").unwrap();
    let placed = case.place(&[("a.txt", "one"), ("c.txt", "three")]);
    assert_eq!(placed, Placed { path: case.placement.path.clone(), changed: true, version: None });
    assert_eq!(case.names(), ["a.txt", "c.txt", "foreign"], "the file and its empty folders are gone");
    assert_eq!(case.inode("a.txt"), inode, "an unchanged file is not written again");
    assert!(case.place(&[]).changed);
    assert_eq!(case.names(), ["foreign"]);
}

#[test]
fn what_the_user_deleted_or_changed_is_restored() {
    for versioned in [false, true] {
        let case = case(versioned);
        let files = [("a.txt", "one"), ("b.txt", "two")];
        let placed = case.place(&files);
        let in_folder = |name: &str| placed.path.join(name);
        fs::remove_file(in_folder("a.txt")).unwrap();
        fs::write(in_folder("b.txt"), "spoilt").unwrap();
        let again = case.place(&files);
        assert_eq!(again, Placed { changed: true, ..placed.clone() });
        assert_eq!(fs::read_to_string(in_folder("a.txt")).unwrap(), "one");
        assert_eq!(fs::read_to_string(in_folder("b.txt")).unwrap(), "two");
        assert!(!case.place(&files).changed);
        // Touched, same bytes: nothing to write.
        fs::write(in_folder("b.txt"), "two").unwrap();
        assert!(!case.place(&files).changed);
        fs::remove_dir_all(&case.placement.path).unwrap();
        assert_eq!(case.place(&files), Placed { changed: true, ..placed.clone() });
        assert_eq!(fs::read_to_string(in_folder("b.txt")).unwrap(), "two");
    }
}

#[test]
fn each_change_makes_a_version_that_shares_unchanged_files() {
    let case = case(true);
    let first = case.place(&[("s0/a", "one"), ("s1/b", "two")]);
    assert_eq!(first, Placed { path: case.placement.path.join("latest"), changed: true, version: Some(1) });
    assert!(!case.place(&[("s0/a", "one"), ("s1/b", "two")]).changed);
    assert_eq!(case.place(&[("s0/a", "one"), ("s1/b", "three")]).version, Some(2));
    assert_eq!(case.names(), ["latest", "v000001", "v000002"]);
    assert_eq!(case.inode("v000001/s0/a"), case.inode("latest/s0/a"));
    assert_eq!((case.read("v000001/s1/b").as_str(), case.read("latest/s1/b").as_str()), ("two", "three"));
    assert_eq!(case.place(&[]).version, Some(3));
    assert_eq!(case.place(&[]), Placed { changed: false, version: Some(3), path: first.path });
    assert_eq!(case.read("latest/s0/a"), "NotFound");
}

#[test]
fn outputs_are_no_links_into_the_store() {
    let case = case(false);
    case.place(&[("a", "one")]);
    fs::write(case.placement.path.join("a"), "changed in place").unwrap();
    assert_eq!(case.store.blobs().read(&Hash::of_bytes(b"one")).unwrap(), b"one");
}

#[test]
fn without_its_record_an_equal_folder_is_kept() {
    for versioned in [false, true] {
        let mut case = case(versioned);
        let before = case.place(&[("a", "one")]);
        case.store = Store::open(case.dir.path().join("another store")).unwrap();
        assert_eq!(case.place(&[("a", "one")]), Placed { changed: false, ..before.clone() });
        fs::write(before.path.join("a"), "two").unwrap();
        assert!(case.place(&[("a", "one")]).changed, "it is known from now on");
    }
}

#[test]
fn remains_of_a_crash_are_cleared() {
    let case = case(true);
    fs::create_dir_all(case.placement.path.join(".tmp-v000001/x")).unwrap();
    symlink("nowhere", case.placement.path.join(".tmp-latest")).unwrap();
    case.place(&[("a", "one")]);
    assert_eq!(case.names(), ["latest", "v000001"]);
}

#[test]
fn paths_that_lead_out_are_refused() {
    let case = case(false);
    for file in ["../a", "/a", "a/../b", "./a", "", "a//b", "a/"] {
        let error = case.try_place(&[(file, "one")]).unwrap_err();
        assert!(matches!(error, Error::Escapes { .. }), "`{file}`: {error}");
    }
    assert!(!case.placement.path.exists());
}

#[test]
fn an_error_names_the_path() {
    let case = case(false);
    fs::write(&case.placement.path, "a file where the folder should be").unwrap();
    let error = case.try_place(&[("a", "one")]).unwrap_err().to_string();
    assert!(error.contains(case.placement.path.to_str().unwrap()), "{error}");
}

#[test]
fn files_of_a_stage_that_left_go_and_others_stay() {
    for versioned in [false, true] {
        let case = case(versioned);
        let before = case.place(&[("a", "one")]);
        fs::write(case.placement.path.join("foreign"), "mine").unwrap();
        take_back(&case.store, "p", |stage| stage == "codes").unwrap();
        take_back(&case.store, "another", |_| false).unwrap();
        assert_eq!(fs::read_to_string(before.path.join("a")).unwrap(), "one");
        take_back(&case.store, "p", |stage| stage == "other").unwrap();
        assert!(!before.path.join("a").exists());
        assert_eq!(case.read("foreign"), "mine");
        take_back(&case.store, "p", |_| false).unwrap();
        assert!(case.place(&[("a", "one")]).changed, "it may come back");
    }
}
