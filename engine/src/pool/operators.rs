//! Calling operators: opened where they run, panics caught, failed batches bisected, passing failures tried again.
//!
//! Every thread owns the operators that it opened; they end with the thread.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::run::shared::Shared;
use crate::stage::{Interrupted, Operator, Output, OutputRow, StageError, Unit, UnitResult};

/// What became of one unit in one operator.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Rows(Vec<OutputRow>),
    Bad(String),
    Transient(String),
    Bug(String),
    Interrupted,
}

/// Why an operator could not even be opened.
pub(crate) enum NoOperator {
    Interrupted,
    /// It concerns all units of the stage, so the run cannot go on.
    Failed(Error),
}

/// Waits before a failure that may pass is tried again.
const RETRY_AFTER: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(320)];

/// One verdict per unit, in order.
pub(crate) fn call(shared: &Shared, stage: usize, units: &[Unit]) -> Result<Vec<Verdict>, NoOperator> {
    let start = Instant::now();
    let mut verdicts = Vec::with_capacity(units.len());
    let result = solve(shared, stage, units, &mut verdicts);
    shared.graph.stages[stage].counters.busy_us.fetch_add(start.elapsed().as_micros() as u64, Relaxed);
    result.map(|()| verdicts)
}

/// What the operator says it needs for this unit. A panic is the unit's verdict.
pub(crate) fn memory_bytes(shared: &Shared, stage: usize, unit: &Unit) -> Result<Result<u64, Verdict>, NoOperator> {
    let answer = with_operator(shared, stage, |operator| operator.memory_bytes(unit))?;
    Ok(answer.map_err(|panic| Verdict::Bug(format!("panicked while it estimated memory: {panic}"))))
}

fn solve(shared: &Shared, stage: usize, units: &[Unit], verdicts: &mut Vec<Verdict>) -> Result<(), NoOperator> {
    match attempt(shared, stage, units)? {
        Attempt::Answered(results) => {
            for (unit, result) in units.iter().zip(results) {
                let verdict = match result {
                    UnitResult::Rows(rows) => Verdict::Rows(rows),
                    UnitResult::Bad(reason) => Verdict::Bad(reason),
                    UnitResult::Transient(reason) => try_again(shared, stage, unit, reason)?,
                };
                verdicts.push(verdict);
            }
        }
        _ if units.len() > 1 => {
            let (left, right) = units.split_at(units.len() / 2);
            solve(shared, stage, left, verdicts)?;
            solve(shared, stage, right, verdicts)?;
        }
        Attempt::Panicked(message) => verdicts.push(Verdict::Bug(format!("panicked: {message}"))),
        Attempt::Failed(error) => verdicts.push(match failure(shared, &error) {
            Verdict::Transient(reason) => try_again(shared, stage, &units[0], reason)?,
            verdict => verdict,
        }),
    }
    Ok(())
}

/// The unit failed once, for `reason`; it is given time to pass.
fn try_again(shared: &Shared, stage: usize, unit: &Unit, mut reason: String) -> Result<Verdict, NoOperator> {
    for wait in RETRY_AFTER {
        if shared.stopping() {
            return Ok(Verdict::Interrupted);
        }
        std::thread::sleep(wait);
        reason = match attempt(shared, stage, std::slice::from_ref(unit))? {
            Attempt::Answered(mut results) => match results.pop().expect("one result per unit") {
                UnitResult::Rows(rows) => return Ok(Verdict::Rows(rows)),
                UnitResult::Bad(reason) => return Ok(Verdict::Bad(reason)),
                UnitResult::Transient(reason) => reason,
            },
            Attempt::Panicked(message) => return Ok(Verdict::Bug(format!("panicked: {message}"))),
            Attempt::Failed(error) => match failure(shared, &error) {
                Verdict::Transient(reason) => reason,
                verdict => return Ok(verdict),
            },
        };
    }
    Ok(Verdict::Transient(reason))
}

fn failure(shared: &Shared, error: &StageError) -> Verdict {
    if !error.is::<Interrupted>() {
        Verdict::Transient(with_sources(error))
    } else if shared.stopping() {
        Verdict::Interrupted
    } else {
        Verdict::Bug("says that it was interrupted, which nobody asked for".to_owned())
    }
}

enum Attempt {
    Answered(Vec<UnitResult>),
    Failed(StageError),
    Panicked(String),
}

fn attempt(shared: &Shared, stage: usize, units: &[Unit]) -> Result<Attempt, NoOperator> {
    let answer = with_operator(shared, stage, |operator| {
        let mut output = Output::for_units(units);
        operator.process(units, &mut output).map(|()| output.results)
    })?;
    Ok(match answer {
        Ok(Ok(results)) => Attempt::Answered(results),
        Ok(Err(error)) => Attempt::Failed(error),
        Err(panic) => Attempt::Panicked(panic),
    })
}

/// An operator of one stage of one run.
type OpenOperators = HashMap<(u64, usize), Box<dyn Operator>>;

thread_local! {
    static OPEN: RefCell<OpenOperators> = RefCell::default();
    /// Which of the run's devices is this thread's own.
    static DEVICE: Cell<usize> = const { Cell::new(0) };
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Operators that this thread opens from now on compute on that device.
pub(super) fn own_device(index: usize) {
    DEVICE.set(index);
}

/// Runs `work` with this thread's operator of the stage. `Err` in the result: it panicked, and the operator is gone.
fn with_operator<R>(
    shared: &Shared,
    stage: usize,
    work: impl FnOnce(&mut dyn Operator) -> R,
) -> Result<Result<R, String>, NoOperator> {
    let slot = (shared.serial, stage);
    // Taken out while it works: reading a transient row inside of it may call another operator of this thread.
    let open = OPEN.with_borrow_mut(|open| open.remove(&slot));
    let mut operator = match open {
        Some(operator) => operator,
        None => open_operator(shared, stage)?,
    };
    let answer = quietly(|| work(operator.as_mut()));
    if answer.is_ok() {
        OPEN.with_borrow_mut(|open| open.insert(slot, operator));
    } else {
        // After a panic its state means nothing. Should it panic again while it is dropped, that changes nothing.
        quietly(|| drop(operator)).ok();
    }
    Ok(answer)
}

fn open_operator(shared: &Shared, stage: usize) -> Result<Box<dyn Operator>, NoOperator> {
    let stage = &shared.graph.stages[stage];
    let context = shared.context(stage, DEVICE.get());
    let reason = match quietly(|| stage.stage.open(&context)) {
        Ok(Ok(operator)) => return Ok(operator),
        Ok(Err(error)) if error.is::<Interrupted>() && shared.stopping() => return Err(NoOperator::Interrupted),
        Ok(Err(error)) => with_sources(&error),
        Err(panic) => format!("it panicked: {panic}"),
    };
    Err(NoOperator::Failed(Error::Failed(format!("stage `{}` cannot start: {reason}", stage.id))))
}

/// Runs `work` and turns a panic into its message, without a word on stderr.
pub(crate) fn quietly<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                return usual(info);
            }
            let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
            let message = format!("{}{}", message(info.payload()), place.unwrap_or_default());
            PANIC.set(Some(message));
        }));
    });
    PANIC.set(None);
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    // A panic that another thread raised and this one passed on did not meet the hook.
    result.map_err(|payload| PANIC.take().unwrap_or_else(|| message(payload.as_ref())))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

fn with_sources(error: &StageError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // Many errors already print their source.
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_keeps_its_message_and_place() {
        let text = quietly(|| panic!("no {}", "luck")).unwrap_err();
        assert!(text.starts_with("no luck (") && text.contains("operators.rs:"), "{text}");
        let text = quietly(|| std::panic::resume_unwind(Box::new("passed on"))).unwrap_err();
        assert_eq!(text, "passed on");
        assert_eq!(quietly(|| 7), Ok(7));
    }
}
