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

/// A file that a stage's parameters name and that is not there.
pub(crate) struct MissingFile {
    stage: String,
    path: PathBuf,
}

impl fmt::Display for MissingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MissingFile { stage, path } = self;
        write!(f, "stage `{stage}` wants `{}`; put it there, or set another path", path.display())
    }
}

/// All of them, in the plan's order.
pub(crate) fn missing_files(plan: &Plan) -> Vec<MissingFile> {
    let wanted = plan.stages.iter().flat_map(|stage| stage.files().into_iter().map(|path| (stage.id.clone(), path)));
    wanted.filter(|(_, path)| !path.is_file()).map(|(stage, path)| MissingFile { stage, path }).collect()
}
