//! What a run shows while it goes on: its speed, and, where the user named a folder, metrics with times and the picture.
//!
//! Nothing of it is a result: times differ from run to run. Columns beside those of the result's metrics: `seconds` of the
//! step, `<what is counted>_per_second`, `flops_per_second`. A run that was resumed has them for its own steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vw2_data::formats::metrics;
use vw2_engine::stage::StageError;
use vw2_models::train::Log;

use super::trainer::Check;

/// How often the folder is brought up to date.
const EVERY: Duration = Duration::from_secs(10);

pub(super) struct Live {
    folder: Option<PathBuf>,
    counted: &'static str,
    times: Log,
    shown: Option<Instant>,
}

impl Live {
    pub(super) fn new(folder: Option<&Path>, counted: &'static str) -> Live {
        Live { folder: folder.map(Path::to_owned), counted, times: Log::default(), shown: None }
    }

    /// A step took this long for so much, with so many floating-point operations in products.
    pub(super) fn stepped(&mut self, step: u32, took: Duration, amount: f64, flops: f64) {
        let seconds = took.as_secs_f64().max(1e-9);
        self.times.push("seconds", step, seconds);
        self.times.push(&self.rate(), step, amount / seconds);
        self.times.push("flops_per_second", step, flops / seconds);
    }

    fn rate(&self) -> String {
        format!("{}_per_second", self.counted)
    }

    /// Of the last steps, for the line that the user reads.
    pub(super) fn speed(&self) -> String {
        let (rate, flops) = (self.times.recent(&self.rate(), 20), self.times.recent("flops_per_second", 20));
        format!(", {rate:.1} {}/s, {:.1} GFLOP/s", self.counted, flops / 1e9)
    }

    /// Brings the folder up to date, where there is one, but not at each call.
    pub(super) fn show(&mut self, at: Check, log: &Log, picture: impl FnOnce() -> String) -> Result<(), StageError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        if !at.last && self.shown.is_some_and(|shown| shown.elapsed() < EVERY) {
            return Ok(());
        }
        self.shown = Some(Instant::now());
        let columns = log.columns().iter().chain(self.times.columns());
        let columns: Vec<metrics::Column<'_>> = columns.map(|(name, points)| (&**name, &**points)).collect();
        fs::create_dir_all(folder).map_err(|error| format!("make folder {}: {error}", folder.display()))?;
        for (name, bytes) in [("metrics.parquet", metrics::to_bytes(&columns)?), ("loss.svg", picture().into_bytes())] {
            // A reader sees the old file or the new one.
            let (new, path) = (folder.join(format!(".{name}.new")), folder.join(name));
            let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path));
            written.map_err(|error| format!("write {}: {error}", path.display()))?;
        }
        Ok(())
    }
}
