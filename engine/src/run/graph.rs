//! The plan as the runtime sees it: transient stages fused away, stored stages in groups.
//!
//! A group is what one `derive` operator serves. Usually that is one stored stage. Stored stages that read the same
//! stored table through the same transient stage share a group, so that a missed unit is decoded once for all of them.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use crate::derive::Item;
use crate::fingerprint::{Fingerprint, Hash};
use crate::plan::{Plan, PlannedStage};
use crate::pool::{Progress, StageCounters};
use crate::spec::OnChange;
use crate::stage::{AnyStage, Needs};
use crate::store::MemoRow;

pub(crate) struct Graph {
    /// In the plan's order; all indices below count in it.
    pub(crate) stages: Vec<RunStage>,
    pub(crate) groups: Vec<Group>,
}

/// One stage with what the runtime wants to know at hand.
pub(crate) struct RunStage {
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) stage: Arc<dyn AnyStage>,
    pub(crate) fingerprint: Hash,
    pub(crate) needs: Needs,
    pub(crate) on_change: OnChange,
    pub(crate) batch: usize,
    pub(crate) max_wait: Duration,
    pub(crate) schema: SchemaRef,
    pub(crate) row_port: &'static str,
    pub(crate) counters: Arc<StageCounters>,
}

/// Stored stages that one `derive` operator serves.
pub(crate) struct Group {
    pub(crate) input: GroupInput,
    pub(crate) members: Vec<Member>,
    /// Tables that the only member takes as a whole.
    pub(crate) wholes: Vec<WholeInput>,
}

/// What the units of a group are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupInput {
    /// The files of this source stage.
    Files(usize),
    /// The rows of this stored stage.
    Rows(usize),
    /// Whole tables only, in so many shards.
    Shards(u32),
}

/// A stored stage in a group.
pub(crate) struct Member {
    pub(crate) stage: usize,
    /// Transient stages from the group's rows to this stage, in the data's order.
    pub(crate) chain: Vec<usize>,
    /// Those of the chain that no earlier member of the group has: where their units are counted.
    pub(crate) counted: Vec<usize>,
}

/// A table that a stage takes as a whole.
pub(crate) struct WholeInput {
    pub(crate) port: &'static str,
    /// The stored stage whose rows these are.
    pub(crate) base: usize,
    /// Transient stages that each row goes through when it is read.
    pub(crate) chain: Vec<usize>,
}

/// What a unit is about, as far as its key must say it.
struct Subject<'a> {
    /// Its own row or file.
    content: Option<&'a Hash>,
    /// The content of the file that its row goes back to, where a stage reads that.
    source: Option<Hash>,
    /// Its id, where the stage asks for it.
    name: Option<&'a str>,
}

impl Graph {
    pub(crate) fn new(plan: &Plan, fingerprints: &[Hash], progress: &Progress) -> Graph {
        let counters = progress.begin(plan.stages.iter().map(|stage| stage.id.as_str()));
        let mut groups: Vec<Group> = Vec::new();
        for (index, stage) in plan.stages.iter().enumerate() {
            if stage.transient {
                continue;
            }
            let wholes = stage.whole_inputs().map(|input| {
                let (base, chain) = stored_before(plan, input.from);
                WholeInput { port: input.port.name, base, chain }
            });
            let wholes: Vec<WholeInput> = wholes.collect();
            let (input, chain) = match stage.row_input() {
                None if wholes.is_empty() => (GroupInput::Files(index), Vec::new()),
                None => (GroupInput::Shards(stage.shards.unwrap_or(1)), Vec::new()),
                Some(row) => {
                    let (base, chain) = stored_before(plan, row.from);
                    (GroupInput::Rows(base), chain)
                }
            };
            let mut member = Member { stage: index, counted: chain.clone(), chain };
            let shares = |group: &&mut Group| {
                let first = group.members[0].chain.first();
                group.input == input && first.is_some() && first == member.chain.first() && group.wholes.is_empty()
            };
            match groups.iter_mut().find(shares) {
                Some(group) if wholes.is_empty() => {
                    let known = |stage: &usize| group.members.iter().any(|other| other.chain.contains(stage));
                    member.counted.retain(|stage| !known(stage));
                    group.members.push(member);
                }
                _ => groups.push(Group { input, members: vec![member], wholes }),
            }
        }
        let stages = plan.stages.iter().zip(fingerprints).zip(counters);
        let stages = stages.map(|((stage, fingerprint), counters)| run_stage(stage, *fingerprint, counters)).collect();
        Graph { stages, groups }
    }

    /// The key of one unit for each member of its group; `roots` are the tables that the group takes as a whole.
    pub(crate) fn keys(&self, group: usize, item: &Item, roots: &[Hash]) -> Vec<Hash> {
        let group = &self.groups[group];
        let content = (!matches!(group.input, GroupInput::Shards(_))).then_some(&item.content);
        let roots: Vec<(&str, Hash)> = group
            .wholes
            .iter()
            .zip(roots)
            .map(|(input, whole)| {
                let mut root = Fingerprint::new();
                root.hash(whole);
                for stage in &input.chain {
                    root.text("via").hash(&self.stages[*stage].fingerprint);
                }
                (input.port, root.finish())
            })
            .collect();
        let key = |member: &Member| {
            // A stage whose result depends on names answers for each copy by itself.
            let named = self.stages[member.stage].stage.named().then(|| self.id_after(&member.chain, &item.id));
            let reads = self.stages[member.stage].stage.reads_file() || self.read_files(&member.chain);
            let source = item.source.filter(|_| reads);
            self.key(member, &Subject { content, source, name: named.as_deref() }, &roots)
        };
        group.members.iter().map(key).collect()
    }

    /// The key of one unit of a member: everything that determines its rows. `roots` are the whole tables by port.
    fn key(&self, member: &Member, subject: &Subject<'_>, roots: &[(&str, Hash)]) -> Hash {
        let mut key = Fingerprint::new();
        key.text("unit").hash(&self.stages[member.stage].fingerprint);
        for stage in &member.chain {
            key.text("via").hash(&self.stages[*stage].fingerprint);
        }
        if let Some(content) = subject.content {
            key.text("row").hash(content);
        }
        if let Some(source) = &subject.source {
            key.text("file").hash(source);
        }
        if let Some(name) = subject.name {
            key.text("name").text(name);
        }
        for (port, root) in roots {
            key.text(port).hash(root);
        }
        key.finish()
    }

    /// Whether what the stage yields may depend on what it publishes now.
    pub(crate) fn has_history(&self, stage: usize) -> bool {
        self.stages[stage].on_change != OnChange::Retrain
    }

    /// Does one of these stages read the files that rows go back to?
    pub(crate) fn read_files(&self, chain: &[usize]) -> bool {
        chain.iter().any(|stage| self.stages[*stage].stage.reads_file())
    }

    /// The row that a member yields of this unit.
    pub(crate) fn row_of(&self, member: &Member, unit: &Item, row: &MemoRow) -> Item {
        let stage = &self.stages[member.stage].stage;
        // Most rows have no files, and those share one empty list.
        let files = if row.files.is_empty() { Arc::default() } else { Arc::from(row.files.as_slice()) };
        let id = Arc::from(stage.row_id(&self.id_after(&member.chain, &unit.id), &row.name));
        Item { id, content: row.content, source: unit.source, origin: unit.origin.clone(), files }
    }

    /// The id that a row has after these transient stages. They yield one row without a name of its own.
    pub(crate) fn id_after(&self, chain: &[usize], id: &str) -> Arc<str> {
        chain.iter().fold(Arc::from(id), |id, stage| Arc::from(self.stages[*stage].stage.row_id(&id, "")))
    }
}

/// The stored stage whose rows arrive from `stage`, and the transient ones that they come through.
fn stored_before(plan: &Plan, mut stage: usize) -> (usize, Vec<usize>) {
    let mut chain = Vec::new();
    while plan.stages[stage].transient {
        chain.insert(0, stage);
        stage = plan.stages[stage].row_input().expect("the plan gives a transient stage its row port").from;
    }
    (stage, chain)
}

fn run_stage(stage: &PlannedStage, fingerprint: Hash, counters: Arc<StageCounters>) -> RunStage {
    RunStage {
        id: stage.id.clone(),
        kind: stage.kind.kind,
        stage: stage.stage.clone(),
        fingerprint,
        needs: stage.needs,
        on_change: stage.on_change,
        batch: stage.batch.max(1),
        max_wait: stage.max_wait,
        schema: (stage.kind.output.schema)(),
        row_port: stage.row_input().map_or("", |input| input.port.name),
        counters,
    }
}
