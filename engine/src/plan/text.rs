//! A plan as text: the same for the same TOML, so tests can hold it as a snapshot.

use std::fmt;

use super::{Plan, PlannedInput, PlannedStage};
use crate::spec::OnChange;
use crate::stage::Take;

/// One line a stage: id, kind, what feeds it (through which transient stages), and the params that the TOML states.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pipeline {}", self.name)?;
        let width = |text: fn(&PlannedStage) -> &str| self.stages.iter().map(|s| text(s).len()).max().unwrap_or(0);
        let (ids, kinds) = (width(|stage| &stage.id), width(|stage| stage.kind.kind));
        for stage in &self.stages {
            let mut parts = Vec::new();
            if !stage.inputs.is_empty() {
                let inputs: Vec<String> = stage.inputs.iter().map(|input| self.input_text(stage, input)).collect();
                parts.push(format!("<- {}", inputs.join(", ")));
            }
            if stage.transient {
                parts.push("transient".to_owned());
            }
            if stage.on_change != OnChange::Retrain {
                parts.push(format!("on_change = \"{}\"", stage.on_change.as_str()));
            }
            parts.extend(stage.params.iter().map(|(key, value)| format!("{key} = {value}")));
            let line = format!("{:ids$}  {:kinds$}  {}", stage.id, stage.kind.kind, parts.join("  "));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Plan {
    /// `frames: clips via frames`: the port (where there are several), the stored table, and the chain in between.
    fn input_text(&self, stage: &PlannedStage, input: &PlannedInput) -> String {
        let mut via = Vec::new();
        let mut from = &self.stages[input.from];
        while from.transient {
            via.insert(0, from.id.as_str());
            let feeder = from.row_input().expect("a transient stage has a row port");
            from = &self.stages[feeder.from];
        }
        let port = if stage.inputs.len() > 1 { format!("{}: ", input.port.name) } else { String::new() };
        let via = if via.is_empty() { String::new() } else { format!(" via {}", via.join(", ")) };
        let whole = if input.port.take == Take::Whole { " (whole)" } else { "" };
        format!("{port}{}{via}{whole}", from.id)
    }
}
