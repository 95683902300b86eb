//! Holds a store against itself: does every name lead to the bytes that it stands for?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use rusqlite::ErrorCode;
use serde::Serialize;

use super::Store;
use super::blobs::sync_dir;
use super::fail::fail_point;
use super::manifest::Files;
use super::publish::version_name;
use super::rows;
use super::seen::mtime_ns;
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, Hash};

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub blobs: u64,
    /// Blobs in the store; more than `blobs` where only a sample was read.
    pub all_blobs: u64,
    /// Bytes that were read of them.
    pub size_bytes: u64,
    /// Rows of results, published rows, and files outside the store.
    pub rows: u64,
    pub published: u64,
    pub placed: u64,
    pub damages: Vec<Damage>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub kind: DamageKind,
    /// A hash, a row's name or a path.
    pub what: String,
    pub reason: String,
    /// What goes back to it, in words; published rows first.
    pub used_by: Vec<String>,
}

/// What is damaged, and with that, what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// SQLite finds fault with the manifest: only a new store helps.
    Manifest,
    /// A blob has other bytes than its name says: [`Store::set_aside`], then a run.
    Blob,
    /// A blob is not there: a run computes it again.
    MissingBlob,
    /// Bytes of a row in the manifest differ from what names them: [`Store::set_aside`], then a run.
    Row,
    /// A row's bytes are not there, or nothing knows how a published row was made: a run computes it again.
    MissingRow,
    /// A file outside the store was changed or removed: a run restores it.
    Placed,
}

/// What is wrong, by blob or by row.
type Wrong = BTreeMap<Hash, (DamageKind, String)>;

impl Store {
    /// Looks at everything in the manifest, at files outside the store, and at all blobs, or at `sample` of them, which
    /// `seed` chooses. `progress` is told the bytes that are read and to be read.
    pub fn verify(&self, sample: Option<usize>, seed: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
        let mut verified = Verified::default();
        self.verify_manifest(&mut verified)?;
        if !verified.damages.is_empty() {
            // What such tables say of anything else is worth nothing.
            return Ok(verified);
        }
        let blobs = self.blobs.list()?;
        let there: BTreeSet<Hash> = blobs.iter().map(|(hash, _, _)| *hash).collect();
        let (mut wrong_rows, needed) = self.verify_rows(&mut verified)?;
        let mut wrong_blobs: Wrong = needed
            .difference(&there)
            .map(|blob| (*blob, (DamageKind::MissingBlob, "it is not there".to_owned())))
            .collect();
        wrong_blobs.extend(read_blobs(blobs, sample, seed, progress, &mut verified));
        let mut used_by = self.used_by(&wrong_blobs, &wrong_rows)?;
        wrong_rows.append(&mut wrong_blobs);
        verified.damages.extend(wrong_rows.into_iter().map(|(hash, (kind, reason))| Damage {
            kind,
            what: hash.to_string(),
            reason,
            used_by: used_by.remove(&hash).unwrap_or_default(),
        }));
        self.verify_placed(&mut verified)?;
        verified.damages.sort_by(|a, b| (a.kind, &a.what).cmp(&(b.kind, &b.what)));
        Ok(verified)
    }

    /// Puts damaged blobs into `damaged/` and forgets damaged rows, so that the next run computes them again. Gives how
    /// many there were.
    pub fn set_aside(&self, verified: &Verified) -> Result<usize> {
        let of = |kind: DamageKind| {
            let alike = verified.damages.iter().filter(move |damage| damage.kind == kind);
            alike.filter_map(|damage| damage.what.parse::<Hash>().ok())
        };
        let dir = self.damaged_dir();
        let mut count = 0;
        for hash in of(DamageKind::Blob) {
            let (from, to) = (self.blobs.path(&hash), dir.join(hash.to_string()));
            fs::create_dir_all(&dir).map_err(Error::io("make folder", &dir))?;
            fail_point("verify.aside");
            fs::rename(&from, &to).map_err(Error::io("move aside", &from))?;
            sync_dir(&dir)?;
            count += 1;
        }
        let rows: Vec<Hash> = of(DamageKind::Row).collect();
        if !rows.is_empty() {
            self.change("forget damaged rows", "verify.forget", |manifest| {
                let mut forget = manifest.prepare_cached("DELETE FROM payload WHERE content = ?1")?;
                rows.iter().try_for_each(|content| forget.execute([content]).map(drop))
            })?;
        }
        Ok(count + rows.len())
    }

    pub(super) fn damaged_dir(&self) -> PathBuf {
        self.dir.join("damaged")
    }

    fn verify_manifest(&self, verified: &mut Verified) -> Result<()> {
        let said = self.list("check the tables", "PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        let said = match said {
            // Where pages are damaged, not even the check gets to its end.
            Err(Error::Manifest { source, .. }) if source.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                vec![source.to_string()]
            }
            said => said?,
        };
        let faults = said.into_iter().filter(|line| line != "ok");
        verified.damages.extend(faults.map(|reason| Damage {
            kind: DamageKind::Manifest,
            what: "manifest.sqlite".to_owned(),
            reason,
            used_by: Vec::new(),
        }));
        Ok(())
    }

    /// Every row of a result has its bytes, and every published row is one of a result. Gives also the blobs that rows
    /// need.
    fn verify_rows(&self, verified: &mut Verified) -> Result<(Wrong, BTreeSet<Hash>)> {
        let (mut wrong, mut needed) = (Wrong::new(), BTreeSet::new());
        let sql = "SELECT r.content, r.files, p.content IS NOT NULL, p.bytes, p.blob
                   FROM memo_row r LEFT JOIN payload p USING (content)";
        let rows = self.list("read rows", sql, [], |row| {
            let (content, Files(files)): (Hash, Files) = (row.get(0)?, row.get(1)?);
            let is_there: bool = row.get(2)?;
            let bytes: Option<Vec<u8>> = row.get(3)?;
            needed.extend(row.get::<_, Option<Hash>>(4)?);
            needed.extend(files.iter().map(|(_, blob)| *blob));
            if !is_there {
                wrong.insert(content, (DamageKind::MissingRow, "its bytes are not there".to_owned()));
            } else if bytes.is_some_and(|bytes| rows::content(&bytes, &files) != content) {
                wrong.insert(content, (DamageKind::Row, "its bytes are not those that it is named by".to_owned()));
            }
            Ok(())
        })?;
        let sql = "SELECT content, content IN (SELECT content FROM memo_row) FROM published";
        let published = self.list("read published rows", sql, [], |row| {
            if !row.get::<_, bool>(1)? {
                let reason = "it is published, and no result is known to which it belongs".to_owned();
                wrong.insert(row.get(0)?, (DamageKind::MissingRow, reason));
            }
            Ok(())
        })?;
        (verified.rows, verified.published) = (rows.len() as u64, published.len() as u64);
        Ok((wrong, needed))
    }

    /// What goes back to each of these, in words.
    fn used_by(&self, blobs: &Wrong, rows: &Wrong) -> Result<BTreeMap<Hash, Vec<String>>> {
        let mut used: BTreeMap<Hash, Vec<String>> = BTreeMap::new();
        if blobs.is_empty() && rows.is_empty() {
            return Ok(used);
        }
        let sql = "SELECT content, blob FROM payload WHERE blob IS NOT NULL";
        let long = self.list("read rows", sql, [], |row| Ok((row.get::<_, Hash>(0)?, row.get::<_, Hash>(1)?)))?;
        let long: BTreeMap<Hash, Hash> = long.into_iter().filter(|(_, blob)| blobs.contains_key(blob)).collect();
        // The row itself, the blob of its bytes, and the files that go with it.
        let wrong = |content: Hash, Files(files): Files| {
            let own = rows.contains_key(&content).then_some(content);
            let files = files.into_iter().map(|(_, blob)| blob).filter(|blob| blobs.contains_key(blob));
            files.chain(own).chain(long.get(&content).copied()).collect::<Vec<Hash>>()
        };
        let sql = "SELECT content, files, pipeline, stage, id FROM published ORDER BY pipeline, stage, id";
        self.list("read published rows", sql, [], |row| {
            let hashes = wrong(row.get(0)?, row.get(1)?);
            if !hashes.is_empty() {
                let [pipeline, stage, id]: [String; 3] = [row.get(2)?, row.get(3)?, row.get(4)?];
                let told = format!("`{id}` of stage `{stage}` in pipeline `{pipeline}`");
                hashes.into_iter().for_each(|hash| used.entry(hash).or_default().push(told.clone()));
            }
            Ok(())
        })?;
        let sql = "SELECT r.content, r.files, m.stage FROM memo_row r JOIN memo m USING (key) ORDER BY m.stage";
        self.list("read results", sql, [], |row| {
            for hash in wrong(row.get(0)?, row.get(1)?) {
                let stage: String = row.get(2)?;
                let told = used.entry(hash).or_default();
                if told.is_empty() {
                    told.push(format!("a result of stage `{stage}` that no pipeline publishes now"));
                }
            }
            Ok(())
        })?;
        Ok(used)
    }

    /// Files outside the store have the bytes that were placed. Only those are read that were touched since.
    fn verify_placed(&self, verified: &mut Verified) -> Result<()> {
        let sql = "SELECT root, version, file, size, mtime_ns, blob, pipeline, stage FROM placed ORDER BY root, file";
        let placed = self.list("read placed files", sql, [], |row| {
            let (root, version, file): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let root = PathBuf::from(root);
            let folder = if version > 0 { root.join(version_name(version as u64)) } else { root };
            let stamp: (i64, i64) = (row.get(3)?, row.get(4)?);
            let [pipeline, stage]: [String; 2] = [row.get(6)?, row.get(7)?];
            Ok((folder.join(file), stamp, row.get::<_, Hash>(5)?, format!("stage `{stage}` in pipeline `{pipeline}`")))
        })?;
        verified.placed = placed.len() as u64;
        for (path, stamp, blob, stage) in placed {
            let reason = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => "it is not there".to_owned(),
                Err(error) => format!("cannot be looked at: {error}"),
                Ok(now) if now.is_file() && (now.len() as i64, mtime_ns(&now)) == stamp => continue,
                Ok(_) => match Hash::of_file(&path) {
                    Ok(found) if found == blob => continue,
                    Ok(_) => "it was changed".to_owned(),
                    Err(error) => format!("cannot be read: {error}"),
                },
            };
            let what = path.display().to_string();
            verified.damages.push(Damage { kind: DamageKind::Placed, what, reason, used_by: vec![stage] });
        }
        Ok(())
    }
}

/// Reads blobs, all or a sample; gives those that are wrong.
fn read_blobs(
    mut blobs: Vec<(Hash, PathBuf, u64)>,
    sample: Option<usize>,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
    verified: &mut Verified,
) -> Wrong {
    verified.all_blobs = blobs.len() as u64;
    if let Some(sample) = sample {
        blobs.sort_by_cached_key(|(hash, _, _)| Fingerprint::new().part(&seed.to_le_bytes()).hash(hash).finish());
        blobs.truncate(sample);
    }
    let total = blobs.iter().map(|(_, _, size)| size).sum();
    let mut wrong = Wrong::new();
    for (hash, path, size) in blobs {
        let reason = match Hash::of_file(&path) {
            Ok(found) if found == hash => None,
            Ok(_) => Some("its bytes are not those that it is named by".to_owned()),
            Err(error) => Some(format!("cannot be read: {error}")),
        };
        wrong.extend(reason.map(|reason| (hash, (DamageKind::Blob, reason))));
        verified.blobs += 1;
        verified.size_bytes += size;
        progress(verified.size_bytes, total);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::Row;
    use super::super::tests::{published, remember, row, temp};
    use super::*;

    /// A store with two published rows, one of them a blob, each with a file that is also placed.
    fn store() -> (tempfile::TempDir, Store, Vec<Row>) {
        let (dir, path) = temp();
        let store = Store::open(path).unwrap();
        let rows = [("short", 10), ("long", rows::INLINE_BYTES)].map(|(id, size)| {
            let files = vec![(format!("{id}.mp4"), store.blobs().put(id.as_bytes()).unwrap())];
            let (_, memo) = remember(&store, id, &[("", row(id, size), &files)]);
            Row { content: memo[0].content, files, ..published("codes", id, b"") }
        });
        let run = store.begin_run("p", "{}").unwrap();
        store.publish("p", run, &rows, &[]).unwrap();
        let placement = crate::stage::Placement { path: dir.path().join("out"), versioned: false };
        let files = rows.iter().flat_map(|row| row.files.clone()).collect();
        super::super::place(&store, "p", "codes", &placement, &files).unwrap();
        (dir, store, rows.to_vec())
    }

    fn damages(store: &Store) -> Vec<(DamageKind, String, Vec<String>)> {
        let found = store.verify(None, 0, &mut |_, _| {}).unwrap();
        found.damages.into_iter().map(|damage| (damage.kind, damage.what, damage.used_by)).collect()
    }

    fn change(store: &Store, sql: &str, hash: Hash) {
        store.change("damage", "commit", |manifest| manifest.execute(sql, [hash]).map(drop)).unwrap();
    }

    #[test]
    fn a_sound_store_has_no_damage() {
        let (_dir, store, _) = store();
        let mut told = Vec::new();
        let found = store.verify(None, 0, &mut |done, total| told.push((done, total))).unwrap();
        let counts = (found.blobs, found.all_blobs, found.rows, found.published, found.placed);
        assert_eq!((counts, found.damages), ((3, 3, 2, 2, 2), Vec::new()));
        assert_eq!((told.len(), told[2]), (3, (found.size_bytes, found.size_bytes)));
    }

    #[test]
    fn each_damage_is_told_with_what_goes_back_to_it() {
        let (dir, store, rows) = store();
        let [short, long] = [0, 1].map(|at: usize| format!("`{}` of stage `codes` in pipeline `p`", rows[at].id));
        let path = |hash: &Hash| store.blobs().path(hash);
        let bytes = store.blob_of(&rows[1].content).unwrap().unwrap();
        fs::write(path(&bytes), "other").unwrap();
        fs::remove_file(path(&rows[1].files[0].1)).unwrap();
        change(&store, "UPDATE payload SET bytes = x'00' WHERE content = ?1", rows[0].content);
        fs::write(dir.path().join("out/short.mp4"), "mine").unwrap();
        let (_, memo) = remember(&store, "unused", &[("", row("unused", 5), &[])]);
        change(&store, "DELETE FROM payload WHERE content = ?1", memo[0].content);
        let unused = "a result of stage `codes` that no pipeline publishes now".to_owned();
        let expected = [
            (DamageKind::Blob, bytes.to_string(), vec![long.clone()]),
            (DamageKind::MissingBlob, rows[1].files[0].1.to_string(), vec![long.clone()]),
            (DamageKind::Row, rows[0].content.to_string(), vec![short.clone()]),
            (DamageKind::MissingRow, memo[0].content.to_string(), vec![unused]),
            (
                DamageKind::Placed,
                dir.path().join("out/short.mp4").display().to_string(),
                vec!["stage `codes` in pipeline `p`".to_owned()],
            ),
        ];
        assert_eq!(damages(&store), expected);
        assert_eq!(store.memos(&[Hash::of_bytes(b"short")]).unwrap().iter().flatten().count(), 1, "nobody has noticed");

        // What is set aside counts as missing, so that its unit is computed again.
        let found = store.verify(None, 0, &mut |_, _| {}).unwrap();
        assert_eq!(store.set_aside(&found).unwrap(), 2);
        assert_eq!(fs::read(store.damaged_dir().join(bytes.to_string())).unwrap(), b"other");
        assert_eq!(store.memos(&[b"short".as_slice(), b"long"].map(Hash::of_bytes)).unwrap(), [None, None]);
        let kinds: Vec<DamageKind> = damages(&store).into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(
            kinds,
            [
                DamageKind::MissingBlob,
                DamageKind::MissingBlob,
                DamageKind::MissingRow,
                DamageKind::MissingRow,
                DamageKind::Placed
            ]
        );
        for (id, size) in [("short", 10), ("long", rows::INLINE_BYTES)] {
            let files = vec![(format!("{id}.mp4"), store.blobs().put(id.as_bytes()).unwrap())];
            remember(&store, id, &[("", row(id, size), &files)]);
        }
        assert!(
            damages(&store)
                .iter()
                .all(|(kind, what, _)| { *kind == DamageKind::Placed || *what == memo[0].content.to_string() })
        );
    }

    #[test]
    fn a_published_row_that_no_result_has_is_told() {
        let (_dir, store, rows) = store();
        change(&store, "DELETE FROM memo_row WHERE content = ?1", rows[0].content);
        let found = damages(&store);
        assert_eq!((found.len(), found[0].0, &found[0].1), (1, DamageKind::MissingRow, &rows[0].content.to_string()));
    }

    #[test]
    fn a_sample_is_as_large_as_asked_and_the_seed_chooses_it() {
        let (_dir, path) = temp();
        let store = Store::open(path).unwrap();
        let blobs: Vec<Hash> = (0..40).map(|i: u8| store.blobs().put(&[i]).unwrap()).collect();
        blobs.iter().for_each(|blob| fs::write(store.blobs().path(blob), "").unwrap());
        let sample = |count, seed| {
            let found = store.verify(Some(count), seed, &mut |_, _| {}).unwrap();
            assert_eq!((found.blobs, found.all_blobs), (count.min(40) as u64, 40));
            found.damages.into_iter().map(|damage| damage.what).collect::<Vec<_>>()
        };
        assert_eq!((sample(7, 1).len(), sample(99, 1).len()), (7, 40));
        assert_eq!(sample(7, 1), sample(7, 1));
        assert_ne!(sample(7, 1), sample(7, 2));
    }

    #[test]
    fn a_manifest_that_sqlite_finds_fault_with_is_told() {
        let (_dir, store, _) = store();
        let page = |name: &str| {
            let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
            store.list("find a page", sql, [name], |row| row.get::<_, i64>(0)).unwrap()[0] as u64 - 1
        };
        let (page, dir) = (page("published"), store.dir().to_owned());
        drop(store);
        let manifest = fs::File::options().write(true).open(dir.join("manifest.sqlite")).unwrap();
        manifest.write_all_at(&[0xff; 4096], page * 4096).unwrap();
        let found = damages(&Store::open_still(dir).unwrap());
        assert!(found.iter().all(|(kind, what, _)| *kind == DamageKind::Manifest && what == "manifest.sqlite"));
        assert!(!found.is_empty());
    }
}
