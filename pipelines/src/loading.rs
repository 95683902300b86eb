//! From the command line to a plan: file, overrides, stage table.

use std::fmt;
use std::path::PathBuf;

use vw2_engine::plan::{self, Plan};
use vw2_engine::spec::PipelineSpec;
use vw2_stages::STAGES;

use crate::cli::PipelineArgs;

/// Reads and plans; an error shows all faults of the file at once, each at its place.
pub(crate) fn plan(args: &PipelineArgs) -> miette::Result<Plan> {
    let spec = PipelineSpec::load(&args.file, &args.set)?;
    let plan = plan::plan(&spec, STAGES)?;
    match &args.only {
        Some(stage) => Ok(plan.only(stage)?),
        None => Ok(plan),
    }
}

/// A file or folder that stages' parameters name and that is not there.
pub(crate) struct Missing {
    path: PathBuf,
    stages: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.stages.len() == 1 { "stage" } else { "stages" };
        let stages = self.stages.iter().map(|stage| format!("`{stage}`")).collect::<Vec<_>>().join(", ");
        write!(f, "`{}`, for {word} {stages}; put it there, or set another path", self.path.display())
    }
}

/// All of them, each once, in the plan's order.
pub(crate) fn missing(plan: &Plan) -> Vec<Missing> {
    let mut missing: Vec<Missing> = Vec::new();
    for stage in &plan.stages {
        let root = stage.params.get("root").and_then(|root| root.as_str()).filter(|_| stage.is_source());
        let folder = root.map(PathBuf::from).filter(|root| !root.exists());
        for path in folder.into_iter().chain(stage.files().into_iter().filter(|path| !path.is_file())) {
            match missing.iter_mut().find(|known| known.path == path) {
                Some(known) => known.stages.push(stage.id.clone()),
                None => missing.push(Missing { path, stages: vec![stage.id.clone()] }),
            }
        }
    }
    missing
}
