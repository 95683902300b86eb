//! Places at which tests cut a run short, to prove that the next run heals it.
//!
//! Each durable write passes exactly one named point just before it takes effect. Tests arm a countdown in a child
//! process; the process dies at the point where it reaches zero. Unarmed, a point costs one relaxed load.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// All points, in the order in which a run first reaches them; those of a store's upkeep follow.
pub const FAIL_POINTS: &[&str] = &[
    "run.begin",
    "file_hash.flush",
    "scratch.rename",
    "blob.rename",
    "commit",
    "publish",
    "quarantine",
    "place.claim",
    "place.file",
    "place.remove",
    "place.version",
    "place.latest",
    "place.record",
    "run.finish",
    "quarantine.retry",
    "verify.aside",
    "verify.forget",
    "gc.manifest",
    "gc.file",
    "gc.scratch",
    "gc.compact",
];

/// 0: unarmed.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// The process aborts at the `nth` point (counted from 1) that it passes from now on; 0 disarms.
pub fn abort_at(nth: u64) {
    LEFT.store(nth, Ordering::SeqCst);
}

pub(crate) fn fail_point(name: &str) {
    debug_assert!(FAIL_POINTS.contains(&name), "`{name}` is missing in FAIL_POINTS");
    if LEFT.load(Ordering::Relaxed) != 0 && LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        // Past the test harness, which would keep the line to itself.
        let _ = writeln!(std::io::stderr(), "dies at {name}");
        std::process::abort();
    }
}
