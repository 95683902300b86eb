//! Tables taken as a whole: complete once the ingest is, named by a root over their rows.

use std::sync::Arc;

use differential_dataflow::VecCollection;

use super::Time;
use super::item::{Item, Whole, first_bytes};
use crate::fingerprint::{Fingerprint, Hash};

/// Times of one ingest (a scan of the sources, or a group of file events) share their upper bits; the lower ones count
/// its rounds.
const ROUND_BITS: u32 = 32;

/// The last time of the ingest that `time` belongs to: there, its tables are complete.
pub(crate) fn end_of_ingest(time: &Time) -> Time {
    time | ((1 << ROUND_BITS) - 1)
}

/// The first time of the ingest that `time` belongs to.
pub(crate) fn begin_of_ingest(time: &Time) -> Time {
    time >> ROUND_BITS << ROUND_BITS
}

/// The table's shards that have rows, at the end of each ingest. Rows are spread over shards by the hash of their id, so
/// one changed row changes one shard. `read_files`: the rows are read through transient stages that read their files.
pub(crate) fn whole_table<'s>(
    rows: VecCollection<'s, Time, Item>,
    shards: u32,
    read_files: bool,
) -> VecCollection<'s, Time, (u32, Whole)> {
    rows.delay(end_of_ingest).map(move |item| (shard(&item.id, shards), item)).reduce_named(
        "Whole",
        move |_, rows, output| {
            let present = rows.iter().filter(|(_, count)| *count > 0);
            // Differential presents rows sorted, and they sort by id first.
            let rows: Vec<Item> = present.map(|(item, _)| (*item).clone()).collect();
            if !rows.is_empty() {
                output.push((Whole { root: root(&rows, read_files), rows: rows.into() }, 1isize));
            }
        },
    )
}

/// The id of the unit that takes this shard of whole tables.
pub(crate) fn shard_id(stage: &str, shard: u32, shards: u32) -> Arc<str> {
    if shards == 1 { Arc::from(stage) } else { format!("shard-{shard:02}").into() }
}

/// Which shard the row of this id is in.
pub(crate) fn shard(id: &str, shards: u32) -> u32 {
    (first_bytes(&Hash::of_bytes(id.as_bytes())) % u64::from(shards)) as u32
}

/// Names the rows, which are sorted and differ, with what determines them.
pub(crate) fn root(rows: &[Item], read_files: bool) -> Hash {
    let mut root = Fingerprint::new();
    for item in rows {
        root.text(&item.id).hash(&item.content);
        if let Some(source) = item.source.filter(|_| read_files) {
            root.text("file").hash(&source);
        }
    }
    root.finish()
}
