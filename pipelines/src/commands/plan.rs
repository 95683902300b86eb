//! `vw2-pipe plan FILE`: what a pipeline does. Opens no device, no video and no store.

use std::process::ExitCode;

use crate::cli::PlanArgs;
use crate::{loading, text};

pub(crate) fn plan(args: &PlanArgs) -> miette::Result<ExitCode> {
    let plan = loading::plan(&args.pipeline)?;
    text::print(plan.to_string().trim_end())?;
    // Talk, as another machine may have the files: the plan itself reads the same everywhere.
    for missing in loading::missing(&plan) {
        text::say(format_args!("missing: {missing}"));
    }
    Ok(ExitCode::SUCCESS)
}
