//! `vw2-pipe devices`: where stages can compute on this machine, and how fast.

use std::process::ExitCode;

use miette::IntoDiagnostic;
use serde_json::json;
use vw2_kernels::device::{self, Peak, Portrait};

use crate::cli::DevicesArgs;
use crate::text;

pub(crate) fn devices(args: &DevicesArgs) -> miette::Result<ExitCode> {
    let mut found = Vec::new();
    for name in device::available() {
        let device = device::parse(&name).into_diagnostic()?;
        found.push((name, device::portrait(&device), device::peak(&device)));
    }
    let absent = device::absent();
    text::print(if args.json { as_json(&found, &absent) } else { as_text(&found, &absent) })?;
    Ok(ExitCode::SUCCESS)
}

type Found = (String, Portrait, Peak);

fn as_json(found: &[Found], absent: &[(&str, String)]) -> String {
    let devices = found.iter().map(|(name, Portrait { title, memory_bytes }, peak)| {
        json!({
            "device": name, "title": title, "memory_bytes": memory_bytes, "f32_gflops": peak.f32_gflops,
            "bf16_gflops": peak.bf16_gflops, "gbytes_per_second": peak.gbytes,
        })
    });
    let absent = absent.iter().map(|(family, reason)| json!({ "family": family, "reason": reason }));
    json!({ "devices": devices.collect::<Vec<_>>(), "absent": absent.collect::<Vec<_>>() }).to_string()
}

fn as_text(found: &[Found], absent: &[(&str, String)]) -> String {
    let head = ["device", "what", "memory", "f32 GFLOP/s", "bf16 GFLOP/s", "GB/s"].map(str::to_owned);
    let rate = |rate: f64| format!("{rate:.0}");
    let lines = found.iter().map(|(name, portrait, peak)| {
        [
            name.clone(),
            portrait.title.clone(),
            portrait.memory_bytes.map_or("-".to_owned(), text::size),
            rate(peak.f32_gflops),
            peak.bf16_gflops.map_or("-".to_owned(), rate),
            format!("{:.1}", peak.gbytes),
        ]
    });
    let mut told = text::table(&std::iter::once(head).chain(lines).collect::<Vec<_>>());
    for (family, reason) in absent {
        told += &format!("\nno {family}: {reason}");
    }
    told
}
