//! `kernels/benches/COMPILED.md`: what each kernel takes of a GPU, once compiled. `VW2_REFRESH=1` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use vw2_kernels::KERNELS;

use crate::nvrtc::Used;
use crate::recorded::{ARCHITECTURES, Source};

/// All variants of one function for one float type: the most that any of them takes, per architecture.
#[derive(Default)]
pub(crate) struct Line {
    variants: [usize; ARCHITECTURES.len()],
    most: [Used; ARCHITECTURES.len()],
}

impl Line {
    pub(crate) fn add(&mut self, architecture: usize, source: &Source, used: Used) {
        self.variants[architecture] += 1;
        let most = &mut self.most[architecture];
        most.registers = most.registers.max(used.registers);
        most.spilled_bytes = most.spilled_bytes.max(used.spilled_bytes);
        most.shared_bytes = most.shared_bytes.max(used.shared_bytes + source.shared_bytes);
    }

    pub(crate) fn spills(&self) -> bool {
        self.most.iter().any(|used| used.spilled_bytes > 0)
    }
}

/// Fails where the file says something else.
pub(crate) fn check(version: &str, lines: &BTreeMap<(usize, String, String), Line>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/COMPILED.md");
    let text = render(version, lines);
    if std::env::var_os("VW2_REFRESH").is_some() {
        std::fs::write(&file, &text).expect("the table can be written");
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == text,
        "{} is stale; VW2_REFRESH=1 with this test writes it anew. It would be:\n{text}",
        file.display()
    );
}

fn render(version: &str, lines: &BTreeMap<(usize, String, String), Line>) -> String {
    let mut text = format!(
        "# What the kernels take of a GPU\n\n\
         Every cube kernel of the table, in every variant that its cases need and every float type that it takes, generated\n\
         as CUDA C++ for an A100 and for an H100 and compiled by NVRTC {version}. Each line has the most that any variant\n\
         takes: registers of a thread, bytes of shared memory of a block, bytes spilled because registers ran out.\n\n\
         `VW2_REFRESH=1 VW2_NVRTC=… cargo test -p vw2-kernels --features wgpu,cuda --test cuda` writes this file.\n\n\
         | kernel | function | floats | variants |"
    );
    for architecture in ARCHITECTURES {
        let _ = write!(text, " {} registers | shared | spilled |", architecture.target);
    }
    text += "\n| --- | --- | --- | ---: |";
    text += &" ---: | ---: | ---: |".repeat(ARCHITECTURES.len());
    text += "\n";
    for ((row, function, dtype), line) in lines {
        let variants = match line.variants {
            [one, other] if one == other => one.to_string(),
            [one, other] => format!("{one} and {other}"),
        };
        let _ = write!(text, "| {} | `{function}` | {dtype} | {variants} |", KERNELS[*row].name);
        for used in &line.most {
            let _ = write!(text, " {} | {} | {} |", used.registers, used.shared_bytes, used.spilled_bytes);
        }
        text += "\n";
    }
    text
}
