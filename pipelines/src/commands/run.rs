//! `vw2-pipe run FILE`: brings what a pipeline publishes up to date, and says what that took.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use miette::{IntoDiagnostic, WrapErr, miette};
use vw2_engine::plan::Plan;
use vw2_engine::pool::{Cancel, Progress};
use vw2_engine::report::{Outcome, Report};
use vw2_engine::run::{self, Options};
use vw2_engine::stage::Needs;
use vw2_engine::store::Store;
use vw2_kernels::device;

use crate::cli::{self, RunArgs};
use crate::progress::Screen;
use crate::{loading, progress, text};

pub(crate) fn run(args: &RunArgs) -> miette::Result<ExitCode> {
    let mut plan = loading::plan(&args.pipeline)?;
    override_runtime(&mut plan, args);
    let (devices, numeric) = devices(&plan)?;
    require_files(&plan)?;
    let options = Options {
        workers: plan.runtime.workers,
        threads: plan.runtime.threads,
        limit: args.limit,
        devices,
        numeric,
        cancel: Cancel::new(),
        progress: Progress::new(),
    };
    let store = Store::open(&plan.runtime.store)?;
    let screen = Screen::new();
    drain_on_ctrl_c(options.cancel.clone(), screen.clone())?;
    let watch = progress::watch(options.progress.clone(), &screen);
    let show = |report: &Report| match args.json {
        true => text::print(report.to_json()),
        false => text::print(report.to_string().trim_end()),
    };
    if args.watch {
        // A table that cannot be shown is no reason to stop: the last one is shown again at the end.
        let report = run::watch(&plan, &store, &options, SETTLE, |report| drop(screen.aside(|| show(report))));
        drop(watch);
        return Ok(exit_code(&report?));
    }
    let report = run::run(&plan, &store, &options);
    drop(watch);
    let report = report?;
    show(&report)?;
    Ok(exit_code(&report))
}

/// How long a file has been left alone before a watching run takes it: a copy that is under way is not half read.
const SETTLE: Duration = Duration::from_millis(500);

/// The options of the command line win over `[runtime]`.
fn override_runtime(plan: &mut Plan, args: &RunArgs) {
    let runtime = &mut plan.runtime;
    if let Some(device) = &args.device {
        runtime.device.clone_from(device);
    }
    if let Some(store) = &args.store {
        runtime.store.clone_from(store);
    }
    if let Some(workers) = args.workers {
        runtime.workers = workers;
    }
}

/// All missing files at once, before anything runs.
pub(super) fn require_files(plan: &Plan) -> miette::Result<()> {
    let missing: Vec<String> = loading::missing(plan).iter().map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(miette!("{}", missing.join("\n"))) }
}

/// The devices by name, and the class of the numbers that they give, for the fingerprints. A plan without device stages
/// opens no device.
pub(super) fn devices(plan: &Plan) -> miette::Result<(Vec<String>, String)> {
    if plan.stages.iter().all(|stage| stage.needs != Needs::Device) {
        return Ok((Vec::new(), String::new()));
    }
    let (names, class) = device::list(&plan.runtime.device).into_diagnostic()?;
    Ok((names, class.to_owned()))
}

/// The first Ctrl-C lets running units end; the second exits at once, which the store survives.
pub(super) fn drain_on_ctrl_c(cancel: Cancel, screen: Screen) -> miette::Result<()> {
    let pressed = AtomicBool::new(false);
    let handler = move || match pressed.swap(true, Ordering::Relaxed) {
        false => {
            cancel.cancel();
            screen.say("draining; Ctrl-C again exits at once; run the same command to resume");
        }
        true => std::process::exit(i32::from(cli::INTERRUPTED)),
    };
    ctrlc::set_handler(handler).into_diagnostic().wrap_err("cannot listen for Ctrl-C")
}

fn exit_code(report: &Report) -> ExitCode {
    match report.outcome {
        Outcome::Interrupted => ExitCode::from(cli::INTERRUPTED),
        Outcome::Done if report.too_many_quarantined => ExitCode::from(cli::TOO_MANY_QUARANTINED),
        Outcome::Done => ExitCode::SUCCESS,
    }
}
