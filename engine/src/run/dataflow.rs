//! The plan as one timely dataflow, the same on every worker, and the loop that drives it.
//!
//! ```text
//! files ---> derive ---> rows of each stage ---.          published (negated) ---.
//!              ^   '---> faults ------------.  |                                  v
//!              '--- rows, whole tables -----|--+--> wanted, once each ---> consolidate ---> worker 0
//!                                           '---------------------------------------------> worker 0
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};
use differential_dataflow::VecCollection;
use differential_dataflow::input::InputSession;
use differential_dataflow::operators::ThresholdTotal;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::probe::{Handle as ProbeHandle, Probe};
use timely::dataflow::{Scope, Stream};
use timely::worker::Worker;

use super::feed::{Round, feed};
use super::graph::{Group, GroupInput};
use super::shared::Shared;
use crate::derive::{Fault, Item, Time, Whole, Work, Yield, derive, end_of_ingest, whole_table};
use crate::error::Error;
use crate::pool::quietly;
use crate::store::Row;

/// Rounds at work at once. Together with a round's size it bounds how many units wait in queues, as names and hashes.
const OPEN_ROUNDS: u64 = 8;
const PARK: Duration = Duration::from_millis(20);

/// A row under the id of its stage. Published rows may be of stages that the plan no longer has.
type StageRow = (String, Item);

/// What the dataflow found out.
#[derive(Default)]
pub(crate) struct Found {
    /// Wanted minus published.
    pub(crate) changes: Vec<(StageRow, isize)>,
    /// Units without rows, with the index of the stage at fault.
    pub(crate) faults: Vec<(u32, Fault)>,
}

/// Runs the dataflow on this many worker threads. `None`: it was stopped before all was known.
///
/// Returns in all cases: a panic on a worker is caught and stops the others, which look at a shared flag at least every
/// 20 ms; a worker that leaves drops its dataflow, and with it everything that another one could wait for.
pub(crate) fn execute(shared: &Arc<Shared>, workers: usize, limit: Option<usize>, published: &[Row]) -> Option<Found> {
    let found = Arc::new(Mutex::new((Found::default(), false)));
    let (own, sink) = (shared.clone(), found.clone());
    let published = Mutex::new(published.to_vec());
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let published = match worker.index() {
            0 => std::mem::take(&mut *published.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => Vec::new(),
        };
        match quietly(|| drive(worker, &own, limit, published, &sink)) {
            Ok(complete) if worker.index() == 0 => lock(&sink).1 = complete,
            Ok(_) => {}
            Err(panic) => own.fail(Error::Failed(format!("a worker panicked, which is a bug of the engine: {panic}"))),
        }
        quietly(|| worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow))).ok();
    });
    match guards {
        Ok(guards) => guards.join().into_iter().filter_map(Result::err).for_each(|panic| {
            shared.fail(Error::Failed(format!("a worker panicked, which is a bug of the engine: {panic}")));
        }),
        Err(reason) => shared.fail(Error::Failed(format!("cannot start workers: {reason}"))),
    }
    let mut found = lock(&found);
    found.1.then(|| std::mem::take(&mut found.0))
}

/// The inputs of one worker; only worker 0 has anything to say.
struct Inputs {
    /// By stage index, for sources.
    files: Vec<(usize, InputSession<Time, Item, isize>)>,
    faults: InputSession<Time, (u32, Fault), isize>,
    published: InputSession<Time, StageRow, isize>,
}

/// What a worker watches.
struct Probes {
    /// Past a round: all units of the round are settled.
    settled: ProbeHandle<Time>,
    /// Done: worker 0 has heard everything.
    heard: ProbeHandle<Time>,
}

/// Builds the dataflow and steps it until all is known or the run stops. `true`: all is known.
fn drive(
    worker: &mut Worker,
    shared: &Arc<Shared>,
    limit: Option<usize>,
    published: Vec<Row>,
    found: &Arc<Mutex<(Found, bool)>>,
) -> bool {
    let dataflow = worker.next_dataflow_index();
    // What is sent while the dataflow is built reaches nobody, and is waited for all the same; so inputs speak later.
    let (mut inputs, probes) = worker.dataflow(|scope| build(scope, shared, found));
    // Compared at the end of the ingest, when all wanted rows are known.
    let end = end_of_ingest(&0);
    published.into_iter().for_each(|row| inputs.published.update_at(Item::of_row(row), end, 1));
    if worker.index() > 0 {
        drop(inputs);
        return step(worker, shared, &probes, || {});
    }
    let (sender, rounds) = crossbeam_channel::bounded(2);
    let activator = worker.sync_activator_for(vec![dataflow]);
    let feeder = {
        let shared = shared.clone();
        std::thread::Builder::new().name("vw2-feed".to_owned()).spawn(move || {
            let wake = || {
                // It fails only when the worker is gone, and then there is nobody to wake.
                activator.activate().ok();
            };
            match quietly(|| feed(&shared, limit, &sender, wake)) {
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
    let mut intake = Intake { inputs: Some(inputs), rounds, next: 0 };
    let complete = step(worker, shared, &probes, || intake.take_rounds(&probes));
    // Without a listener the feeder ends at its next round.
    drop(intake);
    feeder.join().ok();
    complete
}

/// Steps until worker 0 has heard everything. `false`: the run stops before that.
fn step(worker: &mut Worker, shared: &Shared, probes: &Probes, mut intake: impl FnMut()) -> bool {
    while !probes.heard.done() {
        if shared.stopping() {
            return false;
        }
        intake();
        worker.step_or_park(Some(PARK));
    }
    // A failure may have let a capability go, so that the dataflow only looks complete.
    !shared.stopping()
}

/// Worker 0's side of the feeder.
struct Intake {
    /// `None`: the ingest is over.
    inputs: Option<Inputs>,
    rounds: Receiver<Round>,
    next: Time,
}

impl Intake {
    /// Takes what the feeder has, as long as few enough rounds are open.
    fn take_rounds(&mut self, probes: &Probes) {
        while let Some(inputs) = &mut self.inputs {
            if self.next >= OPEN_ROUNDS && probes.settled.less_equal(&(self.next - OPEN_ROUNDS)) {
                return;
            }
            match self.rounds.try_recv() {
                Ok(round) => {
                    inputs.insert(round);
                    self.next += 1;
                    inputs.advance_to(self.next);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.inputs = None,
            }
        }
    }
}

impl Inputs {
    fn insert(&mut self, round: Round) {
        for (stage, item) in round.files {
            let input = self.files.iter_mut().find(|(source, _)| *source == stage);
            input.expect("the feeder lists source stages only").1.insert(item);
        }
        for (stage, fault) in round.faults {
            self.faults.insert((stage as u32, fault));
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

fn build(scope: Scope<'_, Time>, shared: &Arc<Shared>, found: &Arc<Mutex<(Found, bool)>>) -> (Inputs, Probes) {
    let mut inputs = Inputs { files: Vec::new(), faults: InputSession::new(), published: InputSession::new() };
    let probes = Probes { settled: ProbeHandle::new(), heard: ProbeHandle::new() };
    let mut tables: Tables<'_> = shared.graph.stages.iter().map(|_| None).collect();
    let mut wanted: Vec<VecCollection<'_, Time, StageRow>> = Vec::new();
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
            let (own, id) = (member.stage as u32, shared.graph.stages[member.stage].id.clone());
            let rows = yields.clone().flat_map(move |what| match what {
                Yield::Row { stage, item } if stage == own => Some(item),
                _ => None,
            });
            // The published side does not know sources: a row is what it holds.
            wanted.push(rows.clone().map(move |item| (id.clone(), Item { source: None, ..item })));
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

    let changes = wanted.delay(end_of_ingest).distinct_total().concat(published_rows.negate()).consolidate();
    let sink = found.clone();
    let rows_heard = on_worker_0(changes, move |change, sign| lock(&sink).0.changes.push((change, sign)));
    let sink = found.clone();
    let faults = faults.delay(end_of_ingest).distinct_total();
    let faults_heard = on_worker_0(faults, move |fault, sign| {
        if sign > 0 {
            lock(&sink).0.faults.push(fault);
        }
    });
    rows_heard.concat(faults_heard).probe_with(&probes.heard);
    (inputs, probes)
}

fn lock(found: &Mutex<(Found, bool)>) -> std::sync::MutexGuard<'_, (Found, bool)> {
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
        let id = if count == 1 { id.clone() } else { format!("shard-{shard:02}") };
        let item =
            Item { id: id.into(), content: Default::default(), source: None, origin: None, files: Arc::from([]) };
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
