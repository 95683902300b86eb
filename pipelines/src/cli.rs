//! What can be typed after `vw2-pipe`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use vw2_stages::STAGES;

/// Exit code of a run that ended, but with more quarantined units than `max_quarantined` allows.
pub(crate) const TOO_MANY_QUARANTINED: u8 = 1;
/// Exit code of `verify` where something is wrong.
pub(crate) const DAMAGED: u8 = 1;
/// Exit code where nothing could run: a wrong pipeline, a locked store, missing weights. clap uses it for usage, too.
pub(crate) const COULD_NOT_RUN: u8 = 2;
/// Exit code after Ctrl-C, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Raw video to latent-dynamics codes, a trained autoregressive model and rolled-out video.
///
/// A pipeline is a TOML file of stages. After any edit to data, parameters or weights, `run` computes only what the edit
/// affects.
#[derive(Debug, Parser)]
#[command(
    name = "vw2-pipe",
    version,
    after_help = "\
Examples:
  vw2-pipe run pipelines/full.toml        videos to codes, model and rollouts, on the shipped samples
  vw2-pipe plan pipelines/full.toml       what it would do; opens nothing
  vw2-pipe stages                         what a pipeline can be made of

Exit codes: 0 done, 1 done but too many units were quarantined (`verify`: something is wrong), 2 could not run,
130 interrupted.
VW2_LOG=debug writes a log to stderr."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Plan(PlanArgs),
    Stages(StagesArgs),
    Devices(DevicesArgs),
    Status(StatusArgs),
    Quarantine(QuarantineArgs),
    Gc(GcArgs),
    Verify(VerifyArgs),
    Show(ShowArgs),
    Convert(ConvertArgs),
}

/// Bring everything that a pipeline wants up to date
///
/// Units whose result the store holds are not computed again. Bad files are quarantined with their reason, and the rest
/// goes on. Ctrl-C finishes the units that are running; the same command goes on from there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe run pipelines/full.toml
  vw2-pipe run pipelines/full.toml --limit 3 --only codes
  vw2-pipe run pipelines/full.toml --set stage.ar.steps=50 --set runtime.memory=512MiB
  vw2-pipe run pipelines/full.toml --watch --only code_dataset
  vw2-pipe run pipelines/full.toml --json > report.json")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Take only the first N files of each source, in the order of their names
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Where to compute: auto, cpu, cuda:0, wgpu:0, or several: cuda:0,cuda:1 or cuda:*; overrides `runtime.device`
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Folder of the store; overrides `runtime.store`
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Timely workers that move the keys; overrides `runtime.workers`
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) workers: Option<usize>,
    /// Go on with what changes in the sources' folders, until Ctrl-C: files that come, change or go
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print exactly one JSON object to stdout at the end, instead of the summary table; with --watch, one after each change
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what a pipeline does, in order, or what a run would compute now and why
///
/// Without `--explain`, opens nothing. With it, the store is read and the sources' folders are listed; no device is opened
/// and nothing is written, so it works beside a run. `--limit`, `--store` and `--json` belong to it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe plan pipelines/full.toml
  vw2-pipe plan pipelines/full.toml --only codes      codes and what they need
  vw2-pipe plan pipelines/full.toml --set stage.clips.frames=33
  vw2-pipe plan pipelines/full.toml --explain --set stage.clips.frames=33      what that would cost, and why")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Say per stage what a run would take from the store, compute and retract, and why
    #[arg(long)]
    pub(crate) explain: bool,
    /// Take only the first N files of each source, in the order of their names
    #[arg(long, value_name = "N", value_parser = positive, requires = "explain")]
    pub(crate) limit: Option<usize>,
    /// Folder of the store; overrides `runtime.store`
    #[arg(long, value_name = "DIR", requires = "explain")]
    pub(crate) store: Option<PathBuf>,
    /// Print exactly one JSON object
    #[arg(long, requires = "explain")]
    pub(crate) json: bool,
}

/// List the stage kinds, or tell all about one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe stages               all kinds, in the order of the data's way
  vw2-pipe stages slice         its ports, its output table, an example with its parameters")]
pub(crate) struct StagesArgs {
    /// The stage kind
    #[arg(value_name = "KIND", value_parser = PossibleValuesParser::new(STAGES.iter().map(|kind| kind.kind)))]
    pub(crate) kind: Option<String>,
}

/// List the devices of this machine: memory, and the best rates that a second of trying shows
///
/// A device that is listed can be named by `--device`. `auto` takes the first that is no CPU and no software renderer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe devices
  vw2-pipe devices --json")]
pub(crate) struct DevicesArgs {
    /// Print exactly one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what a store holds: its size, last runs, published rows, quarantined units with their reasons
///
/// Works beside a run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe status
  vw2-pipe status --store /data/vw2-store --json")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// List the units that were rejected or failed, or have them tried again
///
/// A unit whose data is bad is not tried again until its content changes. `--retry` forgets that, for use after an update
/// of the program or of ffmpeg. Units that failed for another reason are tried by every run anyway.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe quarantine
  vw2-pipe quarantine clips                        those of one stage
  vw2-pipe quarantine --retry                      the next run tries all of them again
  vw2-pipe quarantine --retry talk_07.mp4 --json   one unit")]
pub(crate) struct QuarantineArgs {
    /// Only units of these stages, or these units, by id or path
    #[arg(value_name = "STAGE|UNIT")]
    pub(crate) which: Vec<String>,
    /// Only units of this pipeline
    #[arg(long, value_name = "NAME")]
    pub(crate) pipeline: Option<String>,
    /// Forget what is known against the listed units, so that the next run tries them again
    #[arg(long)]
    pub(crate) retry: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Clear away what nothing needs: results of older data and parameters, files that nothing names
///
/// Stays: what pipelines publish now; what the last N finished runs computed or took back, so that as many edits can be
/// undone without computing anything; work of the last 30 days that no run has finished yet; verdicts on units in
/// quarantine. A run after it executes nothing that it would not have executed before. Files outside the store, with
/// older versions of an export, are never touched.
///
/// `--forget` drops a pipeline: its published rows, quarantine and runs, and all results that no other pipeline needs. What
/// it has exported stays where it is, and no run restores, replaces or removes it any more; delete these folders by hand.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe gc --dry-run           what it would free
  vw2-pipe gc
  vw2-pipe gc --keep-runs 0       only what is published now stays
  vw2-pipe gc --forget old        without what the pipeline `old` has left here")]
pub(crate) struct GcArgs {
    /// Say what would go, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Finished runs, of all pipelines, whose results stay
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) keep_runs: usize,
    /// Drop this pipeline from the store, by the name in its file; may be repeated. Files outside the store stay
    #[arg(long, value_name = "PIPELINE")]
    pub(crate) forget: Vec<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Check a store: every name leads to the bytes that it stands for, and a sample comes out the same once more
///
/// Reads all blobs, or a sample of them, the whole manifest, and files outside the store that were touched. With a pipeline's
/// FILE, it also computes a sample of the units that a run would take from the store: from their inputs, beside the store,
/// which stays as it is. Exit code 1 where anything is wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe verify
  vw2-pipe verify --sample 1000             reads that many blobs, drawn at random
  vw2-pipe verify --sample 1000 --seed 7    the same ones again
  vw2-pipe verify pipelines/full.toml --sample 20 --only codes      also computes 20 units again and compares bytes
  vw2-pipe verify --repair                  the next run computes again what is damaged")]
pub(crate) struct VerifyArgs {
    /// Compute a sample of this pipeline's units again
    #[arg(value_name = "FILE", requires = "sample")]
    pub(crate) file: Option<PathBuf>,
    /// Read only so many blobs, and compute so many units
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) sample: Option<usize>,
    /// What a sample has; without it, another one each time
    #[arg(long, value_name = "SEED", requires = "sample")]
    pub(crate) seed: Option<u64>,
    /// Override a value of FILE, as `run` does; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "file")]
    pub(crate) set: Vec<String>,
    /// Units of this stage of FILE and of what it needs, no others
    #[arg(long, value_name = "STAGE", requires = "file")]
    pub(crate) only: Option<String>,
    /// Move damaged blobs into the store's folder `damaged` and forget damaged rows, so that the next run computes them
    #[arg(long)]
    pub(crate) repair: bool,
    /// Folder of the store; without it, that of FILE, or .vw2
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print exactly one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which store, and how to answer.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Folder of the store
    #[arg(long = "store", value_name = "DIR", default_value = ".vw2")]
    pub(crate) dir: PathBuf,
    /// Print exactly one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show where a published row comes from, or what a file holds
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe show code ep_0007.mp4#1
  vw2-pipe show weights data/samples/weights/dldm-tiny.safetensors")]
pub(crate) struct ShowArgs {
    #[command(subcommand)]
    pub(crate) what: ShowCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShowCommand {
    Clip(ShowClipArgs),
    Code(ShowCodeArgs),
    Weights(ShowWeightsArgs),
}

/// A clip's file and frames, and the stages that lead to it, with their parameters
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe show clip ep_0007.mp4#1
  vw2-pipe show clip ep_0007.mp4#1 --json")]
pub(crate) struct ShowClipArgs {
    #[command(flatten)]
    pub(crate) row: ShowRowArgs,
}

/// A clip's codes, and where they come from: file, frames, the stages that lead to them, parameters and weights
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe show code ep_0007.mp4#1
  vw2-pipe show code ep_0007.mp4#1 --json")]
pub(crate) struct ShowCodeArgs {
    #[command(flatten)]
    pub(crate) row: ShowRowArgs,
}

/// Which published row.
#[derive(Debug, Args)]
pub(crate) struct ShowRowArgs {
    /// The row's id, as the export has it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Names, shapes and types of a weights file, and which model it fits; reads no tensor
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe show weights data/samples/weights/dldm-tiny.safetensors
  vw2-pipe show weights VideoWorld2_dLDM_DiT.pth --all      every tensor on a line of its own
  vw2-pipe show weights tokenizer.pth --json")]
pub(crate) struct ShowWeightsArgs {
    /// A safetensors, .pt or .pth file; pickle is not executed
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// List every tensor, instead of one line for names that differ in numbers only
    #[arg(long)]
    pub(crate) all: bool,
    /// Print exactly one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Copy a checkpoint into a safetensors file, or into a .pt file, tensor by tensor
///
/// A safetensors copy carries the model's configuration, so that stages load it without guessing; a .pt file, which
/// `torch.load` opens as a dictionary of tensors, has no place for it. Equal content gives equal bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vw2-pipe convert tokenizer.pth vae.safetensors
  vw2-pipe convert VideoWorld2_dLDM_DiT.pth dit.safetensors --prefix net. --dtype bf16
  vw2-pipe convert out/dldm/dldm.safetensors VideoWorld2_dLDM_VAE.pt --under network    as upstream loads it
  vw2-pipe convert data/samples/weights/vae-tiny.safetensors vae-f32.safetensors --dtype f32 --force")]
pub(crate) struct ConvertArgs {
    /// A safetensors, .pt or .pth file; pickle is not executed
    #[arg(value_name = "IN")]
    pub(crate) from: PathBuf,
    /// The file to write: for torch where it ends in .pt or .pth, else safetensors
    #[arg(value_name = "OUT")]
    pub(crate) to: PathBuf,
    /// Take only names below this one, and take it off
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Put all names of the copy below this one
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) under: String,
    /// Take averaged weights, which some trainers keep as `ema.network-…`, in place of those they are averages of
    #[arg(long)]
    pub(crate) ema: bool,
    /// Type to write floats in; integers keep theirs
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    pub(crate) dtype: FloatType,
    /// Replace OUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatType {
    Keep,
    F32,
    F16,
    Bf16,
}

/// Which pipeline, and what to change in it for this once.
#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {
    /// The pipeline's TOML file; paths in it are relative to the working directory
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Override a value that the file has: params.x, runtime.x or stage.<id>.x; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// This stage and what it needs, nothing else
    #[arg(long, value_name = "STAGE")]
    pub(crate) only: Option<String>,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("wants a whole number from 1 on".to_owned()),
        Ok(count) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_in_the_readme_parses() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
        let commands: Vec<Vec<&str>> = code_lines(&readme).filter_map(arguments).collect();
        assert!(!commands.is_empty(), "the README shows how to run a pipeline");
        for words in commands {
            let parsed = Cli::try_parse_from(std::iter::once("vw2-pipe").chain(words.iter().copied()));
            if let Err(error) = parsed {
                let helps = matches!(
                    error.kind(),
                    clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
                );
                assert!(helps, "README: `vw2-pipe {}` does not parse:\n{error}", words.join(" "));
            }
        }
    }

    #[test]
    fn readme_commands_are_found_with_prompts_comments_and_variables() {
        let cases: &[(&str, Option<&[&str]>)] = &[
            ("cargo run -- run a.toml   # minutes", Some(&["run", "a.toml"])),
            ("$ vw2-pipe status", Some(&["status"])),
            ("VW2_LOG=debug vw2-pipe plan a.toml | head", Some(&["plan", "a.toml"])),
            ("target/debug/vw2-pipe stages > x", Some(&["stages"])),
            ("cargo run -p other -- run", None),
            ("ls vw2-pipe", None),
        ];
        for (line, wanted) in cases {
            assert_eq!(arguments(line).as_deref(), *wanted, "{line}");
        }
    }

    /// Lines inside fenced code blocks and of indented code.
    fn code_lines(markdown: &str) -> impl Iterator<Item = &str> {
        let mut fenced = false;
        markdown.lines().filter_map(move |line| {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                return None;
            }
            (fenced || line.starts_with("    ")).then(|| line.trim())
        })
    }

    /// The words after `vw2-pipe` or `cargo run --` of a shell line, up to a comment, pipe or redirection.
    fn arguments(line: &str) -> Option<Vec<&str>> {
        let mut words = line.split_whitespace().skip_while(|w| *w == "$" || w.contains('=')).peekable();
        let program = words.next()?;
        if program == "cargo" {
            (words.next()? == "run").then_some(())?;
            let words: Vec<&str> = words.collect();
            let dashes = words.iter().position(|w| *w == "--")?;
            let plain = words[..dashes]
                .iter()
                .all(|w| matches!(*w, "-q" | "--quiet" | "--release" | "--features" | "wgpu" | "cuda"));
            return plain.then(|| until_shell_syntax(words[dashes + 1..].iter().copied()));
        }
        (program.rsplit('/').next() == Some("vw2-pipe")).then(|| until_shell_syntax(words))
    }

    fn until_shell_syntax<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        words.take_while(|w| !w.starts_with(['#', '|', '>', '&', ';', '2'])).collect()
    }
}
