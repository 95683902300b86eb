//! `vw2-pipe convert IN OUT`: a checkpoint as a safetensors or .pt file. OUT appears when it is complete, or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use miette::{IntoDiagnostic, WrapErr, miette};
use vw2_models::weights::{Conversion, Format, Lost, Renaming, SaveType, Weights};

use crate::cli::{self, ConvertArgs, FloatType};
use crate::text;

pub(crate) fn convert(args: &ConvertArgs) -> miette::Result<ExitCode> {
    let to = &args.to;
    if to.exists() && !args.force {
        return Err(miette!("`{}` exists; `--force` replaces it", to.display()));
    }
    let weights = Weights::open(&args.from).map_err(|error| miette!("{error}"))?;
    let renaming = Renaming { prefix: segments(&args.prefix), under: segments(&args.under), averages: args.ema };
    let format = Format::of(to);
    let conversion = Conversion::new(&weights, &renaming, float_type(args.dtype), format);
    let conversion = conversion.map_err(|error| miette!("{error}"))?;
    let lost = write(&conversion, to)?;
    for Lost { name, count } in &lost {
        text::say(format_args!(
            "warning: `{name}`: {count} of its values are too large for the type and became infinite"
        ));
    }
    let config = match (weights.metadata().contains_key("config"), conversion.metadata().contains_key("config")) {
        _ if format == Format::Torch => "",
        (true, _) => ", with its configuration",
        (false, true) => ", with the configuration of the preset that it fits",
        (false, false) => ", without configuration",
    };
    let (count, size) = (conversion.tensor_count(), text::size(conversion.size_bytes()));
    text::print(format_args!("{}: {count} tensors, {size}{config}", to.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// A prefix ends where a name's segment ends: `net` means `net.`, not `net_ctrl.`, too.
fn segments(given: &str) -> String {
    if given.is_empty() || given.ends_with('.') { given.to_owned() } else { format!("{given}.") }
}

fn float_type(given: FloatType) -> Option<SaveType> {
    match given {
        FloatType::Keep => None,
        FloatType::F32 => Some(SaveType::F32),
        FloatType::F16 => Some(SaveType::F16),
        FloatType::Bf16 => Some(SaveType::Bf16),
    }
}

/// Writes beside `to`, and renames.
fn write(conversion: &Conversion<'_>, to: &Path) -> miette::Result<Vec<Lost>> {
    let failed = || format!("cannot write `{}`", to.display());
    let part = Part::beside(to);
    remove_on_ctrl_c(part.0.clone())?;
    let mut file = File::create(&part.0).into_diagnostic().wrap_err_with(failed)?;
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta:>4}");
    let style = style.expect("the template is a constant whose keys indicatif knows");
    // Draws on a terminal only.
    let bar = ProgressBar::new(conversion.size_bytes()).with_style(style);
    let lost = conversion.write(&mut file, to, |written| bar.set_position(written));
    bar.finish_and_clear();
    let lost = lost.map_err(|error| miette!("{error}"))?;
    file.sync_all().and_then(|()| fs::rename(&part.0, to)).into_diagnostic().wrap_err_with(failed)?;
    Ok(lost)
}

/// A file that is gone when this is dropped, unless it was renamed.
struct Part(PathBuf);

impl Part {
    fn beside(path: &Path) -> Part {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Part(path.with_file_name(format!(".{name}.{}.part", std::process::id())))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn remove_on_ctrl_c(part: PathBuf) -> miette::Result<()> {
    let handler = move || {
        let _ = fs::remove_file(&part);
        std::process::exit(i32::from(cli::INTERRUPTED));
    };
    ctrlc::set_handler(handler).into_diagnostic().wrap_err("cannot listen for Ctrl-C")
}
