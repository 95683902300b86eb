//! What a run tells while it works: bars on a terminal, else one JSON line a second on stderr. A run that ends within
//! the first second tells nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use vw2_engine::pool::{Progress, StageProgress};

use crate::text;

/// How often the counters are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// From one JSON line to the next, and before the first.
const LINE: Duration = Duration::from_secs(1);

/// Stderr while a run works: lines that are said do not tear the bars apart. Clones share.
#[derive(Clone)]
pub(crate) struct Screen {
    /// Where bars are drawn; `None` where stderr is no terminal.
    bars: Option<MultiProgress>,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        let terminal = std::io::stderr().is_terminal();
        Screen { bars: terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())) }
    }

    /// Does what writes to the terminal while no bar is drawn there.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    pub(crate) fn say(&self, message: &str) {
        match &self.bars {
            // Fails only where the terminal is gone, and then nobody reads it.
            Some(bars) => _ = bars.println(message),
            None => text::say(message),
        }
    }
}

/// A thread that tells the progress until it is dropped.
pub(crate) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts to tell `progress`.
pub(crate) fn watch(progress: Progress, screen: &Screen) -> Watch {
    let (stop, stopped) = mpsc::channel();
    let mut teller: Box<dyn Teller + Send> = match screen.bars.clone() {
        Some(all) => Box::new(Bars { began: Instant::now(), all, shown: BTreeMap::new() }),
        None => Box::new(Lines { began: Instant::now(), told: Instant::now(), last: Value::Null }),
    };
    let thread = std::thread::spawn(move || {
        while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            teller.tell(&progress.snapshot());
        }
        teller.end();
    });
    Watch { stop: Some(stop), thread: Some(thread) }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A teller that panicked has nothing more to say; the run's result does not depend on it.
            let _ = thread.join();
        }
    }
}

trait Teller {
    fn tell(&mut self, stages: &[StageProgress]);
    fn end(&mut self);
}

/// One JSON object a second: `{"t":3.0,"stages":{"codes":{"done":5,"total":40,"reused":0,"quarantined":0}}}`.
struct Lines {
    began: Instant,
    told: Instant,
    last: Value,
}

impl Teller for Lines {
    fn tell(&mut self, stages: &[StageProgress]) {
        if self.told.elapsed() >= LINE {
            self.told = Instant::now();
            let line = line(self.began.elapsed(), stages);
            // A run that waits has nothing to tell.
            if line["stages"] != self.last {
                self.last = line["stages"].clone();
                text::say(line);
            }
        }
    }

    fn end(&mut self) {}
}

/// Stages of which nothing is known yet are left out.
fn line(elapsed: Duration, stages: &[StageProgress]) -> Value {
    let known = stages.iter().filter(|stage| stage.total > 0 || stage.steps.is_some());
    let stages: Map<String, Value> = known
        .map(|stage| {
            let mut counts = json!({
                "done": stage.done, "total": stage.total, "reused": stage.reused, "quarantined": stage.quarantined,
            });
            if let Some(steps) = &stage.steps {
                counts["steps"] = json!({ "done": steps.done, "total": steps.total, "text": steps.text });
            }
            (stage.stage.clone(), counts)
        })
        .collect();
    json!({ "t": (elapsed.as_secs_f64() * 10.0).round() / 10.0, "stages": stages })
}

/// One bar for each stage that has something to compute.
struct Bars {
    began: Instant,
    all: MultiProgress,
    /// By the stage's place in the plan, which is also the order on the screen.
    shown: BTreeMap<usize, ProgressBar>,
}

impl Bars {
    fn bar(&mut self, place: usize, stage: &StageProgress) -> &ProgressBar {
        let above = self.shown.range(..place).count();
        self.shown.entry(place).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:14} {bar:30} {pos:>5}/{len:<5} {eta:>4}  {msg}");
            let style = style.expect("the template is a constant whose keys indicatif knows");
            let bar = ProgressBar::new(0).with_style(style).with_prefix(stage.stage.clone());
            self.all.insert(above, bar)
        })
    }
}

impl Teller for Bars {
    fn tell(&mut self, stages: &[StageProgress]) {
        if self.began.elapsed() < LINE {
            return;
        }
        for (place, stage) in stages.iter().enumerate() {
            let has_work = stage.done < stage.total || stage.steps.is_some();
            if !has_work && !self.shown.contains_key(&place) {
                continue;
            }
            let bar = self.bar(place, stage);
            let (done, total, message) = match &stage.steps {
                Some(steps) => (steps.done, steps.total, steps.text.clone()),
                None => (stage.done, stage.total, quarantined(stage.quarantined)),
            };
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message);
        }
    }

    fn end(&mut self) {
        let _ = self.all.clear();
    }
}

fn quarantined(count: u64) -> String {
    if count == 0 { String::new() } else { format!("{count} quarantined") }
}

#[cfg(test)]
mod tests {
    use vw2_engine::pool::Steps;

    use super::*;

    #[test]
    fn a_line_names_the_stages_that_have_begun() {
        let stage = |stage: &str, done, total, steps| StageProgress {
            stage: stage.to_owned(),
            total,
            done,
            reused: 1,
            quarantined: 0,
            steps,
        };
        let steps = Steps { done: 20, total: 300, text: "loss 1.25".to_owned() };
        let stages = [stage("clips", 2, 3, None), stage("later", 0, 0, None), stage("ar", 0, 1, Some(steps))];
        assert_eq!(
            line(Duration::from_millis(2_345), &stages).to_string(),
            r#"{"t":2.3,"stages":{"clips":{"done":2,"total":3,"reused":1,"quarantined":0},"ar":{"done":0,"total":1,"reused":1,"quarantined":0,"steps":{"done":20,"total":300,"text":"loss 1.25"}}}}"#
        );
    }
}
