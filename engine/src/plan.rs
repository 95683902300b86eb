//! A spec matched with the table of stage kinds: stages in order, ports connected, params parsed. Pure: opens no file.

mod params;
mod text;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::fingerprint::fingerprints;

use crate::error::{Error, Result};
use crate::fingerprint::tagged_files;
use crate::spec::{
    Faults, Inputs, OnChange, PipelineSpec, Runtime, SpecErrors, StageSpec, StoreMode, did_you_mean, listed,
};
use crate::stage::{AnyStage, Needs, Placement, Port, StageKind, Take};

/// What a run does: stages in an order in which each stands after those that feed it.
#[derive(Clone)]
pub struct Plan {
    pub name: String,
    pub runtime: Runtime,
    /// Topological; stages that are free to move stand in the file's order.
    pub stages: Vec<PlannedStage>,
    /// Made by [`Plan::only`]: what other stages publish stays as it is.
    pub partial: bool,
}

/// A stage with everything about it looked up.
#[derive(Clone)]
pub struct PlannedStage {
    pub id: String,
    pub kind: StageKind,
    pub stage: Arc<dyn AnyStage>,
    /// Connected ports, in the kind's order.
    pub inputs: Vec<PlannedInput>,
    /// Not stored: runs inside its consumers' jobs. Has exactly one input, a row port.
    pub transient: bool,
    /// Other than `retrain` only for a stage of one unit that trains; see [`crate::stage::Stage::trains`].
    pub on_change: OnChange,
    /// Most units in one call of a device stage; at least 1.
    pub batch: usize,
    /// How long a batch waits to fill.
    pub max_wait: Duration,
    pub needs: Needs,
    pub shards: Option<u32>,
    pub placement: Option<Placement>,
    /// As the TOML says them, without defaults.
    pub params: toml::Table,
}

/// A connected port.
#[derive(Clone, Copy)]
pub struct PlannedInput {
    pub port: Port,
    /// Index of the stage that feeds it, in [`Plan::stages`].
    pub from: usize,
}

impl PlannedStage {
    /// The port by whose rows the stage runs.
    pub fn row_input(&self) -> Option<&PlannedInput> {
        self.inputs.iter().find(|input| input.port.take == Take::Row)
    }

    /// The ports that take complete tables.
    pub fn whole_inputs(&self) -> impl Iterator<Item = &PlannedInput> {
        self.inputs.iter().filter(|input| input.port.take == Take::Whole)
    }

    /// Whether it lists files instead of taking rows.
    pub fn is_source(&self) -> bool {
        self.kind.inputs.is_empty()
    }

    /// Files whose content is part of the fingerprint.
    pub fn files(&self) -> Vec<PathBuf> {
        tagged_files(&self.stage.canonical()).into_iter().map(|(_, path)| path).collect()
    }
}

impl Plan {
    pub fn index_of(&self, id: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.id == id)
    }

    /// Stages that take what stage `index` yields.
    pub fn consumers(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let takes = move |stage: &PlannedStage| stage.inputs.iter().any(|input| input.from == index);
        self.stages.iter().enumerate().filter(move |(_, stage)| takes(stage)).map(|(at, _)| at)
    }

    /// Stage `id` and what it needs, nothing else. `Err`: there is no such stage, or it keeps nothing.
    pub fn only(&self, id: &str) -> Result<Plan> {
        let Some(wanted) = self.index_of(id) else {
            let ids = || self.stages.iter().map(|stage| stage.id.as_str());
            let help = did_you_mean(id, ids()).unwrap_or_else(|| format!("it has {}", listed(ids())));
            return Err(Error::Failed(format!("pipeline `{}` has no stage `{id}`; {help}", self.name)));
        };
        if self.stages[wanted].transient {
            let consumers = listed(self.consumers(wanted).map(|at| self.stages[at].id.as_str()));
            return Err(Error::Failed(format!(
                "stage `{id}` is transient, so by itself it leaves nothing; name one that takes it: {consumers}"
            )));
        }
        let mut keep = BTreeSet::from([wanted]);
        for at in (0..=wanted).rev().filter(|at| *at <= wanted) {
            if keep.contains(&at) {
                keep.extend(self.stages[at].inputs.iter().map(|input| input.from));
            }
        }
        let keep: Vec<usize> = keep.into_iter().collect();
        let stages = reordered(&self.stages, &keep);
        Ok(Plan { name: self.name.clone(), runtime: self.runtime.clone(), stages, partial: true })
    }
}

/// The stages at these indices, in this order, with their inputs renumbered.
fn reordered(stages: &[PlannedStage], order: &[usize]) -> Vec<PlannedStage> {
    let moved = |from: usize| order.iter().position(|at| *at == from).expect("a kept stage's inputs are kept");
    let renumber = |at: &usize| {
        let mut stage = stages[*at].clone();
        stage.inputs.iter_mut().for_each(|input| input.from = moved(input.from));
        stage
    };
    order.iter().map(renumber).collect()
}

/// Matches the spec with the kinds. `Err` has everything that is wrong with it at once.
pub fn plan(spec: &PipelineSpec, kinds: &[StageKind]) -> Result<Plan, SpecErrors> {
    for kind in kinds {
        let row_ports = kind.inputs.iter().filter(|port| port.take == Take::Row).count();
        assert!(
            row_ports <= 1,
            "kind `{}` declares {row_ports} row ports; a stage runs once per row of one",
            kind.kind
        );
    }
    let mut faults = Faults::new(spec.source.clone());
    let found: Vec<Option<&StageKind>> = spec.stages.iter().map(|stage| find_kind(stage, kinds, &mut faults)).collect();
    let mut stages = Vec::new();
    for (stage, kind) in spec.stages.iter().zip(&found) {
        let Some(kind) = kind else { continue };
        let inputs = connect(stage, kind, spec, &found, kinds, &mut faults);
        if let Some(parsed) = params::parse(stage, kind, &mut faults) {
            stages.push(planned(stage, kind, parsed, inputs));
        }
    }
    check_circles(spec, &found, &mut faults);
    if faults.is_empty() {
        check_transient(spec, &stages, &mut faults);
        check_placements(spec, &stages, &mut faults);
        check_on_change(spec, &stages, &mut faults);
    }
    faults.check()?;
    let order = order(&stages);
    let stages = reordered(&stages, &order);
    Ok(Plan { name: spec.name.clone(), runtime: spec.runtime.clone(), stages, partial: false })
}

fn planned(spec: &StageSpec, kind: &StageKind, stage: Arc<dyn AnyStage>, inputs: Vec<PlannedInput>) -> PlannedStage {
    PlannedStage {
        id: spec.id.clone(),
        kind: *kind,
        inputs,
        transient: spec.store == StoreMode::Transient,
        on_change: spec.on_change,
        batch: spec.run.batch,
        max_wait: Duration::from_millis(spec.run.max_wait_ms),
        needs: stage.needs(),
        shards: stage.shards(),
        placement: stage.placement(),
        params: spec.params.clone(),
        stage,
    }
}

fn find_kind<'k>(stage: &StageSpec, kinds: &'k [StageKind], faults: &mut Faults) -> Option<&'k StageKind> {
    let found = kinds.iter().find(|kind| kind.kind == stage.kind);
    if found.is_none() {
        let names = || kinds.iter().map(|kind| kind.kind);
        let help = did_you_mean(&stage.kind, names()).unwrap_or_else(|| format!("kinds are {}", listed(names())));
        let at = stage.value_span(&["kind".to_owned()]);
        faults.add(at, "no such kind", format!("stage `{}`: unknown kind `{}`", stage.id, stage.kind), Some(help));
    }
    found
}

/// One thing that the stage says about its inputs.
struct Wire<'s> {
    /// `None`: the kind has no port to take it.
    port: Option<&'s str>,
    from: &'s str,
    /// Where it is said.
    at: Option<Range<usize>>,
}

fn wires<'s>(stage: &'s StageSpec, kind: &StageKind) -> Vec<Wire<'s>> {
    let place = |path: &[&str]| stage.value_span(&path.iter().map(|part| part.to_string()).collect::<Vec<_>>());
    match &stage.inputs {
        Inputs::None => Vec::new(),
        Inputs::First(from) => {
            let port = kind.inputs.iter().find(|port| !port.optional).or(kind.inputs.first());
            vec![Wire { port: port.map(|port| port.name), from, at: place(&["input"]) }]
        }
        Inputs::Named(ports) => {
            let wire =
                |(port, from): &'s (String, String)| Wire { port: Some(port), from, at: place(&["inputs", port]) };
            ports.iter().map(wire).collect()
        }
    }
}

/// Connects the stage's ports, in the kind's order; inputs are numbered by the file's order of stages.
fn connect(
    stage: &StageSpec,
    kind: &StageKind,
    spec: &PipelineSpec,
    found: &[Option<&StageKind>],
    kinds: &[StageKind],
    faults: &mut Faults,
) -> Vec<PlannedInput> {
    let id = &stage.id;
    let mut inputs = Vec::new();
    let mut named = BTreeSet::new();
    for Wire { port, from, at } in wires(stage, kind) {
        let Some(port) = port else {
            faults.add(at, "nothing takes it", format!("stage `{id}`: `{}` takes no input", kind.kind), None);
            continue;
        };
        named.insert(port);
        let Some(port) = kind.inputs.iter().find(|known| known.name == port) else {
            let ports = || kind.inputs.iter().map(|port| port.name);
            let help = did_you_mean(port, ports());
            let message = format!("stage `{id}`: unknown port `{port}`; `{}` takes {}", kind.kind, listed(ports()));
            faults.add(stage.key_span(&["inputs", port]).or(at), "no such port", message, help);
            continue;
        };
        let Some(feeder) = spec.stages.iter().position(|other| other.id == from) else {
            let ids = || spec.stages.iter().map(|other| other.id.as_str()).filter(|other| other != id);
            let help = did_you_mean(from, ids()).unwrap_or_else(|| format!("stages are {}", listed(ids())));
            let message = format!("stage `{id}`: port `{}` takes `{from}`, which is no stage", port.name);
            faults.add(at, "no such stage", message, Some(help));
            continue;
        };
        let Some(output) = found[feeder].map(|kind| kind.output) else { continue };
        if output.name != port.table.name {
            let message = format!(
                "stage `{id}`: port `{}` wants table `{}`, but `{from}` yields table `{}`",
                port.name, port.table.name, output.name
            );
            faults.add(at, format!("yields `{}`", output.name), message, remedy(port, output.name, spec, found, kinds));
            continue;
        }
        inputs.push(PlannedInput { port: *port, from: feeder });
    }
    for port in kind.inputs.iter().filter(|port| !port.optional && !named.contains(port.name)) {
        let message =
            format!("stage `{id}`: port `{}` of `{}` wants table `{}`", port.name, kind.kind, port.table.name);
        let help = remedy(port, "", spec, found, kinds);
        faults.add(stage.key_span(&[]), "not connected", message, help);
    }
    if named.is_empty() && !kind.inputs.is_empty() && kind.inputs.iter().all(|port| port.optional) {
        let ports = listed(kind.inputs.iter().map(|port| port.name));
        let message = format!("stage `{id}`: `{}` needs at least one of its inputs: {ports}", kind.kind);
        faults.add(stage.key_span(&[]), "not connected", message, None);
    }
    inputs.sort_by_key(|input| kind.inputs.iter().position(|port| port.name == input.port.name));
    inputs
}

/// Which stage yields the table that the port wants, or which kind makes it from what is there.
fn remedy(
    port: &Port,
    have: &str,
    spec: &PipelineSpec,
    found: &[Option<&StageKind>],
    kinds: &[StageKind],
) -> Option<String> {
    let wanted = port.table.name;
    let feeder = spec.stages.iter().zip(found).find(|(_, kind)| kind.is_some_and(|kind| kind.output.name == wanted));
    if let Some((stage, _)) = feeder {
        return Some(format!("`{}` yields `{wanted}`", stage.id));
    }
    let makes = |kind: &&StageKind| kind.output.name == wanted;
    let fits = |kind: &&StageKind| makes(kind) && kind.inputs.iter().any(|port| port.table.name == have);
    let kind = kinds.iter().find(fits).or_else(|| kinds.iter().find(makes))?;
    Some(format!("a stage of kind `{}` yields `{wanted}`", kind.kind))
}

/// Indices of stages that feed stage `at`, by the file's order; unknown names are left out.
fn feeders(spec: &PipelineSpec, found: &[Option<&StageKind>], at: usize) -> Vec<usize> {
    let stage = &spec.stages[at];
    let from = match found[at] {
        Some(kind) => wires(stage, kind).into_iter().map(|wire| wire.from).collect(),
        None => Vec::new(),
    };
    from.into_iter().filter_map(|from| spec.stages.iter().position(|other| other.id == from)).collect()
}

fn check_circles(spec: &PipelineSpec, found: &[Option<&StageKind>], faults: &mut Faults) {
    let mut free = vec![false; spec.stages.len()];
    let waits = |at: usize, free: &[bool]| feeders(spec, found, at).into_iter().find(|from| !free[*from]);
    while let Some(at) = (0..free.len()).find(|at| !free[*at] && waits(*at, &free).is_none()) {
        free[at] = true;
    }
    let Some(mut at) = (0..free.len()).find(|at| !free[*at]) else { return };
    // Whoever waits, waits for someone who waits: following that leads into the circle.
    let mut way = Vec::new();
    while !way.contains(&at) {
        way.push(at);
        at = waits(at, &free).expect("a stage that is not free waits for one that is not free either");
    }
    let start = way.iter().position(|seen| *seen == at).expect("the walk ended at a stage that it had seen");
    let mut circle: Vec<usize> = way[start..].iter().rev().copied().collect();
    let first = circle.iter().position(|at| Some(at) == circle.iter().min()).expect("a circle has stages");
    circle.rotate_left(first);
    let ids = circle.iter().chain(circle.first()).map(|at| spec.stages[*at].id.as_str());
    let message = format!("stages feed each other in a circle: {}", ids.collect::<Vec<_>>().join(" -> "));
    faults.add(spec.stages[circle[0]].key_span(&[]), "begins here", message, None);
}

fn check_transient(spec: &PipelineSpec, stages: &[PlannedStage], faults: &mut Faults) {
    for (at, (stage, said)) in stages.iter().zip(&spec.stages).enumerate() {
        if stage.shards == Some(0) {
            faults.add(said.key_span(&[]), "here", format!("stage `{}` asks for 0 shards", stage.id), None);
        }
        if !stage.transient {
            continue;
        }
        let taken = stages.iter().any(|other| other.inputs.iter().any(|input| input.from == at));
        let row_ports = stage.inputs.iter().filter(|input| input.port.take == Take::Row).count();
        let why = if stage.is_source() {
            "it lists files, and they have to be remembered"
        } else if row_ports != 1 || stage.inputs.len() != 1 {
            "it has to take exactly one table, row by row"
        } else if stage.needs == Needs::Device {
            "it computes on the device, which is worth keeping"
        } else if stage.placement.is_some() {
            "it publishes files"
        } else if !taken {
            "no stage takes what it yields"
        } else {
            continue;
        };
        let help = "leave out `store = \"transient\"`".to_owned();
        let message = format!("stage `{}` cannot be transient: {why}", stage.id);
        faults.add(said.value_span(&["store".to_owned()]), "here", message, Some(help));
    }
}

/// Whose result is a checkpoint of its whole tables may keep it or go on from it; to others the words mean nothing.
fn check_on_change(spec: &PipelineSpec, stages: &[PlannedStage], faults: &mut Faults) {
    for (stage, said) in stages.iter().zip(&spec.stages) {
        let trains = stage.stage.trains();
        assert!(
            !trains || (stage.row_input().is_none() && stage.shards.is_none()),
            "kind `{}` trains, so it takes whole tables that are not cut into shards",
            stage.kind.kind
        );
        if trains || stage.on_change == OnChange::Retrain {
            continue;
        }
        let (id, kind, word) = (&stage.id, stage.kind.kind, stage.on_change.as_str());
        let message = format!("stage `{id}`: `on_change = \"{word}\"` is for stages that train, and `{kind}` does not");
        let help = "leave it out: the stage computes what its changes affect".to_owned();
        faults.add(said.value_span(&["on_change".to_owned()]), "here", message, Some(help));
    }
}

/// Two stages that write to one folder would remove each other's files.
fn check_placements(spec: &PipelineSpec, stages: &[PlannedStage], faults: &mut Faults) {
    let placed = |stage: &PlannedStage| stage.placement.as_ref().map(|placement| placement.path.components().collect());
    let paths: Vec<Option<PathBuf>> = stages.iter().map(placed).collect();
    for (at, path) in paths.iter().enumerate() {
        let Some(path) = path else { continue };
        if let Some(before) = paths[..at].iter().position(|other| other.as_ref() == Some(path)) {
            let (first, second) = (&stages[before].id, &stages[at].id);
            let message = format!("stages `{first}` and `{second}` both write to `{}`", path.display());
            let help = "give each its own folder".to_owned();
            faults.add(spec.stages[at].key_span(&[]), "the second", message, Some(help));
        }
    }
}

/// Feeders first; among free stages, the file's order.
fn order(stages: &[PlannedStage]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(stages.len());
    while order.len() < stages.len() {
        let ready =
            |at: &usize| !order.contains(at) && stages[*at].inputs.iter().all(|input| order.contains(&input.from));
        order.push((0..stages.len()).find(ready).expect("a plan without circles has a next stage"));
    }
    order
}

#[cfg(test)]
mod tests;
