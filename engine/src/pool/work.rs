//! What a pool thread does with a unit that the store does not know.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use crossbeam_channel::Sender;
use timely::scheduling::SyncActivator;

use super::budget::{Permit, Turn};
use super::commit::{CommitMessage, Done};
use super::device::DeviceJob;
use super::operators::{NoOperator, Verdict, call, memory_bytes};
use crate::derive::{Item, Settled, Warm, Whole, Work, result_key};
use crate::fingerprint::{Fingerprint, Hash};
use crate::run::graph::{GroupInput, WholeInput};
use crate::run::shared::Shared;
use crate::stage::{Needs, OutputRow, Rows, StageError, Unit};
use crate::store::{Class, Finished, Memo, MemoRow};

/// A unit with at least one member of its group that missed.
pub(crate) struct Job {
    pub(crate) group: usize,
    pub(crate) work: Work,
    /// Members by their index in the group, and the key of the unit there.
    pub(crate) wanted: Vec<(usize, Hash)>,
    /// It trains on from a checkpoint; there is one member then.
    pub(crate) warm: Option<Warm>,
    pub(crate) reply: Arc<Reply>,
}

/// Where the dataflow waits for settled units.
pub(crate) struct Reply(Option<(Sender<(Hash, Settled)>, SyncActivator)>);

impl Reply {
    pub(crate) fn new(sender: Sender<(Hash, Settled)>, activator: SyncActivator) -> Reply {
        Reply(Some((sender, activator)))
    }

    /// Where there is no dataflow: whoever takes the committer's place hears of the units.
    pub(crate) fn to_nobody() -> Reply {
        Reply(None)
    }

    pub(crate) fn send(&self, key: Hash, settled: Settled) {
        // Where the run stops, nobody listens any more, and the store remembers the unit all the same.
        if let Some((sender, activator)) = &self.0
            && sender.send((key, settled)).is_ok()
        {
            activator.activate().ok();
        }
    }
}

/// Who gets a unit's result.
pub(crate) struct Recipient {
    pub(crate) stage: usize,
    key: Hash,
    warm: Option<Warm>,
    origin: Option<Arc<str>>,
    reply: Arc<Reply>,
}

impl Recipient {
    pub(crate) fn answer(self, verdict: Verdict, seconds: f64) -> Answer {
        Answer { recipient: self, depth: None, verdict, seconds }
    }
}

/// A unit's result on its way into the store.
pub(crate) struct Answer {
    recipient: Recipient,
    /// Where the verdict is not the stage's own, but that of the n-th transient stage before it.
    depth: Option<usize>,
    verdict: Verdict,
    seconds: f64,
}

/// A row on its way through transient stages, and the right to hold it.
#[derive(Clone)]
struct Value {
    batch: RecordBatch,
    permit: Arc<Permit>,
}

/// A member's share of a job.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    member: usize,
    key: Hash,
    chain: &'a [usize],
}

impl Job {
    /// Computes the unit for all members that want it. An operator that cannot be opened ends the run.
    pub(super) fn run(self, shared: &Arc<Shared>) {
        match self.try_run(shared) {
            Ok(()) | Err(NoOperator::Interrupted) => {}
            Err(NoOperator::Failed(error)) => shared.fail(error),
        }
    }

    fn try_run(&self, shared: &Arc<Shared>) -> Result<(), NoOperator> {
        let group = &shared.graph.groups[self.group];
        let wanted = self.wanted.iter();
        let wanted: Vec<Wanted<'_>> = wanted
            .map(|(member, key)| Wanted { member: *member, key: *key, chain: &group.members[*member].chain })
            .collect();
        let mut turn = shared.budget.turn();
        let GroupInput::Rows(base) = group.input else {
            return wanted.into_iter().try_for_each(|wanted| self.finish(shared, &mut turn, wanted, None));
        };
        let batch = match shared.store.row(&self.work.item.content, &shared.graph.stages[base].schema) {
            Ok(batch) => batch,
            Err(error) => {
                self.refuse(shared, &wanted, None, Verdict::Transient(error.to_string()));
                return Ok(());
            }
        };
        let permit = Arc::new(turn.acquire(batch.get_array_memory_size() as u64));
        self.descend(shared, &mut turn, Value { batch, permit }, wanted, 0)
    }

    /// Serves those who want the row as it is after `depth` transient stages, then runs the next ones for the others.
    fn descend(
        &self,
        shared: &Arc<Shared>,
        turn: &mut Turn,
        value: Value,
        wanted: Vec<Wanted<'_>>,
        depth: usize,
    ) -> Result<(), NoOperator> {
        let mut further: BTreeMap<usize, Vec<Wanted<'_>>> = BTreeMap::new();
        for wanted in wanted {
            match wanted.chain.get(depth) {
                None => self.finish(shared, turn, wanted, Some(value.clone()))?,
                Some(stage) => further.entry(*stage).or_default().push(wanted),
            }
        }
        let mut value = Some(value);
        let mut left = further.len();
        for wanted in further.into_values() {
            // The last one to need the row lets go of it before it descends.
            left -= 1;
            let own = if left == 0 { value.take() } else { value.clone() };
            let Value { batch, permit } = own.expect("the value is kept until the last one takes it");
            let unit = transient_unit(shared, &self.work.item, wanted[0].chain, depth, batch);
            let result = through(shared, wanted[0].chain[depth], &unit, |bytes| turn.acquire(bytes))?;
            drop((unit, permit));
            match result {
                Ok(Some(value)) => self.descend(shared, turn, value, wanted, depth + 1)?,
                Ok(None) => self.refuse(shared, &wanted, None, Verdict::Rows(Vec::new())),
                Err(verdict) => self.refuse(shared, &wanted, Some(depth), verdict),
            }
        }
        Ok(())
    }

    /// Runs the stored stage itself, here or on a device thread.
    fn finish(
        &self,
        shared: &Arc<Shared>,
        turn: &mut Turn,
        wanted: Wanted<'_>,
        value: Option<Value>,
    ) -> Result<(), NoOperator> {
        let recipient = self.recipient(shared, wanted);
        let stage = &shared.graph.stages[recipient.stage];
        let (row, permit) = value.map(|value| (value.batch, value.permit)).unzip();
        let is_source = matches!(shared.graph.groups[self.group].input, GroupInput::Files(_));
        let parent = match self.warm.map(|warm| shared.store.row(&warm.parent, &stage.schema)).transpose() {
            Ok(parent) => parent,
            Err(error) => {
                recipient.answer(Verdict::Transient(error.to_string()), 0.0).keep(shared);
                return Ok(());
            }
        };
        let reads_file = is_source || stage.stage.reads_file();
        let unit = Unit {
            id: shared.graph.id_after(wanted.chain, &self.work.item.id),
            key: wanted.key,
            file: file_of(&self.work.item).filter(|_| reads_file),
            row,
            row_port: stage.row_port,
            tables: self.tables(shared),
            parent,
        };
        if stage.needs == Needs::Device {
            let parked = shared.budget.park();
            shared.device_jobs.push(DeviceJob { unit, recipient, permit, parked, since: Instant::now() });
            return Ok(());
        }
        let bytes = match memory_bytes(shared, recipient.stage, &unit)? {
            Ok(bytes) => bytes,
            Err(verdict) => {
                recipient.answer(verdict, 0.0).keep(shared);
                return Ok(());
            }
        };
        let work = turn.acquire(bytes);
        let start = Instant::now();
        let mut verdicts = call(shared, recipient.stage, std::slice::from_ref(&unit))?;
        drop((unit, permit, work));
        let verdict = verdicts.pop().expect("one verdict per unit");
        recipient.answer(verdict, start.elapsed().as_secs_f64()).keep(shared);
        Ok(())
    }

    /// The same verdict for all of these.
    fn refuse(&self, shared: &Shared, wanted: &[Wanted<'_>], depth: Option<usize>, verdict: Verdict) {
        for wanted in wanted {
            let answer = self.recipient(shared, *wanted).answer(verdict.clone(), 0.0);
            Answer { depth, ..answer }.keep(shared);
        }
    }

    fn recipient(&self, shared: &Shared, wanted: Wanted<'_>) -> Recipient {
        Recipient {
            stage: shared.graph.groups[self.group].members[wanted.member].stage,
            key: wanted.key,
            warm: self.warm,
            origin: self.work.item.origin.clone(),
            reply: self.reply.clone(),
        }
    }

    fn tables(&self, shared: &Arc<Shared>) -> Vec<(&'static str, Arc<dyn Rows>)> {
        let inputs = &shared.graph.groups[self.group].wholes;
        let tables = inputs.iter().zip(&self.work.tables);
        let rows = |input, whole| Arc::new(TableRows::new(shared, input, whole)) as Arc<dyn Rows>;
        tables.map(|(input, whole)| (input.port, rows(input, whole))).collect()
    }
}

/// The file that a row goes back to.
fn file_of(item: &Item) -> Option<Arc<Path>> {
    item.origin.as_deref().map(|path| Arc::from(Path::new(path)))
}

/// The unit as the transient stage at `depth` of the chain sees it.
fn transient_unit(shared: &Shared, item: &Item, chain: &[usize], depth: usize, row: RecordBatch) -> Unit {
    let mut key = Fingerprint::new();
    key.text("unit").hash(&item.content);
    if let Some(source) = item.source.filter(|_| shared.graph.read_files(&chain[..=depth])) {
        key.text("file").hash(&source);
    }
    for stage in &chain[..=depth] {
        key.text("via").hash(&shared.graph.stages[*stage].fingerprint);
    }
    Unit {
        id: shared.graph.id_after(&chain[..depth], &item.id),
        key: key.finish(),
        file: file_of(item).filter(|_| shared.graph.stages[chain[depth]].stage.reads_file()),
        row: Some(row),
        row_port: shared.graph.stages[chain[depth]].row_port,
        tables: Vec::new(),
        parent: None,
    }
}

/// Runs one transient stage. `Ok(Ok(None))`: it yields no row for this unit.
fn through(
    shared: &Shared,
    stage: usize,
    unit: &Unit,
    acquire: impl FnOnce(u64) -> Permit,
) -> Result<Result<Option<Value>, Verdict>, NoOperator> {
    let bytes = match memory_bytes(shared, stage, unit)? {
        Ok(bytes) => bytes,
        Err(verdict) => return Ok(Err(verdict)),
    };
    let mut permit = acquire(bytes);
    let verdict = call(shared, stage, std::slice::from_ref(unit))?.pop().expect("one verdict per unit");
    let declared = &shared.graph.stages[stage];
    if !matches!(verdict, Verdict::Interrupted) {
        declared.counters.executed.fetch_add(1, Relaxed);
    }
    let mut rows = match verdict {
        Verdict::Rows(rows) => rows,
        other => return Ok(Err(other)),
    };
    let Some(row) = rows.pop() else { return Ok(Ok(None)) };
    if !rows.is_empty() || !row.name.is_empty() || !row.files.is_empty() {
        let reason = "yields more than one row of a unit, or names it or its files, which a transient stage may not";
        return Ok(Err(Verdict::Bug(reason.to_owned())));
    }
    if let Err(reason) = check_columns(&row.batch, &declared.schema) {
        return Ok(Err(Verdict::Bug(reason)));
    }
    permit.shrink(row.batch.get_array_memory_size() as u64);
    Ok(Ok(Some(Value { batch: row.batch, permit: Arc::new(permit) })))
}

/// What a stage yields must be what its table declares; nested names and metadata are taken from the declaration later.
fn check_columns(batch: &RecordBatch, declared: &SchemaRef) -> Result<(), String> {
    let found = batch.schema();
    let equal = found.fields().len() == declared.fields().len()
        && found.fields().iter().zip(declared.fields()).all(|(found, declared)| {
            found.name() == declared.name() && found.data_type().equals_datatype(declared.data_type())
        });
    let columns = |schema: &SchemaRef| {
        let columns = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
        columns.collect::<Vec<_>>().join(", ")
    };
    if equal { Ok(()) } else { Err(format!("declares columns {}, but yields {}", columns(declared), columns(&found))) }
}

impl Answer {
    /// Stores the rows and hands the unit to the committer. Runs on a pool thread.
    pub(super) fn keep(mut self, shared: &Shared) {
        let stage = &shared.graph.stages[self.recipient.stage];
        if matches!(self.verdict, Verdict::Interrupted) {
            return;
        }
        if let Some(file) = &self.recipient.origin
            && matches!(self.verdict, Verdict::Rows(_) | Verdict::Bad(_))
            && !shared.unchanged(file)
        {
            self.verdict = Verdict::Transient("the file changed while it was worked on; run again".to_owned());
        }
        // A verdict of a stage before this one was counted there.
        if self.depth.is_none() {
            stage.counters.executed.fetch_add(1, Relaxed);
        }
        let (settled, payloads) = match self.verdict {
            Verdict::Rows(rows) => match self.recipient.store_rows(shared, rows) {
                Ok(stored) => stored,
                Err(error) => return shared.fail(error),
            },
            Verdict::Bad(reason) => (fault(self.depth, Class::Bad, reason), Vec::new()),
            Verdict::Transient(reason) => (fault(self.depth, Class::Transient, reason), Vec::new()),
            Verdict::Bug(reason) => (fault(self.depth, Class::Bug, reason), Vec::new()),
            Verdict::Interrupted => return,
        };
        let Recipient { key, warm, reply, .. } = self.recipient;
        let finished = settled.to_memo().map(|memo| Finished {
            key,
            stage_id: stage.id.clone(),
            kind: stage.kind.to_owned(),
            memo,
            payloads,
            seconds: self.seconds,
            run: shared.run,
        });
        // Known once more by what came out: that is how the next run sees what its published checkpoint was made of.
        let again = finished.as_ref().zip(warm).map(|(finished, warm)| Finished {
            key: result_key(&warm.base, finished.memo.contents()),
            payloads: Vec::new(),
            ..finished.clone()
        });
        let finished = finished.into_iter().chain(again).collect();
        // The committer outlives all pool threads.
        shared.commits.send(CommitMessage::Done(Box::new(Done { key, settled, finished, reply }))).ok();
    }
}

fn fault(depth: Option<usize>, class: Class, reason: String) -> Settled {
    Settled::Fault { depth, class, reason }
}

type Payloads = Vec<(Hash, crate::store::Payload)>;

impl Recipient {
    /// `Ok` may be a bug of the stage; `Err` is a failure of the store, which ends the run.
    fn store_rows(&self, shared: &Shared, rows: Vec<OutputRow>) -> crate::Result<(Settled, Payloads)> {
        let declared = &shared.graph.stages[self.stage].schema;
        let (mut memo, mut payloads) = (Vec::<MemoRow>::new(), Payloads::new());
        for row in rows {
            if let Err(reason) = check_columns(&row.batch, declared) {
                return Ok((fault(None, Class::Bug, reason), Vec::new()));
            }
            if memo.iter().any(|earlier| earlier.name == row.name) {
                let reason = format!("yields two rows of one unit with the name `{}`", row.name);
                return Ok((fault(None, Class::Bug, reason), Vec::new()));
            }
            let stored = shared.store.put_row(&row.batch, &row.files)?;
            memo.push(MemoRow { name: row.name, content: stored.content, files: row.files, len: stored.len });
            if payloads.iter().all(|(content, _)| *content != stored.content) {
                payloads.push((stored.content, stored.bytes));
            }
        }
        Ok((Settled::from_memo(Memo::Rows(memo)), payloads))
    }
}

/// A whole table, or a shard of it; reads from the store, and through transient stages, on the thread that asks.
struct TableRows {
    shared: Arc<Shared>,
    base: usize,
    chain: Vec<usize>,
    items: Arc<[Item]>,
    ids: Vec<Arc<str>>,
}

impl TableRows {
    fn new(shared: &Arc<Shared>, input: &WholeInput, whole: &Whole) -> TableRows {
        TableRows {
            shared: shared.clone(),
            base: input.base,
            chain: input.chain.clone(),
            items: whole.rows.clone(),
            ids: whole.rows.iter().map(|item| shared.graph.id_after(&input.chain, &item.id)).collect(),
        }
    }
}

impl Rows for TableRows {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    fn content(&self, index: usize) -> Hash {
        self.items[index].content
    }

    fn row(&self, index: usize) -> Result<RecordBatch, StageError> {
        let item = &self.items[index];
        let mut batch = self.shared.store.row(&item.content, &self.shared.graph.stages[self.base].schema)?;
        for (depth, stage) in self.chain.iter().enumerate() {
            let unit = transient_unit(&self.shared, item, &self.chain, depth, batch);
            // The caller works inside a permit of its own, and would wait for itself.
            let value = through(&self.shared, *stage, &unit, |bytes| self.shared.budget.take_now(bytes));
            let id = &self.shared.graph.stages[*stage].id;
            batch = match value {
                Ok(Ok(Some(value))) => value.batch,
                Ok(Ok(None)) => return Err(format!("`{id}` yields no row for `{}`", unit.id).into()),
                Ok(Err(Verdict::Interrupted)) | Err(NoOperator::Interrupted) => {
                    return Err(Box::new(crate::stage::Interrupted));
                }
                Ok(Err(Verdict::Bad(reason) | Verdict::Transient(reason) | Verdict::Bug(reason))) => {
                    return Err(format!("`{id}` has no row for `{}`: {reason}", unit.id).into());
                }
                Ok(Err(Verdict::Rows(_))) => unreachable!("rows are no failure"),
                Err(NoOperator::Failed(error)) => return Err(Box::new(error)),
            };
        }
        Ok(batch)
    }
}
