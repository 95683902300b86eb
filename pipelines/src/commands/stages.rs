//! `vw2-pipe stages [KIND]`: what a pipeline can be made of. All of it comes from the stage table.

use std::fmt::Write;
use std::process::ExitCode;

use vw2_engine::stage::{Port, StageKind, Table, Take};
use vw2_stages::STAGES;

use crate::cli::StagesArgs;
use crate::text;

pub(crate) fn stages(args: &StagesArgs) -> miette::Result<ExitCode> {
    let text = match &args.kind {
        None => overview(),
        // clap lets only names of the table through.
        Some(name) => STAGES.iter().filter(|kind| kind.kind == name).map(portrait).collect(),
    };
    text::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// All kinds, in the order of the data's way.
fn overview() -> String {
    let head = ["kind", "takes", "yields", "what it does"].map(str::to_owned);
    let line = |kind: &StageKind| {
        let takes: Vec<String> = kind.inputs.iter().map(short).collect();
        let takes = if takes.is_empty() { "files".to_owned() } else { takes.join(", ") };
        [kind.kind.to_owned(), takes, kind.output.name.to_owned(), kind.about.to_owned()]
    };
    let lines: Vec<[String; 4]> = std::iter::once(head).chain(STAGES.iter().map(line)).collect();
    format!("{}\n\n`vw2-pipe stages KIND` shows ports, columns and an example.", text::table(&lines))
}

fn short(port: &Port) -> String {
    match port.optional {
        true => format!("[{}]", port.name),
        false => port.name.to_owned(),
    }
}

/// All about one kind: ports, output columns, parameters by example.
fn portrait(kind: &StageKind) -> String {
    let mut text = format!("{}: {} (version {})\n\ntakes\n", kind.kind, kind.about, kind.version);
    if kind.inputs.is_empty() {
        text += "  files, found on disk\n";
    }
    for port in kind.inputs {
        let take = match port.take {
            Take::Row => "row by row",
            Take::Whole => "the whole table",
        };
        let optional = if port.optional { "; may be left out" } else { "" };
        let _ = writeln!(text, "  {}: table {}, {take}{optional}", port.name, port.table.name);
    }
    let _ = writeln!(text, "\nyields table {}\n{}", kind.output.name, columns(kind.output));
    let _ = write!(text, "\nexample\n{}", indented(kind.example.trim_end()));
    text
}

/// A line for each column: its name, type, and whether it may be empty.
fn columns(table: &Table) -> String {
    let schema = (table.schema)();
    let lines: Vec<[String; 3]> = schema
        .fields()
        .iter()
        .map(|field| {
            let null = if field.is_nullable() { "may be null" } else { "" };
            [format!("  {}", field.name()), field.data_type().to_string(), null.to_owned()]
        })
        .collect();
    text::table(&lines)
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
