//! The plan as one timely dataflow, the same on every worker, and the loop that drives it.
//!
//! ```text
//! files ---> derive ---> rows of each stage ---.          published (negated) ---.
//!              ^   '---> faults ------------.  |                                  v
//!              '--- rows, whole tables -----|--+--> wanted, once each ---> consolidate ---> worker 0
//!                                           |  '--> rows that are not published ----------> worker 0
//!                                           '---------------------------------------------> worker 0
//! ```
//!
//! What is wanted and what is published are compared by [`RowName`]s, as most rows are both.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::ThresholdTotal;
use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::{Handle as ProbeHandle, Probe};
use timely::dataflow::operators::vec::Map;
use timely::dataflow::{Scope, Stream};
use timely::worker::Worker;

use super::feed::{Feed, Round, feed};
use super::graph::{Group, GroupInput};
use super::shared::Shared;
use crate::derive::{
    Fault, Item, Time, Whole, Work, Yield, begin_of_ingest, derive, end_of_ingest, shard_id, whole_table,
};
use crate::error::Error;
use crate::pool::quietly;
use crate::store::{Row, RowName, name_of};

/// Rounds at work at once. Together with a round's size it bounds how many units wait in queues, as names and hashes.
const OPEN_ROUNDS: u64 = 8;
const PARK: Duration = Duration::from_millis(20);

/// What the dataflow found out in one ingest.
#[derive(Default)]
pub(crate) struct Found {
    /// Of the first ingest: wanted minus published. Later: what is wanted now and was not before, and the reverse.
    pub(crate) changes: Vec<(RowName, isize)>,
    /// What these rows are, and perhaps others; of rows that were published before and that nothing yields, nothing is said.
    pub(crate) news: Vec<(RowName, Row)>,
    /// Units without rows that came or went, with the index of the stage at fault.
    pub(crate) faults: Vec<((u32, Fault), isize)>,
}

/// What the sources are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Ingests {
    /// The first so many files of each source.
    pub(crate) limit: Option<usize>,
    /// Go on with what changes in the sources, once they have been still for so long.
    pub(crate) watch: Option<Duration>,
}

/// Runs the dataflow on this many worker threads; `hear` is told of each ingest, and the next one waits for it. `false`:
/// the run was stopped before all was known.
///
/// Returns in all cases: a panic on a worker is caught and stops the others, which look at a shared flag at least every
/// 20 ms; a worker that leaves drops its dataflow, and with it everything that another one could wait for.
pub(crate) fn execute(
    shared: &Arc<Shared>,
    workers: usize,
    ingests: Ingests,
    mut hear: impl FnMut(Found) -> crate::error::Result<()>,
) -> bool {
    let (told, heard) = crossbeam_channel::bounded(0);
    let (answer, answered) = crossbeam_channel::bounded(1);
    let complete = Arc::new(AtomicBool::new(false));
    // What worker 0 alone needs.
    let first = Mutex::new(Some(Listener { told, answered }));
    let (own, done) = (shared.clone(), complete.clone());
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let mine = first.lock().unwrap_or_else(PoisonError::into_inner).take_if(|_| worker.index() == 0);
        match quietly(|| drive(worker, &own, ingests, mine)) {
            Ok(complete) if worker.index() == 0 => done.store(complete, SeqCst),
            Ok(_) => {}
            Err(panic) => own.fail(Error::Failed(format!("a worker panicked, which is a bug of the engine: {panic}"))),
        }
        quietly(|| worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow))).ok();
    });
    match guards {
        Ok(guards) => {
            // Ends when worker 0 has let go of its listener.
            for found in heard {
                if let Err(error) = hear(found) {
                    shared.fail(error);
                }
                answer.send(()).ok();
            }
            guards.join().into_iter().filter_map(Result::err).for_each(|panic| {
                shared.fail(Error::Failed(format!("a worker panicked, which is a bug of the engine: {panic}")));
            });
        }
        Err(reason) => shared.fail(Error::Failed(format!("cannot start workers: {reason}"))),
    }
    complete.load(SeqCst)
}

/// Who hears of an ingest, and says when that is done.
struct Listener {
    told: Sender<Found>,
    answered: Receiver<()>,
}

/// The inputs of one worker; only worker 0 has anything to say.
struct Inputs {
    /// By stage index, for sources.
    files: Vec<(usize, InputSession<Time, Item, isize>)>,
    faults: InputSession<Time, (u32, Fault), isize>,
    published: InputSession<Time, RowName, isize>,
}

/// What a worker watches.
struct Probes {
    /// Past a round: all units of the round are settled.
    settled: ProbeHandle<Time>,
    /// Done: worker 0 has heard everything.
    heard: ProbeHandle<Time>,
}

/// Builds the dataflow and steps it until all is known or the run stops. `true`: all is known, or was known and published
/// when a watching run was told to stop.
fn drive(worker: &mut Worker, shared: &Arc<Shared>, ingests: Ingests, mine: Option<Listener>) -> bool {
    let dataflow = worker.next_dataflow_index();
    let found = Arc::new(Mutex::new(Found::default()));
    // What is sent while the dataflow is built reaches nobody, and is waited for all the same; so inputs speak later.
    let (mut inputs, probes) = worker.dataflow(|scope| build(scope, shared, &found));
    let Some(listener) = mine else {
        drop(inputs);
        return step(worker, shared, &probes, &mut |_| {});
    };
    // Compared at the end of the first ingest, when all wanted rows are known.
    let end = end_of_ingest(&0);
    shared.published.to_vec().into_iter().for_each(|name| inputs.published.update_at(name, end, 1));
    let (sender, feed_from) = crossbeam_channel::bounded(2);
    let activator = worker.sync_activator_for(vec![dataflow]);
    let feeder = {
        let shared = shared.clone();
        std::thread::Builder::new().name("vw2-feed".to_owned()).spawn(move || {
            let wake = || {
                // It fails only when the worker is gone, and then there is nobody to wake.
                activator.activate().ok();
            };
            match quietly(|| feed(&shared, ingests.limit, ingests.watch, &sender, wake)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(error),
                Err(panic) => shared.fail(Error::Failed(format!("listing the sources' files panicked: {panic}"))),
            }
        })
    };
    let feeder = match feeder {
        Ok(feeder) => feeder,
        Err(error) => {
            shared.fail(Error::Failed(format!("cannot start a thread: {error}")));
            return false;
        }
    };
    let mut intake =
        Intake { inputs: Some(inputs), feed: feed_from, next: 0, said_all: false, found, listener, ingests: 0 };
    let complete = step(worker, shared, &probes, &mut |shared| intake.take(shared, &probes));
    let complete = complete || intake.is_idle();
    // Without a listener the feeder ends at its next word.
    drop(intake);
    feeder.join().ok();
    complete
}

/// Steps until worker 0 has heard everything. `false`: the run stops before that.
fn step(worker: &mut Worker, shared: &Shared, probes: &Probes, intake: &mut dyn FnMut(&Shared)) -> bool {
    while !probes.heard.done() {
        if shared.stopping() {
            return false;
        }
        intake(shared);
        worker.step_or_park(Some(PARK));
    }
    // A failure may have let a capability go, so that the dataflow only looks complete.
    !shared.stopping()
}

/// Worker 0's side of the feeder.
struct Intake {
    /// `None`: nothing more comes.
    inputs: Option<Inputs>,
    feed: Receiver<Feed>,
    /// The time of the next round.
    next: Time,
    /// All of this ingest has been said; `next` is the first time of the one after it.
    said_all: bool,
    found: Arc<Mutex<Found>>,
    listener: Listener,
    /// How many have been told of.
    ingests: u64,
}

impl Intake {
    /// Takes what the feeder has, as long as few enough rounds are open; tells of an ingest when all of it is known.
    fn take(&mut self, shared: &Shared, probes: &Probes) {
        while self.inputs.is_some() {
            if self.said_all {
                // A failure may have let a capability go, so that the ingest only looks complete.
                if probes.heard.less_than(&self.next) || shared.stopping() {
                    return;
                }
                self.tell();
            }
            let round = self.next - begin_of_ingest(&self.next);
            if round >= OPEN_ROUNDS && probes.settled.less_equal(&(self.next - OPEN_ROUNDS)) {
                return;
            }
            match self.feed.try_recv() {
                Ok(Feed::Round(round)) => {
                    self.next += 1;
                    self.say(Some(round));
                }
                Ok(Feed::EndOfIngest) => {
                    self.next = end_of_ingest(&self.next) + 1;
                    self.said_all = true;
                    self.say(None);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.inputs = None,
            }
        }
    }

    /// What came, at the time before `next`.
    fn say(&mut self, round: Option<Round>) {
        if let Some(inputs) = &mut self.inputs {
            round.into_iter().for_each(|round| inputs.insert(round));
            inputs.advance_to(self.next);
        }
    }

    fn tell(&mut self) {
        let found = std::mem::take(&mut *lock(&self.found));
        if self.listener.told.send(found).is_ok() {
            self.listener.answered.recv().ok();
        }
        self.said_all = false;
        self.ingests += 1;
    }

    /// Whether all that was said has been told of.
    fn is_idle(&self) -> bool {
        self.ingests > 0 && !self.said_all && self.next == begin_of_ingest(&self.next) && self.feed.is_empty()
    }
}

impl Inputs {
    fn insert(&mut self, round: Round) {
        for (stage, item, sign) in round.files {
            let input = self.files.iter_mut().find(|(source, _)| *source == stage);
            input.expect("the feeder lists source stages only").1.update(item, sign);
        }
        for (stage, fault, sign) in round.faults {
            self.faults.update((stage as u32, fault), sign);
        }
    }

    fn advance_to(&mut self, time: Time) {
        for (_, input) in &mut self.files {
            input.advance_to(time);
            input.flush();
        }
        self.faults.advance_to(time);
        self.faults.flush();
        self.published.advance_to(time);
        self.published.flush();
    }
}

/// A collection of rows, by stage.
type Tables<'s> = Vec<Option<VecCollection<'s, Time, Item>>>;

fn build(scope: Scope<'_, Time>, shared: &Arc<Shared>, found: &Arc<Mutex<Found>>) -> (Inputs, Probes) {
    let mut inputs = Inputs { files: Vec::new(), faults: InputSession::new(), published: InputSession::new() };
    let probes = Probes { settled: ProbeHandle::new(), heard: ProbeHandle::new() };
    let mut tables: Tables<'_> = shared.graph.stages.iter().map(|_| None).collect();
    let mut wanted: Vec<VecCollection<'_, Time, RowName>> = Vec::new();
    let mut news = Vec::new();
    let mut faults = vec![inputs.faults.to_collection(scope)];
    for (index, group) in shared.graph.groups.iter().enumerate() {
        let units = match group.input {
            GroupInput::Files(stage) => {
                let mut session = InputSession::new();
                let files = session.to_collection(scope);
                inputs.files.push((stage, session));
                files.map(Work::of_item)
            }
            GroupInput::Rows(base) => row_units(shared, group, table(&tables, base), &tables),
            GroupInput::Shards(count) => shard_units(shared, group, count, &tables),
        };
        let yields = derive(units, shared, index);
        for member in &group.members {
            let own = member.stage as u32;
            let rows = yields.clone().flat_map(move |what| match what {
                Yield::Row { stage, item } if stage == own => Some(item),
                _ => None,
            });
            let (names, rows_of_note) = named(rows.clone(), shared, member.stage);
            wanted.push(names);
            news.push(rows_of_note);
            tables[member.stage] = Some(rows);
        }
        faults.push(yields.flat_map(|what| match what {
            Yield::Fault { stage, fault } => Some((stage, fault)),
            Yield::Row { .. } => None,
        }));
    }

    let published_rows = inputs.published.to_collection(scope);
    let wanted = differential_dataflow::collection::concatenate(scope, wanted);
    let faults = differential_dataflow::collection::concatenate(scope, faults);
    // Nothing is counted here, only waited for.
    let rows_settled = wanted.clone().map(|_| ()).inner;
    let all_settled = rows_settled.concat(faults.clone().map(|_| ()).inner);
    all_settled.probe_with(&probes.settled);

    let wanted = once_each(wanted.delay(end_of_ingest), shared, |name| format!("row {name:032x}"));
    let changes = wanted.concat(published_rows.negate()).consolidate();
    let sink = found.clone();
    let rows_heard = on_worker_0(changes, move |change, sign| lock(&sink).changes.push((change, sign)));
    let sink = found.clone();
    let faults = once_each(faults.delay(end_of_ingest), shared, |(_, fault)| format!("fault of `{}`", fault.unit));
    let faults_heard = on_worker_0(faults, move |fault, sign| lock(&sink).faults.push((fault, sign)));
    let news = differential_dataflow::collection::concatenate(scope, news);
    let sink = found.clone();
    let news_heard = on_worker_0(news, move |news, _| lock(&sink).news.push(news));
    rows_heard.concat(news_heard).concat(faults_heard).probe_with(&probes.heard);
    (inputs, probes)
}

/// The names of a stage's rows, and the rows that may have to be spelt out: those that are not published, and those that go.
fn named<'s>(
    rows: VecCollection<'s, Time, Item>,
    shared: &Arc<Shared>,
    stage: usize,
) -> (VecCollection<'s, Time, RowName>, VecCollection<'s, Time, (RowName, Row)>) {
    let shared = shared.clone();
    let name = move |(item, time, sign): (Item, Time, isize)| {
        let id = &shared.graph.stages[stage].id;
        let name = name_of(id, &item.id, &item.content, item.origin.as_deref(), &item.files);
        let is_news = sign < 0 || !shared.published.contains(name);
        ((name, is_news.then(|| item.into_row(id))), time, sign)
    };
    let named = rows.inner.map(name).as_collection();
    (named.clone().map(|(name, _)| name), named.flat_map(|(name, row)| Some((name, row?))))
}

/// Each once, however often it is there. What is there less than never was taken back twice, which is a bug: the run fails
/// rather than publish what follows from it.
fn once_each<'s, D: differential_dataflow::ExchangeData + differential_dataflow::Hashable>(
    rows: VecCollection<'s, Time, D>,
    shared: &Arc<Shared>,
    name: fn(&D) -> String,
) -> VecCollection<'s, Time, D> {
    let shared = shared.clone();
    rows.threshold_total(move |row, count| {
        if *count < 0 {
            let what = name(row);
            shared.fail(Error::Failed(format!("{what} is there {count} times, which is a bug of the engine")));
        }
        isize::from(*count > 0)
    })
}

fn lock(found: &Mutex<Found>) -> std::sync::MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

fn table<'s>(tables: &Tables<'s>, stage: usize) -> VecCollection<'s, Time, Item> {
    tables[stage].clone().expect("the plan puts a stage after those that feed it")
}

/// A unit per row; with whole tables, once these are complete.
fn row_units<'s>(
    shared: &Shared,
    group: &Group,
    rows: VecCollection<'s, Time, Item>,
    tables: &Tables<'s>,
) -> VecCollection<'s, Time, Work> {
    if group.wholes.is_empty() {
        return rows.map(Work::of_item);
    }
    let mut units = rows.delay(end_of_ingest).map(|item| ((), Work::of_item(item)));
    for input in &group.wholes {
        let whole = whole_table(table(tables, input.base), 1, shared.graph.read_files(&input.chain))
            .map(|(_, whole)| ((), whole));
        units = units.join_map(whole, |(), work, whole| ((), with_table(work, whole)));
    }
    units.map(|((), work)| work)
}

/// A unit per shard in which all whole tables have rows.
fn shard_units<'s>(shared: &Shared, group: &Group, count: u32, tables: &Tables<'s>) -> VecCollection<'s, Time, Work> {
    let id = shared.graph.stages[group.members[0].stage].id.clone();
    let mut shards = group
        .wholes
        .iter()
        .map(|input| whole_table(table(tables, input.base), count, shared.graph.read_files(&input.chain)));
    let first = shards.next().expect("a group of shards has whole tables");
    let named = move |(shard, whole): (u32, Whole)| {
        let id = shard_id(&id, shard, count);
        let item = Item { id, content: Default::default(), source: None, origin: None, files: Arc::default() };
        (shard, Work { item, tables: vec![whole] })
    };
    let units = first.map(named);
    let all = shards
        .fold(units, |units, whole| units.join_map(whole, |shard, work, whole| (*shard, with_table(work, whole))));
    all.map(|(_, work)| work)
}

fn with_table(work: &Work, whole: &Whole) -> Work {
    let mut work = work.clone();
    work.tables.push(whole.clone());
    work
}

/// Sends all changes to worker 0 and calls `take` there.
fn on_worker_0<'s, D: differential_dataflow::ExchangeData>(
    changes: VecCollection<'s, Time, D>,
    mut take: impl FnMut(D, isize) + 'static,
) -> Stream<'s, Time, Vec<()>> {
    let pact = Exchange::new(|_: &(D, Time, isize)| 0);
    changes.inner.unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(pact, "Hear", move |_, _| {
        move |input, _| input.for_each(|_, data| data.drain(..).for_each(|(what, _, sign)| take(what, sign)))
    })
}
