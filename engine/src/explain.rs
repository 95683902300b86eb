//! What a run would do and why, without doing it: the plan's groups are walked in order against what the store remembers.
//!
//! A unit whose inputs are all known has a key, so whether it runs is certain. Rows of a unit that runs are not known
//! before it has run; whatever takes them is counted as if it ran, and as unsure: equal rows would come as hits after all.
//! How many rows come is guessed from what is published for the same unit now; where nothing is, there may be more.
//!
//! Opens no operator and no device, and writes nothing, so it works beside a run. Source files are read only where their
//! size or times differ from when a run saw them; of files that no run ever saw, [`READ_BYTES`] at most.

mod past;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::derive::{Item, Settled, result_key, root, shard, shard_id};
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use crate::plan::Plan;
use crate::pool::Progress;
use crate::report::record;
use crate::run::feed::scan;
use crate::run::graph::{Graph, Group, GroupInput, Member};
use crate::spec::OnChange;
use crate::store::{Class, Row, Store};
use past::Past;

/// New files are read up to so many bytes, to find copies and renames; above it they count as new without a look.
pub const READ_BYTES: u64 = 64 << 20;

/// Unit ids that stand beside each reason.
const EXAMPLES: usize = 3;

/// As [`crate::run::Options`] has them.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub limit: Option<usize>,
    pub numeric: String,
}

/// What a run would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    pub pipeline: String,
    /// In the plan's order; stages that left the pipeline follow, if rows of theirs are published.
    pub stages: Vec<StageExplanation>,
}

/// What a run would do in one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageExplanation {
    pub id: String,
    pub kind: String,
    /// Keeps nothing; its units run as others need them.
    pub transient: bool,
    /// Units whose result the store has, or gets from an equal unit that runs.
    pub known: u64,
    /// Units known to be bad, or whose file cannot be read.
    pub quarantined: u64,
    pub to_run: u64,
    /// Of these, units with inputs that are computed first.
    pub unsure: u64,
    /// How many run is known only when the stages before it have run: at least so many, as far as can be seen.
    pub more: bool,
    /// Published rows that are surely taken back. Rows of units that run may follow.
    pub to_retract: u64,
    /// Why units run.
    pub reasons: Vec<Reason>,
    /// Why rows are taken back.
    pub retractions: Vec<Reason>,
    /// Time of the units to run in the stage's operators, by the mean of past ones; `None` without past.
    pub seconds: Option<f64>,
    /// Their rows, likewise.
    pub size_bytes: Option<u64>,
}

/// Units with one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub why: String,
    pub count: u64,
    /// The first few ids.
    pub examples: Vec<String>,
}

impl Explanation {
    pub fn stage(&self, id: &str) -> Option<&StageExplanation> {
        self.stages.iter().find(|stage| stage.id == id)
    }

    /// A run would compute and take back nothing.
    pub fn is_nothing(&self) -> bool {
        self.stages.iter().all(|stage| stage.to_run == 0 && !stage.more && stage.to_retract == 0)
    }

    /// Stages by id, in order.
    pub fn to_json(&self) -> Value {
        let stages: Map<String, Value> = self.stages.iter().map(|stage| (stage.id.clone(), json!(stage))).collect();
        json!({ "pipeline": self.pipeline, "nothing_to_do": self.is_nothing(), "stages": stages })
    }
}

/// What [`crate::run::run`] would do now. `None` for a store that does not exist yet.
///
/// # Errors
/// What would keep a run from starting: a source's folder or a weights file that is missing, a damaged manifest.
pub fn explain(plan: &Plan, store: Option<&Store>, options: &Options) -> Result<Explanation> {
    let (fingerprints, recorded) = record(plan, &options.numeric, &mut |path| match store {
        None => Ok(Hash::default()),
        Some(store) => match store.remembered_hash(path)? {
            Some(hash) => Ok(hash),
            None => Hash::of_file(path).map_err(Error::io("read", path)),
        },
    })?;
    let graph = Graph::new(plan, &fingerprints, &Progress::new());
    let past = store.map(|store| Past::of(plan, store)).transpose()?.unwrap_or_default();
    let mut before = Published::default();
    let mut failed = HashSet::new();
    if let Some(store) = store {
        store.published(&plan.name)?.into_iter().for_each(|row| before.add(row));
        let again = store.quarantine(&plan.name)?.into_iter().filter(|entry| entry.class != Class::Bad);
        failed = again.map(|entry| (entry.stage, entry.unit)).collect();
    }
    let stages = plan.stages.iter().map(|stage| StageExplanation {
        id: stage.id.clone(),
        kind: stage.kind.kind.to_owned(),
        transient: stage.transient,
        ..StageExplanation::default()
    });
    let mut walk = Walk {
        store,
        limit: options.limit,
        graph: &graph,
        changes: recorded.iter().map(|stage| past.change(stage, &options.numeric)).collect(),
        past: &past,
        before: &before,
        failed,
        tables: plan.stages.iter().map(|_| Table::default()).collect(),
        files: HashMap::new(),
        scanned: HashSet::new(),
        unread_bytes: READ_BYTES,
        faulty: HashSet::new(),
        stages: stages.collect(),
    };
    for group in 0..graph.groups.len() {
        walk.group(group)?;
    }
    walk.retractions(plan);
    walk.costs();
    Ok(Explanation { pipeline: plan.name.clone(), stages: walk.stages })
}

/// What the pipeline publishes now.
#[derive(Default)]
struct Published {
    stages: HashMap<String, PublishedStage>,
}

#[derive(Default)]
struct PublishedStage {
    /// Content and file by id.
    rows: HashMap<Arc<str>, (Hash, Option<Arc<str>>)>,
    /// Ids by file.
    of_file: HashMap<Option<Arc<str>>, Vec<Arc<str>>>,
}

impl Published {
    fn add(&mut self, row: Row) {
        let (id, origin): (Arc<str>, Option<Arc<str>>) = (row.id.into(), row.origin.map(Arc::from));
        let stage = self.stages.entry(row.stage).or_default();
        stage.of_file.entry(origin.clone()).or_default().push(id.clone());
        stage.rows.insert(id, (row.content, origin));
    }
}

/// What a stage will yield, as far as that is known.
#[derive(Default)]
struct Table {
    known: Vec<Item>,
    /// Rows of units that run, without content.
    coming: Vec<Item>,
    /// There may be more than are coming.
    more: bool,
}

/// Something to look up.
struct Unit {
    /// Its content counts only where `complete`.
    item: Item,
    /// Of the tables that the group takes whole.
    roots: Vec<Hash>,
    /// All inputs are known, so it has a key.
    complete: bool,
    /// What it gets from the stages before it, if nothing about the stage itself is different.
    why: Option<String>,
}

/// What is different about a source's file.
#[derive(Clone, Copy)]
enum FileState {
    New,
    Changed,
}

struct Walk<'a> {
    store: Option<&'a Store>,
    limit: Option<usize>,
    graph: &'a Graph,
    past: &'a Past,
    before: &'a Published,
    /// By stage: what is different about it since it last ran.
    changes: Vec<Option<String>>,
    /// Stage and unit, where a run tries again.
    failed: HashSet<(String, String)>,
    tables: Vec<Table>,
    /// Files that differ from what is published.
    files: HashMap<Arc<str>, FileState>,
    scanned: HashSet<Arc<str>>,
    /// What may still be read of new files.
    unread_bytes: u64,
    /// Stage and unit in quarantine: a transient stage's fault counts once.
    faulty: HashSet<(usize, Arc<str>)>,
    stages: Vec<StageExplanation>,
}

impl Walk<'_> {
    fn group(&mut self, index: usize) -> Result<()> {
        let graph = self.graph;
        let group = &graph.groups[index];
        let units = match group.input {
            GroupInput::Files(stage) => self.file_units(stage)?,
            GroupInput::Rows(base) => self.row_units(group, base),
            GroupInput::Shards(count) => self.shard_units(group, count),
        };
        let keys: Vec<Vec<Hash>> = units
            .iter()
            .map(|unit| if unit.complete { graph.keys(index, &unit.item, &unit.roots) } else { Vec::new() })
            .collect();
        let all: Vec<Hash> = keys.iter().flatten().copied().collect();
        let memos = match self.store {
            Some(store) => store.memos(&all)?,
            None => all.iter().map(|_| None).collect(),
        };
        let settled = all.into_iter().zip(memos).filter_map(|(key, memo)| Some((key, Settled::from_memo(memo?))));
        let settled: HashMap<Hash, Settled> = settled.collect();
        if let GroupInput::Files(stage) = group.input {
            units.iter().zip(&keys).for_each(|(unit, keys)| self.note_file(stage, unit, keys.first(), &settled));
        }
        let alone = alone(&units);
        let inherits_more = match group.input {
            GroupInput::Files(_) | GroupInput::Shards(1) => false,
            GroupInput::Rows(base) => self.tables[base].more,
            GroupInput::Shards(_) => group.wholes.iter().any(|input| self.tables[input.base].more),
        };
        for member in &group.members {
            for stage in member.counted.iter().chain([&member.stage]) {
                self.stages[*stage].more |= inherits_more;
            }
            self.tables[member.stage].more |= inherits_more;
        }
        let mut running = HashSet::new();
        for (unit, keys) in units.iter().zip(keys) {
            // Transient stages run once for all members of a group.
            let mut through: BTreeSet<usize> = BTreeSet::new();
            for (at, member) in group.members.iter().enumerate() {
                let key = keys.get(at);
                match key.and_then(|key| settled.get(key)) {
                    Some(settled) => self.known(member, unit, settled),
                    None if self.stays(member, unit, key)? => {}
                    None => {
                        let first = key.is_none_or(|key| running.insert(*key));
                        if first {
                            self.will_run(member, unit, key.is_some());
                            through.extend(member.chain.iter().copied());
                        } else {
                            self.stages[member.stage].known += 1;
                        }
                        self.predict(group, member, unit, &alone);
                    }
                }
            }
            for stage in through {
                self.stages[stage].to_run += 1;
                self.stages[stage].unsure += u64::from(!unit.complete);
            }
        }
        for member in &group.members {
            let table = &mut self.tables[member.stage];
            table.known.sort();
            table.known.dedup();
        }
        Ok(())
    }

    fn file_units(&mut self, stage: usize) -> Result<Vec<Unit>> {
        let (files, faults) = scan(&self.graph.stages[stage], self.limit)?;
        self.stages[stage].quarantined += faults.len() as u64;
        let published = self.before.stages.get(&self.graph.stages[stage].id);
        let mut units = Vec::with_capacity(files.len());
        for (id, path) in files {
            self.scanned.insert(path.clone());
            let known = published.is_some_and(|rows| rows.of_file.contains_key(&Some(path.clone())));
            match self.content(Path::new(&*path), known) {
                Ok(content) => units.push(Unit {
                    item: Item {
                        id,
                        content: content.unwrap_or_default(),
                        source: content,
                        origin: Some(path),
                        files: Arc::default(),
                    },
                    roots: Vec::new(),
                    complete: content.is_some(),
                    why: None,
                }),
                Err(_) => self.stages[stage].quarantined += 1,
            }
        }
        Ok(units)
    }

    /// The file's content; `None` for a new file that is too long to read for this.
    fn content(&mut self, path: &Path, known: bool) -> Result<Option<Hash>> {
        let remembered = self.store.map(|store| store.remembered_hash(path)).transpose()?.flatten();
        if remembered.is_some() || self.store.is_none() {
            return Ok(remembered);
        }
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if !known {
            match self.unread_bytes.checked_sub(size) {
                Some(left) => self.unread_bytes = left,
                None => return Ok(None),
            }
        }
        Hash::of_file(path).map(Some).map_err(Error::io("read", path))
    }

    /// Notes what is new about a source's file: the reason for all that follows from it.
    fn note_file(&mut self, stage: usize, unit: &Unit, key: Option<&Hash>, settled: &HashMap<Hash, Settled>) {
        let Some(path) = &unit.item.origin else { return };
        let own = &self.graph.stages[stage];
        let published = self.before.stages.get(&own.id);
        let ids = published.and_then(|rows| rows.of_file.get(&Some(path.clone())));
        let tried = self.failed.contains(&(own.id.clone(), unit.item.id.to_string()));
        let state = match (published.zip(ids), key.and_then(|key| settled.get(key))) {
            (Some((published, ids)), Some(Settled::Rows(rows))) => {
                let same = |id| rows.iter().any(|row| Some(row.content) == published.rows.get(id).map(|row| row.0));
                (!ids.iter().all(same)).then_some(FileState::Changed)
            }
            (Some(_), Some(_)) => Some(FileState::Changed),
            (Some(_), None) => {
                let seen = self.store.and_then(|store| store.remembered_hash(Path::new(&**path)).ok().flatten());
                // A run that ended after it saw the file as it is left a result, which is gone.
                let lost = seen.is_some() && self.past.last_is_done();
                (!lost && self.changes[stage].is_none()).then_some(FileState::Changed)
            }
            (None, _) => (!tried).then_some(FileState::New),
        };
        if let Some(state) = state {
            self.files.insert(path.clone(), state);
        }
    }

    fn row_units(&self, group: &Group, base: usize) -> Vec<Unit> {
        let table = &self.tables[base];
        let mut roots = Vec::new();
        let mut why = None;
        for input in &group.wholes {
            let whole = &self.tables[input.base];
            if whole.known.is_empty() && whole.coming.is_empty() {
                return Vec::new();
            }
            why = why.or_else(|| self.whole_change(input.base));
            roots.push(root(&whole.known, self.graph.read_files(&input.chain)));
        }
        let tables_known = group.wholes.iter().all(|input| self.tables[input.base].coming.is_empty());
        let id = &self.graph.stages[base].id;
        let published = self.before.stages.get(id);
        let known = table.known.iter().map(|item| {
            let change = match published.and_then(|published| published.rows.get(&item.id)) {
                None => Some(format!("`{id}` has a new row")),
                Some((content, _)) if *content != item.content => Some(format!("its row of `{id}` changed")),
                Some(_) => why.clone(),
            };
            Unit { item: item.clone(), roots: roots.clone(), complete: tables_known, why: change }
        });
        let coming = table.coming.iter().map(|item| {
            let why = Some(format!("`{id}` runs before it"));
            Unit { item: item.clone(), roots: Vec::new(), complete: false, why }
        });
        known.chain(coming).collect()
    }

    fn shard_units(&self, group: &Group, count: u32) -> Vec<Unit> {
        let stage = &self.graph.stages[group.members[0].stage].id;
        // By whole table and shard: known rows, and whether others are coming.
        let cut = |base: usize| {
            let mut shards: HashMap<u32, (Vec<Item>, bool)> = HashMap::new();
            for item in &self.tables[base].known {
                shards.entry(shard(&item.id, count)).or_default().0.push(item.clone());
            }
            for item in &self.tables[base].coming {
                shards.entry(shard(&item.id, count)).or_default().1 = true;
            }
            shards
        };
        let tables: Vec<_> = group.wholes.iter().map(|input| cut(input.base)).collect();
        let shards: BTreeSet<u32> = tables[0].keys().copied().collect();
        let why = group.wholes.iter().find_map(|input| self.whole_change(input.base));
        let unit = |shard: u32| {
            let parts: Option<Vec<_>> = tables.iter().map(|table| table.get(&shard)).collect();
            let parts = parts?;
            let reads = group.wholes.iter().map(|input| self.graph.read_files(&input.chain));
            let item = Item {
                id: shard_id(stage, shard, count),
                content: Hash::default(),
                source: None,
                origin: None,
                files: Arc::default(),
            };
            Some(Unit {
                item,
                roots: parts.iter().zip(reads).map(|((rows, _), reads)| root(rows, reads)).collect(),
                complete: parts.iter().all(|(_, coming)| !coming),
                why: why.clone(),
            })
        };
        shards.into_iter().filter_map(unit).collect()
    }

    /// What is different about a table that is taken whole.
    fn whole_change(&self, base: usize) -> Option<String> {
        let (table, id) = (&self.tables[base], &self.graph.stages[base].id);
        if !table.coming.is_empty() {
            return Some(format!("`{id}` runs before it"));
        }
        let empty = PublishedStage::default();
        let published = self.before.stages.get(id).unwrap_or(&empty);
        let same = |item: &Item| published.rows.get(&item.id).is_some_and(|row| row.0 == item.content);
        let changed = table.known.len() != published.rows.len() || !table.known.iter().all(same);
        let changed = changed || table.known.iter().any(|item| self.file_state(item).is_some());
        changed.then(|| format!("`{id}` changed"))
    }

    fn file_state(&self, item: &Item) -> Option<FileState> {
        self.files.get(item.origin.as_ref()?).copied()
    }

    /// Whether a training stage keeps what it publishes: it holds it, or it went on to it from an older checkpoint with
    /// these very inputs.
    fn stays(&mut self, member: &Member, unit: &Unit, key: Option<&Hash>) -> Result<bool> {
        let stage = &self.graph.stages[member.stage];
        let Some(published) = self.before.stages.get(&stage.id).filter(|published| !published.rows.is_empty()) else {
            return Ok(false);
        };
        let result = key.map(|key| result_key(key, published.rows.values().map(|row| row.0)));
        let stays = match (stage.on_change, self.store, result) {
            (OnChange::Retrain, ..) => false,
            (OnChange::Hold, ..) => true,
            (OnChange::Warm, Some(store), Some(result)) => store.memos(&[result])?[0].is_some(),
            (OnChange::Warm, ..) => false,
        };
        if stays {
            let rows = published.rows.iter().map(|(id, row)| Item {
                id: id.clone(),
                content: row.0,
                source: unit.item.source,
                origin: unit.item.origin.clone(),
                files: Arc::default(),
            });
            self.tables[member.stage].known.extend(rows);
            self.stages[member.stage].known += 1;
        }
        Ok(stays)
    }

    fn known(&mut self, member: &Member, unit: &Unit, settled: &Settled) {
        let graph = self.graph;
        match settled {
            // Only a run holds rows; a store remembers none of that.
            Settled::Held(_) => {}
            Settled::Rows(rows) => {
                self.stages[member.stage].known += 1;
                let rows = rows.iter().map(|row| graph.row_of(member, &unit.item, row));
                self.tables[member.stage].known.extend(rows);
            }
            Settled::Fault { depth, .. } => {
                let depth = depth.filter(|depth| *depth < member.chain.len());
                let at = depth.map_or(member.stage, |depth| member.chain[depth]);
                let own = graph.id_after(&member.chain[..depth.unwrap_or(member.chain.len())], &unit.item.id);
                self.stages[at].quarantined += u64::from(self.faulty.insert((at, own)));
            }
        }
    }

    fn will_run(&mut self, member: &Member, unit: &Unit, sure: bool) {
        let id = self.graph.id_after(&member.chain, &unit.item.id);
        let why = self.why(member, unit, &id);
        let stage = &mut self.stages[member.stage];
        stage.to_run += 1;
        stage.unsure += u64::from(!sure);
        count(&mut stage.reasons, &why, &id);
    }

    fn why(&self, member: &Member, unit: &Unit, id: &Arc<str>) -> String {
        let graph = self.graph;
        let own = self.changes[member.stage].as_deref();
        if let Some(change @ ("first run" | "stage is new")) = own {
            return change.to_owned();
        }
        match self.file_state(&unit.item) {
            Some(FileState::New) => return "new file".to_owned(),
            Some(FileState::Changed) => return "file changed".to_owned(),
            None => {}
        }
        let group = graph.groups.iter().find(|group| group.members.iter().any(|other| other.stage == member.stage));
        let wholes = group.into_iter().flat_map(|group| &group.wholes).flat_map(|input| &input.chain);
        let chain: BTreeSet<usize> = member.chain.iter().chain(wholes).copied().collect();
        let of = |stage: usize| Some(format!("`{}`: {}", graph.stages[stage].id, self.changes[stage].as_ref()?));
        let changes: Vec<String> =
            own.map(str::to_owned).into_iter().chain(chain.iter().filter_map(|stage| of(*stage))).collect();
        if !changes.is_empty() {
            return changes.join(", ");
        }
        let failed = |stage: usize, id: &str| self.failed.contains(&(graph.stages[stage].id.clone(), id.to_owned()));
        if failed(member.stage, id) || member.chain.iter().any(|stage| failed(*stage, id)) {
            return "failed before, is tried again".to_owned();
        }
        unit.why.clone().unwrap_or_else(|| self.past.unfinished())
    }

    /// What a unit that runs will yield: the ids that it has published now.
    fn predict(&mut self, group: &Group, member: &Member, unit: &Unit, alone: &HashSet<Arc<str>>) {
        let graph = self.graph;
        let stage = &graph.stages[member.stage];
        let own = graph.id_after(&member.chain, &unit.item.id);
        let single: Arc<str> = stage.stage.row_id(&own, "").into();
        let published = self.before.stages.get(&stage.id);
        let ids = published.and_then(|published| {
            if published.rows.contains_key(&single) {
                return Some(vec![single.clone()]);
            }
            let of_file = published.of_file.get(&unit.item.origin)?;
            let follows = |id: &&Arc<str>| {
                let rest = id.strip_prefix(&*own);
                rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
            };
            let ids: Vec<Arc<str>> = of_file.iter().filter(follows).cloned().collect();
            let is_alone = unit.item.origin.as_ref().is_some_and(|origin| alone.contains(origin));
            if ids.is_empty() && is_alone { Some(of_file.clone()) } else { Some(ids).filter(|ids| !ids.is_empty()) }
        });
        let ids = ids.unwrap_or_else(|| {
            let units = match group.input {
                GroupInput::Files(_) => published.map(|published| published.of_file.len()),
                GroupInput::Rows(base) => {
                    self.before.stages.get(&graph.stages[base].id).map(|published| published.rows.len())
                }
                GroupInput::Shards(_) => published.map(|published| published.rows.len()),
            };
            let one_each = units.is_some() && units == published.map(|published| published.rows.len());
            self.tables[member.stage].more |= !one_each;
            vec![single]
        });
        self.tables[member.stage].coming.extend(ids.into_iter().map(|id| Item {
            id,
            content: Hash::default(),
            ..unit.item.clone()
        }));
    }

    /// Published rows that no unit yields any more, whatever the units to run yield.
    fn retractions(&mut self, plan: &Plan) {
        let mut stages: Vec<&String> = self.before.stages.keys().collect();
        stages.sort();
        for id in stages {
            let published = &self.before.stages[id];
            let mut rows: Vec<_> = published.rows.iter().collect();
            rows.sort();
            let Some(stage) = plan.index_of(id).filter(|stage| !plan.stages[*stage].transient) else {
                if plan.index_of(id).is_none() && plan.partial {
                    continue;
                }
                let mut left = StageExplanation { id: id.clone(), ..StageExplanation::default() };
                for (row, _) in rows {
                    left.to_retract += 1;
                    count(&mut left.retractions, "the pipeline has no such stage any more", row);
                }
                match plan.index_of(id) {
                    Some(at) => {
                        (self.stages[at].to_retract, self.stages[at].retractions) = (left.to_retract, left.retractions)
                    }
                    None => self.stages.push(left),
                }
                continue;
            };
            let known: HashMap<&Arc<str>, Hash> =
                self.tables[stage].known.iter().map(|item| (&item.id, item.content)).collect();
            let coming: HashSet<&Arc<str>> = self.tables[stage].coming.iter().map(|item| &item.id).collect();
            let mut gone = Vec::new();
            for (row, (content, origin)) in rows {
                let why = match known.get(row) {
                    Some(known) if known == content => continue,
                    Some(_) => "replaced by another result that is known",
                    None if coming.contains(row) => continue,
                    None => match origin {
                        Some(path) if !self.scanned.contains(path) => match Path::new(&**path).exists() {
                            true => "its file is left out",
                            false => "file gone",
                        },
                        Some(path) if self.files.contains_key(path) => "file changed",
                        _ => "nothing yields it any more",
                    },
                };
                gone.push((row, why));
            }
            let stage = &mut self.stages[stage];
            for (row, why) in gone {
                stage.to_retract += 1;
                count(&mut stage.retractions, why, row);
            }
        }
    }

    fn costs(&mut self) {
        for stage in self.stages.iter_mut().filter(|stage| stage.to_run > 0) {
            let units = stage.to_run as f64;
            if stage.transient {
                stage.seconds = self.past.transient_seconds(&stage.id).map(|seconds| seconds * units);
            } else if let Some((seconds, bytes)) = self.past.cost(&stage.id, &stage.kind) {
                (stage.seconds, stage.size_bytes) = (Some(seconds * units), Some((bytes * units).round() as u64));
            }
        }
    }
}

/// Files that one unit alone goes back to.
fn alone(units: &[Unit]) -> HashSet<Arc<str>> {
    let mut alone = HashMap::new();
    for origin in units.iter().filter_map(|unit| unit.item.origin.clone()) {
        *alone.entry(origin).or_insert(0) += 1;
    }
    alone.into_iter().filter(|(_, count)| *count == 1).map(|(origin, _)| origin).collect()
}

fn count(reasons: &mut Vec<Reason>, why: &str, id: &str) {
    let at = reasons.iter().position(|reason| reason.why == why).unwrap_or_else(|| {
        reasons.push(Reason { why: why.to_owned(), count: 0, examples: Vec::new() });
        reasons.len() - 1
    });
    reasons[at].count += 1;
    if reasons[at].examples.len() < EXAMPLES {
        reasons[at].examples.push(id.to_owned());
    }
}
