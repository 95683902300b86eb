//! Units whose result the store knows as things stand, and a sample of them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::derive::{Item, Settled, Whole, Work, root, shard, shard_id};
use crate::error::Result;
use crate::fingerprint::{Fingerprint, Hash};
use crate::run::feed::scan;
use crate::run::graph::{Graph, Group, GroupInput, WholeInput};
use crate::store::{MemoRow, Store};

/// Keys that the store is asked for at once.
const GROUP: usize = 1024;

/// A unit to compute again.
#[derive(Clone)]
pub(super) struct Drawn {
    pub(super) group: usize,
    pub(super) member: usize,
    pub(super) key: Hash,
    pub(super) work: Work,
    /// What the store has.
    pub(super) rows: Arc<[MemoRow]>,
}

impl Drawn {
    pub(super) fn stage(&self, graph: &Graph) -> usize {
        graph.groups[self.group].members[self.member].stage
    }

    /// The file that it goes back to, with its content.
    pub(super) fn source(&self) -> Option<(Arc<str>, Hash)> {
        Some((self.work.item.origin.clone()?, self.work.item.source?))
    }
}

/// A sample of the units that have rows, in an order that the seed chooses, and how many there are.
pub(super) fn draw(
    graph: &Graph,
    store: &Store,
    limit: Option<usize>,
    sample: usize,
    seed: u64,
) -> Result<(Vec<Drawn>, u64)> {
    let mut tables: Vec<Vec<Item>> = graph.stages.iter().map(|_| Vec::new()).collect();
    let mut drawn: BTreeMap<Hash, Drawn> = BTreeMap::new();
    let mut keys_known = HashSet::new();
    for (index, group) in graph.groups.iter().enumerate() {
        let works = works(graph, store, limit, group, &tables)?;
        for works in works.chunks(GROUP) {
            let root = |whole: &Whole| whole.root;
            let keys: Vec<Vec<Hash>> = works
                .iter()
                .map(|work| graph.keys(index, &work.item, &work.tables.iter().map(root).collect::<Vec<_>>()))
                .collect();
            let mut memos = store.memos(&keys.iter().flatten().copied().collect::<Vec<_>>())?.into_iter();
            for (work, keys) in works.iter().zip(keys) {
                for (member, key) in keys.into_iter().enumerate() {
                    let Some(Settled::Rows(rows)) = memos.next().flatten().map(Settled::from_memo) else { continue };
                    let of = &group.members[member];
                    tables[of.stage].extend(rows.iter().map(|row| graph.row_of(of, &work.item, row)));
                    if keys_known.insert(key) {
                        let rank = Fingerprint::new().part(&seed.to_le_bytes()).hash(&key).finish();
                        drawn.insert(rank, Drawn { group: index, member, key, work: work.clone(), rows });
                        if drawn.len() > sample {
                            drawn.pop_last();
                        }
                    }
                }
            }
        }
        for member in &group.members {
            tables[member.stage].sort();
            tables[member.stage].dedup();
        }
    }
    Ok((drawn.into_values().collect(), keys_known.len() as u64))
}

/// All units of a group, as far as the tables before it are known.
fn works(graph: &Graph, store: &Store, limit: Option<usize>, group: &Group, tables: &[Vec<Item>]) -> Result<Vec<Work>> {
    let whole = |input: &WholeInput, rows: &[Item]| Whole {
        root: root(rows, graph.read_files(&input.chain)),
        rows: Arc::from(rows),
    };
    Ok(match group.input {
        GroupInput::Files(stage) => {
            let (files, _) = scan(&graph.stages[stage], limit)?;
            // A file that cannot be read has no result.
            let unit = |(id, path): (Arc<str>, Arc<str>)| {
                let content = store.file_hash(Path::new(&*path)).ok()?;
                let (source, origin) = (Some(content), Some(path));
                Some(Work::of_item(Item { id, content, source, origin, files: Arc::default() }))
            };
            files.into_iter().filter_map(unit).collect()
        }
        GroupInput::Rows(_) if group.wholes.iter().any(|input| tables[input.base].is_empty()) => Vec::new(),
        GroupInput::Rows(base) => {
            let wholes: Vec<Whole> = group.wholes.iter().map(|input| whole(input, &tables[input.base])).collect();
            tables[base].iter().map(|item| Work { item: item.clone(), tables: wholes.clone() }).collect()
        }
        GroupInput::Shards(count) => {
            let mut parts: BTreeMap<u32, Vec<Vec<Item>>> = BTreeMap::new();
            for (at, input) in group.wholes.iter().enumerate() {
                for item in &tables[input.base] {
                    let part =
                        parts.entry(shard(&item.id, count)).or_insert_with(|| vec![Vec::new(); group.wholes.len()]);
                    part[at].push(item.clone());
                }
            }
            let complete = parts.into_iter().filter(|(_, parts)| parts.iter().all(|rows| !rows.is_empty()));
            let unit = |(shard, parts): (u32, Vec<Vec<Item>>)| {
                let id = shard_id(&graph.stages[group.members[0].stage].id, shard, count);
                let item = Item { id, content: Hash::default(), source: None, origin: None, files: Arc::default() };
                Work { item, tables: group.wholes.iter().zip(&parts).map(|(input, rows)| whole(input, rows)).collect() }
            };
            complete.map(unit).collect()
        }
    })
}
