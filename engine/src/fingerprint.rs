//! Hashes that decide what is computed again: blake3 over length-prefixed parts.
//!
//! A stage's fingerprint covers what determines its results: kind, version, canonical params with defaults written in,
//! port schemas, the content of files that are parameters, and the numeric class where a device computes. It leaves out
//! how the work is done: threads, batch, memory, paths, comments, the clock.
//!
//! Every part is preceded by its length (u64, little endian), so `("ab", "c")` and `("a", "bc")` differ.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::plan::{Plan, PlannedStage};
use crate::stage::{Needs, Table};

/// 32 bytes of blake3. As text: 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    pub fn of_bytes(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }

    /// Reads the file in pieces; memory does not grow with its length.
    pub fn of_file(path: impl AsRef<Path>) -> io::Result<Hash> {
        Hash::of_reader(File::open(path)?)
    }

    /// All that is left in `reader`.
    pub fn of_reader(mut reader: impl Read) -> io::Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; 1 << 18];
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok(Hash(*hasher.finalize().as_bytes())),
                Ok(length) => hasher.update(&piece[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
        }
    }

    /// The first 12 digits: enough for people to tell things apart.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({})", self.short())
    }
}

/// Text that is not 64 hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no hash; it wants 64 hex digits")]
pub struct NoHash(String);

impl FromStr for Hash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Hash, NoHash> {
        let wrong = || NoHash(text.to_owned());
        let digits = text.as_bytes();
        // `from_str_radix` alone would take a sign.
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Hash(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Builds a [`struct@Hash`] from parts whose borders count.
#[derive(Clone, Default)]
pub struct Fingerprint {
    hasher: blake3::Hasher,
}

impl Fingerprint {
    pub fn new() -> Fingerprint {
        Fingerprint::default()
    }

    pub fn part(&mut self, bytes: &[u8]) -> &mut Fingerprint {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Fingerprint {
        self.part(text.as_bytes())
    }

    pub fn hash(&mut self, hash: &Hash) -> &mut Fingerprint {
        self.part(&hash.0)
    }

    pub fn finish(&self) -> Hash {
        Hash(*self.hasher.finalize().as_bytes())
    }
}

/// The fingerprint of each stage of the plan, in the plan's order. It covers the stage alone: what flows in (rows, and
/// the transient stages before it) enters the key of each unit.
///
/// `numeric` names the class of arithmetic (device family, precision); it counts for stages that need a device.
/// `file_hash` gives a file's content; a failure becomes [`Error::MissingFile`] with the stage and key it stands under.
pub fn fingerprints(plan: &Plan, numeric: &str, file_hash: &mut dyn FnMut(&Path) -> Result<Hash>) -> Result<Vec<Hash>> {
    plan.stages.iter().map(|stage| fingerprint(stage, numeric, file_hash)).collect()
}

fn fingerprint(stage: &PlannedStage, numeric: &str, file_hash: &mut dyn FnMut(&Path) -> Result<Hash>) -> Result<Hash> {
    let mut params = stage.stage.canonical();
    let mut key = Vec::new();
    replace_tags(&mut params, &mut key, &mut |key, path| {
        file_hash(path).map_err(|e| Error::MissingFile {
            stage: stage.id.clone(),
            key: key.join("."),
            path: path.to_owned(),
            reason: e.to_string(),
        })
    })?;

    let mut hash = Fingerprint::new();
    hash.text("vw2").text(stage.kind.kind).part(&stage.kind.version.to_le_bytes()).text(&params.to_string());
    for input in &stage.inputs {
        hash.text("input").text(input.port.name);
        add_table(&mut hash, input.port.table);
    }
    hash.text("output");
    add_table(&mut hash, stage.kind.output);
    hash.text("shards").part(&stage.shards.unwrap_or(0).to_le_bytes());
    if stage.needs == Needs::Device {
        hash.text("numeric").text(numeric);
    }
    Ok(hash.finish())
}

/// The `"$file"` values in canonical params, in order, with the dotted key under which each stands.
pub(crate) fn tagged_files(params: &Value) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let mut copy = params.clone();
    let found = replace_tags(&mut copy, &mut Vec::new(), &mut |key, path| {
        files.push((key.join("."), path.to_owned()));
        Ok(Hash::default())
    });
    found.expect("collecting paths cannot fail");
    files
}

/// `{"$file": path}` becomes the hash that `content` gives, `{"$path": _}` and `{"$how": _}` go away.
fn replace_tags(
    value: &mut Value,
    key: &mut Vec<String>,
    content: &mut dyn FnMut(&[String], &Path) -> Result<Hash>,
) -> Result<()> {
    if let Some(path) = tag(value, "$file") {
        *value = Value::String(format!("file {}", content(key, Path::new(&path))?));
        return Ok(());
    }
    match value {
        Value::Object(map) => {
            map.retain(|_, inner| !is_how(inner));
            for (name, inner) in map {
                key.push(name.clone());
                replace_tags(inner, key, content)?;
                key.pop();
            }
        }
        Value::Array(list) => {
            list.retain(|inner| !is_how(inner));
            for (index, inner) in list.iter_mut().enumerate() {
                key.push(index.to_string());
                replace_tags(inner, key, content)?;
                key.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether a parameter says where or how, never what.
fn is_how(value: &Value) -> bool {
    let how = |map: &serde_json::Map<String, Value>| map.len() == 1 && map.contains_key("$how");
    tag(value, "$path").is_some() || value.as_object().is_some_and(how)
}

fn tag(value: &Value, name: &str) -> Option<String> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get(name)?.as_str().map(str::to_owned)
}

/// Arrow prints a field with its name, type and metadata, always in one order.
fn add_table(hash: &mut Fingerprint, table: &Table) {
    hash.text(table.name);
    for field in (table.schema)().fields() {
        hash.text(&field.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_blake3() {
        // From the reference implementation.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Hash::of_bytes(b"").to_string(), empty);
        assert_eq!(Hash::of_reader(&b""[..]).unwrap(), Hash::of_bytes(b""));
        let long: Vec<u8> = (0..1_000_000).map(|i| (i % 251) as u8).collect();
        assert_eq!(Hash::of_reader(long.as_slice()).unwrap(), Hash::of_bytes(&long));
        assert!(Hash::of_file("no such file").is_err());
    }

    #[test]
    fn parts_have_borders() {
        // blake3 of 02 00.. "ab" 01 00.. "c", from the reference implementation.
        let known = Fingerprint::new().text("ab").part(b"c").finish();
        assert_eq!(known, Hash::of_bytes(b"\x02\0\0\0\0\0\0\0ab\x01\0\0\0\0\0\0\0c"));
        let all = [&["ab", "c"][..], &["a", "bc"], &["abc"], &["ab", "c", ""], &[]];
        let hash = |parts: &[&str]| {
            let mut hash = Fingerprint::new();
            parts.iter().for_each(|part| {
                hash.text(part);
            });
            hash.finish()
        };
        for (index, parts) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| hash(other) != hash(parts)), "{parts:?}");
        }
        assert_eq!(Fingerprint::new().hash(&known).finish(), Fingerprint::new().part(&known.0).finish());
    }

    #[test]
    fn a_hash_survives_its_text() {
        let hash = Hash::of_bytes(b"clip");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        assert_eq!(hash.short(), &hash.to_string()[..12]);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json, format!("\"{hash}\""));
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), hash);
        for wrong in ["", "ab", &"g".repeat(64), &"é".repeat(32), &format!("+{}", "0".repeat(63)), &"0".repeat(65)] {
            assert!(wrong.parse::<Hash>().is_err(), "`{wrong}`");
        }
    }

    #[test]
    fn tags_are_found_where_they_stand() {
        let params = serde_json::json!({
            "a": {"$file": "x"}, "b": [{"$file": "y"}, {"$path": "z"}], "c": {"d": {"$file": "w"}},
            "e": {"$file": "x", "more": 1}, "f": {"$path": "out"}, "g": {"$how": {"minutes": 5}},
        });
        let files: Vec<_> =
            tagged_files(&params).into_iter().map(|(key, path)| (key, path.display().to_string())).collect();
        let expected = [("a", "x"), ("b.0", "y"), ("c.d", "w")].map(|(k, p)| (k.to_owned(), p.to_owned()));
        assert_eq!(files, expected);
        let mut replaced = params;
        replace_tags(&mut replaced, &mut Vec::new(), &mut |_, _| Ok(Hash::default())).unwrap();
        let zero = format!("file {}", "0".repeat(64));
        assert_eq!(
            replaced,
            serde_json::json!({"a": zero, "b": [zero], "c": {"d": zero}, "e": {"$file": "x", "more": 1}})
        );
    }
}
