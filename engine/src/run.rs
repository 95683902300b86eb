//! Brings what a pipeline publishes to what its plan wants.
//!
//! Every run starts from two facts: what the sources hold now, and what is published. The dataflow derives what is
//! wanted, mostly from what the store remembers, and `wanted - published` is the list of rows to add and to take back.
//! Only when all of it is known is anything published, in one transaction; then the folders outside the store are made
//! equal to it. No dataflow state is saved, so a run that was stopped or killed leaves nothing to repair: the next one
//! computes what is missing.

pub(crate) mod dataflow;
pub(crate) mod feed;
pub(crate) mod graph;
pub(crate) mod history;
pub(crate) mod publish;
pub(crate) mod published;
pub(crate) mod shared;
pub(crate) mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::pool::{Budget, Cancel, CommitMessage, Progress, Threads, commit_loop, quietly};
use crate::report::{Outcome, Report, record};
use crate::spec::Runtime;
use crate::store::Store;
use dataflow::{Found, Ingests};
use graph::Graph;
use history::History;
use publish::Publisher;
use published::published_before;
use shared::Shared;

/// How to run; nothing here changes a result, except `numeric`, which says what kind of results they are.
#[derive(Clone)]
pub struct Options {
    /// Timely workers in this process; at least 1.
    pub workers: usize,
    /// Pool threads; 0: one per core.
    pub threads: usize,
    /// Only the first so many files of each source, by id.
    pub limit: Option<usize>,
    /// One thread each computes on these; a name may stand here twice. None: the pipeline's `runtime.device`.
    pub devices: Vec<String>,
    /// The class of arithmetic that all devices have (`flex-f32`); part of the keys of stages that need a device.
    pub numeric: String,
    pub cancel: Cancel,
    pub progress: Progress,
}

impl Options {
    /// As the pipeline's `[runtime]` says.
    pub fn of(runtime: &Runtime) -> Options {
        Options {
            workers: runtime.workers,
            threads: runtime.threads,
            limit: None,
            devices: Vec::new(),
            numeric: String::new(),
            cancel: Cancel::new(),
            progress: Progress::new(),
        }
    }

    pub(crate) fn threads_or_cores(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        if self.threads == 0 { cores() } else { self.threads }
    }
}

/// Runs the plan to its end, or until it is cancelled. Units that fail are in the report's quarantine.
///
/// `Err`: the run cannot go on (a source's folder is missing, an operator cannot be opened, a disk is full). What was
/// computed is kept for the next run, and nothing is published.
pub fn run(plan: &Plan, store: &Store, options: &Options) -> Result<Report> {
    session(plan, store, options, None, &mut |_| {})
}

/// As [`run`], and then goes on with what changes in the sources until it is cancelled. A file counts once it has not
/// changed for `settle`. `told` hears what each group of changes came to; the report that is returned is the last one's,
/// and its outcome is [`Outcome::Done`] if nothing was at work when it was cancelled.
///
/// # Errors
/// As [`run`]; what was published before stays so.
pub fn watch(
    plan: &Plan,
    store: &Store,
    options: &Options,
    settle: Duration,
    mut told: impl FnMut(&Report),
) -> Result<Report> {
    session(plan, store, options, Some(settle), &mut told)
}

fn session(
    plan: &Plan,
    store: &Store,
    options: &Options,
    watch: Option<Duration>,
    told: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let start = Instant::now();
    let (fingerprints, stages) = record(plan, &options.numeric, &mut |path| store.file_hash(path))?;
    let settings = json!({
        "workers": options.workers, "threads": options.threads, "limit": options.limit,
        "device": plan.runtime.device, "devices": devices(plan, options), "numeric": options.numeric, "memory": plan.runtime.memory,
        "stages": stages, "watch": watch.is_some(),
    });
    let run = store.begin_run(&plan.name, &settings.to_string())?;
    let graph = Graph::new(plan, &fingerprints, &options.progress);
    let result = reconcile(plan, store, options, watch, run, graph, told).map(|mut report| {
        if watch.is_none() {
            report.seconds = start.elapsed().as_secs_f64();
        }
        report
    });
    match &result {
        Ok(report) => store.finish_run(run, report.outcome.as_str(), &report.to_json().to_string())?,
        // The first error is the one to tell, even if this cannot be noted either.
        Err(error) => drop(store.finish_run(run, "failed", &json!({ "error": error.to_string() }).to_string())),
    }
    result
}

pub(crate) fn devices(plan: &Plan, options: &Options) -> Vec<String> {
    if options.devices.is_empty() { vec![plan.runtime.device.clone()] } else { options.devices.clone() }
}

fn reconcile(
    plan: &Plan,
    store: &Store,
    options: &Options,
    watch: Option<Duration>,
    run: i64,
    graph: Graph,
    told: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let (published, kept) = published_before(plan, store)?;
    let (commits, messages) = crossbeam_channel::unbounded();
    let history = History::load(&graph, store, &plan.name, &kept)?;
    let shared = Arc::new(Shared {
        published,
        watches: watch.is_some(),
        serial: Shared::next_serial(),
        run,
        graph,
        store: store.clone(),
        budget: Budget::new(plan.runtime.memory),
        jobs: Default::default(),
        device_jobs: Default::default(),
        commits,
        cancel: options.cancel.child(),
        progress: options.progress.clone(),
        devices: devices(plan, options),
        memory_bytes: plan.runtime.memory,
        scanned: Mutex::default(),
        passing: Mutex::default(),
        history,
        failure: Mutex::default(),
    });
    let mut publisher = Publisher::new(plan, store, &shared, kept);
    let mut report = Report::new(run, plan, &shared.graph);
    let (mut before, mut began) = (report.clone(), Instant::now());
    let complete = compute(&shared, options, watch, messages, |found| {
        let counted = Report::new(run, plan, &shared.graph);
        report = counted.clone().since(&before);
        publisher.publish(found, &mut report)?;
        report.seconds = began.elapsed().as_secs_f64();
        told(&report);
        (before, began) = (counted, Instant::now());
        Ok(())
    })?;
    if let Some(error) = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    if !complete {
        report = Report::new(run, plan, &shared.graph).since(&before);
        report.outcome = Outcome::Interrupted;
    }
    Ok(report)
}

/// Runs the dataflow with all its threads; `hear` is told of each ingest. `false`: it was stopped before all was known. All
/// threads have ended and all finished units are committed when this returns.
fn compute(
    shared: &Arc<Shared>,
    options: &Options,
    watch: Option<Duration>,
    messages: crossbeam_channel::Receiver<CommitMessage>,
    hear: impl FnMut(Found) -> Result<()>,
) -> Result<bool> {
    let committer = {
        let shared = shared.clone();
        let body = move || {
            if let Err(panic) = quietly(|| commit_loop(&shared, &messages)) {
                shared.fail(Error::Failed(format!("the committer panicked, which is a bug: {panic}")));
            }
        };
        std::thread::Builder::new().name("vw2-commit".to_owned()).spawn(body)
    };
    let committer = committer.map_err(|e| Error::Failed(format!("cannot start a thread: {e}")))?;
    let ingests = Ingests { limit: options.limit, watch };
    let complete = Threads::start(shared, options.threads_or_cores()).map(|threads| {
        let complete = dataflow::execute(shared, options.workers.max(1), ingests, hear);
        drop(threads);
        complete
    });
    shared.commits.send(CommitMessage::Close).ok();
    committer.join().ok();
    complete
}
