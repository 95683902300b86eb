//! What differential collections hold: names and hashes, small enough to keep by the million.

use std::cmp::Ordering;
use std::hash::{Hash as StdHash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Hash;
use crate::store::{Class, Memo, MemoRow, Row};

/// A row (or a source's file): its name, its content, where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "PlainItem", into = "PlainItem")]
pub(crate) struct Item {
    pub(crate) id: Arc<str>,
    pub(crate) content: Hash,
    /// The content of the file that it goes back to.
    pub(crate) source: Option<Hash>,
    /// The path of that file.
    pub(crate) origin: Option<Arc<str>>,
    /// Blobs to publish as files.
    pub(crate) files: Arc<[(String, Hash)]>,
}

/// An [`Item`] between processes.
#[derive(Serialize, Deserialize)]
struct PlainItem {
    id: String,
    content: [u8; 32],
    source: Option<[u8; 32]>,
    origin: Option<String>,
    files: Vec<(String, [u8; 32])>,
}

impl From<PlainItem> for Item {
    fn from(item: PlainItem) -> Item {
        Item {
            id: item.id.into(),
            content: Hash(item.content),
            source: item.source.map(Hash),
            origin: item.origin.map(Arc::from),
            files: item.files.into_iter().map(|(path, hash)| (path, Hash(hash))).collect(),
        }
    }
}

impl From<Item> for PlainItem {
    fn from(item: Item) -> PlainItem {
        PlainItem {
            id: item.id.as_ref().to_owned(),
            content: item.content.0,
            source: item.source.map(|hash| hash.0),
            origin: item.origin.as_deref().map(str::to_owned),
            files: item.files.iter().map(|(path, hash)| (path.clone(), hash.0)).collect(),
        }
    }
}

impl Item {
    pub(crate) fn of_row(row: Row) -> Item {
        Item {
            id: row.id.into(),
            content: row.content,
            source: None,
            origin: row.origin.map(Arc::from),
            files: row.files.into(),
        }
    }

    pub(crate) fn into_row(self, stage: &str) -> Row {
        Row {
            stage: stage.to_owned(),
            id: self.id.as_ref().to_owned(),
            content: self.content,
            origin: self.origin.as_deref().map(str::to_owned),
            files: self.files.to_vec(),
        }
    }
}

/// A complete table, or a shard of it. The root names its ids and contents, so two of them are compared by it first.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) root: Hash,
    /// Sorted by id.
    pub(crate) rows: Arc<[Item]>,
}

impl Ord for Whole {
    fn cmp(&self, other: &Whole) -> Ordering {
        // Rows with equal roots may still go back to other files.
        let rows = || if Arc::ptr_eq(&self.rows, &other.rows) { Ordering::Equal } else { self.rows.cmp(&other.rows) };
        self.root.cmp(&other.root).then_with(rows)
    }
}

impl PartialOrd for Whole {
    fn partial_cmp(&self, other: &Whole) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Whole {
    fn eq(&self, other: &Whole) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Whole {}

impl StdHash for Whole {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.root.hash(state);
    }
}

impl Serialize for Whole {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.root.0, self.rows.to_vec()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Whole, D::Error> {
        let (root, rows) = <([u8; 32], Vec<Item>)>::deserialize(deserializer)?;
        Ok(Whole { root: Hash(root), rows: rows.into() })
    }
}

/// A unit before its key is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Work {
    /// The row or file; for a unit of whole tables only its id counts.
    pub(crate) item: Item,
    /// One per whole input of the group.
    pub(crate) tables: Vec<Whole>,
}

impl Work {
    pub(crate) fn of_item(item: Item) -> Work {
        Work { item, tables: Vec::new() }
    }

    /// Equal content meets on one worker, so that a copy of a unit finds the one that is being computed.
    pub(crate) fn route(&self) -> u64 {
        let roots = self.tables.iter().map(|whole| first_bytes(&whole.root));
        roots.fold(first_bytes(&self.item.content), |route, root| route.rotate_left(1) ^ root)
    }
}

/// A hash as a number that is spread evenly.
pub(crate) fn first_bytes(hash: &Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Why a unit has no rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "PlainFault", into = "PlainFault")]
pub(crate) struct Fault {
    pub(crate) unit: Arc<str>,
    pub(crate) path: Option<Arc<str>>,
    pub(crate) class: Class,
    pub(crate) reason: String,
    /// Under which the store remembers it.
    pub(crate) key: Option<Hash>,
}

/// A [`Fault`] between processes.
type PlainFault = (String, Option<String>, Class, String, Option<[u8; 32]>);

impl From<PlainFault> for Fault {
    fn from((unit, path, class, reason, key): PlainFault) -> Fault {
        Fault { unit: unit.into(), path: path.map(Arc::from), class, reason, key: key.map(Hash) }
    }
}

impl From<Fault> for PlainFault {
    fn from(fault: Fault) -> PlainFault {
        let path = fault.path.as_deref().map(str::to_owned);
        (fault.unit.as_ref().to_owned(), path, fault.class, fault.reason, fault.key.map(|key| key.0))
    }
}

/// What a group's operator says, with the index of the stage that says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Yield {
    Row { stage: u32, item: Item },
    Fault { stage: u32, fault: Fault },
}

/// The result of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Rows(Arc<[MemoRow]>),
    /// No result of these inputs: what was published before.
    Held(Arc<[Item]>),
    /// `depth`: it is the fault of the n-th transient stage before the stored one.
    Fault {
        depth: Option<usize>,
        class: Class,
        reason: String,
    },
}

impl Settled {
    pub(crate) fn from_memo(memo: Memo) -> Settled {
        match memo {
            Memo::Rows(rows) => Settled::Rows(rows.into()),
            Memo::Bad(text) => {
                let via = text.strip_prefix(VIA).and_then(|rest| rest.split_once(": "));
                let via = via.and_then(|(depth, reason)| Some((depth.parse().ok()?, reason.to_owned())));
                let (depth, reason) = via.map_or((None, text), |(depth, reason)| (Some(depth), reason));
                Settled::Fault { depth, class: Class::Bad, reason }
            }
        }
    }

    /// Whether another try may end otherwise.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Settled::Fault { class: Class::Transient | Class::Bug, .. })
    }

    /// `None` for what the next run shall try again, or hold again.
    pub(crate) fn to_memo(&self) -> Option<Memo> {
        match self {
            Settled::Rows(rows) => Some(Memo::Rows(rows.to_vec())),
            Settled::Fault { depth: Some(depth), class: Class::Bad, reason } => {
                Some(Memo::Bad(format!("{VIA}{depth}: {reason}")))
            }
            Settled::Fault { depth: None, class: Class::Bad, reason } => Some(Memo::Bad(reason.clone())),
            Settled::Held(_) | Settled::Fault { .. } => None,
        }
    }
}

/// Marks the reason of a transient stage in the memo of a stored one. A memo names no stage: its key would stay the same
/// if that were renamed.
const VIA: &str = "transient stage ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back() {
        let bad = |depth, reason: &str| Settled::Fault { depth, class: Class::Bad, reason: reason.into() };
        let row = MemoRow { name: "0".into(), content: Hash([7; 32]), files: vec![], len: 3 };
        for settled in [
            Settled::Rows(Arc::from([row])),
            bad(None, "no frames: 3"),
            bad(Some(0), "no frames: 3"),
            bad(Some(12), "transient stage 3: x"),
            bad(None, "transient stage is: unwell"),
        ] {
            assert_eq!(Settled::from_memo(settled.to_memo().unwrap()), settled);
        }
        for class in [Class::Transient, Class::Bug] {
            assert_eq!(Settled::Fault { depth: None, class, reason: String::new() }.to_memo(), None);
        }
    }

    #[test]
    fn items_travel_between_processes() {
        let item = Item {
            id: "a/b.mp4#3".into(),
            content: Hash([1; 32]),
            source: Some(Hash([4; 32])),
            origin: Some("/data/a/b.mp4".into()),
            files: Arc::from([("x.mp4".to_owned(), Hash([2; 32]))]),
        };
        let work = Work { item: item.clone(), tables: vec![Whole { root: Hash([3; 32]), rows: Arc::from([item]) }] };
        let text = serde_json::to_string(&work).unwrap();
        assert_eq!(serde_json::from_str::<Work>(&text).unwrap(), work);
    }
}
