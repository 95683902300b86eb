//! The pipeline as a few maps: what stands in its folder, and how many units follow from that.

use std::collections::{BTreeMap, BTreeSet};

use vw2_engine::Hash;

use super::edit::{Edit, Optional};

const SHARDS: u64 = 4;

/// By stage: units, named by all that determines them.
pub(super) type Units = BTreeMap<&'static str, BTreeSet<String>>;

/// What stands in the folder and in the pipeline, and which units were ever computed.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) files: BTreeMap<u64, Vec<String>>,
    pub(super) add: u64,
    pub(super) suffix: &'static str,
    pub(super) weights: u64,
    missing: BTreeSet<Optional>,
    pub(super) workers: u64,
    batch: u64,
    memory_kib: u64,
    known: Units,
}

impl Model {
    pub(super) fn new() -> Model {
        Model {
            files: BTreeMap::new(),
            add: 0,
            suffix: "",
            weights: 0,
            missing: BTreeSet::new(),
            workers: 1,
            batch: 1,
            memory_kib: 65_536,
            known: Units::new(),
        }
    }

    /// What the step changes here.
    pub(super) fn edit(&mut self, edit: &Edit) {
        match edit {
            Edit::Write(file, text) => _ = self.files.insert(*file, text.clone()),
            Edit::Remove(file) => _ = self.files.remove(file),
            Edit::Rename(file, other) | Edit::Copy(file, other) => {
                if let Some(text) = self.files.get(file).cloned() {
                    if matches!(edit, Edit::Rename(..)) {
                        self.files.remove(file);
                    }
                    self.files.insert(*other, text);
                }
            }
            Edit::Truncate(file) => {
                if let Some(text) = self.files.get_mut(file) {
                    text.truncate(1);
                }
            }
            Edit::Touch(_) => {}
            Edit::Add(add) => self.add = *add,
            Edit::Suffix(suffix) => self.suffix = suffix,
            Edit::Weights(weights) => self.weights = *weights,
            Edit::Stage(stage, true) => _ = self.missing.remove(stage),
            Edit::Stage(stage, false) => _ = self.missing.insert(*stage),
            Edit::Workers(workers) => self.workers = *workers,
            Edit::Batch(batch) => self.batch = *batch,
            Edit::MemoryKib(memory) => self.memory_kib = *memory,
            // Something to do: without it a run is over before anything happens to it.
            Edit::Die(n) | Edit::Kill(n) | Edit::FullDisk(n) => {
                let text = [format!("line {n} of {}", self.known.len()), format!("and another {n}")];
                self.files.insert(4, text.to_vec());
            }
        }
    }

    fn has(&self, stage: Optional) -> bool {
        !self.missing.contains(&stage)
    }

    /// The pipeline's file.
    pub(super) fn toml(&self) -> String {
        let (batch, memory) = (self.batch, self.memory_kib);
        let from = if self.has(Optional::Upper) { "upper" } else { "lines" };
        let mut toml = format!(
            "name = \"toy\"\n[runtime]\nmemory = \"{memory}KiB\"\n\
             [stage.texts]\nkind = \"list\"\nroot = \"IN\"\n\
             [stage.lines]\nkind = \"split\"\ninput = \"texts\"\n\
             [stage.counts]\nkind = \"count\"\ninput = \"{from}\"\nadd = {}\nlog = \"LOG\"\n",
            self.add
        );
        if self.has(Optional::Upper) {
            let suffix = self.suffix;
            toml += &format!(
                "[stage.upper]\nkind = \"upper\"\ninput = \"lines\"\nstore = \"transient\"\nsuffix = \"{suffix}\"\n"
            );
        }
        if self.has(Optional::Twice) {
            toml += &format!(
                "[stage.twice]\nkind = \"twice\"\ninput = \"{from}\"\nweights = \"WEIGHTS\"\nrun = {{ batch = {batch} }}\n"
            );
        }
        if self.has(Optional::Total) {
            toml += "[stage.total]\nkind = \"sum\"\ninput = \"counts\"\n";
        }
        if self.has(Optional::Book) {
            toml += &format!("[stage.book]\nkind = \"export\"\ninput = \"lines\"\nshards = {SHARDS}\npath = \"OUT\"\n");
        }
        toml
    }

    /// How many units of each stage are unknown; from now on they are known.
    pub(super) fn learn(&mut self) -> BTreeMap<&'static str, u64> {
        let needed = self.units();
        let unknown = |stage: &'static str, needed: &BTreeSet<String>| match self.known.get(stage) {
            Some(known) => needed.difference(known).count() as u64,
            None => needed.len() as u64,
        };
        let counts = needed.iter().map(|(stage, needed)| (*stage, unknown(stage, needed))).collect();
        for (stage, needed) in needed {
            self.known.entry(stage).or_default().extend(needed);
        }
        counts
    }

    /// Lines of all files under their ids, sorted. A file whose first line starts with BAD is a bad file.
    fn lines(&self) -> Vec<(String, &String)> {
        let mut lines = Vec::new();
        for (file, text) in self.files.iter().filter(|(_, text)| !bad_file(text)) {
            lines.extend(text.iter().enumerate().map(|(index, line)| (format!("{file}#{index}"), line)));
        }
        lines.sort();
        lines
    }

    /// The units of each stage as things stand.
    fn units(&self) -> Units {
        let mut units = Units::new();
        let mut unit = |stage, key: String| _ = units.entry(stage).or_default().insert(key);
        for text in self.files.values() {
            unit("texts", text.join("\n"));
            if !bad_file(text) {
                unit("lines", text.join("\n"));
            }
        }
        let upper = self.has(Optional::Upper);
        let via = if upper { format!("via upper {}", self.suffix) } else { String::new() };
        let added = if upper { self.suffix.len() as u64 } else { 0 } + self.add;
        let (mut counts, mut shards) = (Vec::new(), BTreeMap::<u64, String>::new());
        for (id, line) in self.lines() {
            let bad = line.starts_with("BAD");
            // `upper` rejects bad lines, so that the stages behind it never see them; without it they do that themselves.
            if !bad || !upper {
                unit("counts", format!("{line} {} {via}", self.add));
                if self.has(Optional::Twice) {
                    unit("twice", format!("{line} {} {via}", self.weights));
                }
            }
            if !bad {
                counts.push(format!("{id} {}", line.len() as u64 + added));
            }
            let Hash([a, b, c, d, e, f, g, h, ..]) = Hash::of_bytes(id.as_bytes());
            *shards.entry(u64::from_le_bytes([a, b, c, d, e, f, g, h]) % SHARDS).or_default() +=
                &format!("{id} {line},");
        }
        if !counts.is_empty() && self.has(Optional::Total) {
            unit("total", counts.join(","));
        }
        if self.has(Optional::Book) {
            shards.into_values().for_each(|shard| unit("book", shard));
        }
        units
    }
}

fn bad_file(text: &[String]) -> bool {
    text.first().is_some_and(|line| line.starts_with("BAD"))
}
