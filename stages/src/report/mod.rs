//! `report`: all evaluations to one Markdown table, a line per way of drawing.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use vw2_data::{Evaluation, Evaluations, Shard, Shards};
use vw2_engine::stage::{Context, Location, Operator, Output, Placement, Port, Rows, Stage, StageError, Table, Unit};
use vw2_engine::store::Blobs;

use crate::tables;

/// Means over all clips.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The folder that receives `table.md`.
    pub path: Location,
}

impl Stage for Report {
    const KIND: &'static str = "report";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "all evaluations to one table in Markdown";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::whole("evaluations", &tables::EVALUATIONS)];
    const OUTPUT: &'static Table = &tables::SHARDS;

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Box::new(Reporter { blobs: ctx.blobs.clone() }))
    }
}

struct Reporter {
    blobs: Blobs,
}

impl Operator for Reporter {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let evaluations = read(unit.table("evaluations").expect("the plan connects required ports"))?;
            let table = markdown(&evaluations);
            let blob = self.blobs.put(table.as_bytes())?;
            let clips = evaluations.values().map(Vec::len).max().unwrap_or(0) as u32;
            let row = Shards::row(&Shard { clips, size_bytes: table.len() as u64, blob: blob.to_string() })?;
            out.push_with_files(unit, "", row, vec![("table.md".to_owned(), blob)]);
        }
        Ok(())
    }
}

/// The evaluations of each method.
fn read(table: &dyn Rows) -> Result<BTreeMap<String, Vec<Evaluation>>, StageError> {
    let mut by_method: BTreeMap<String, Vec<Evaluation>> = BTreeMap::new();
    for index in 0..table.len() {
        let row = table.row(index)?;
        let evaluation = Evaluations::view(&row)?.evaluation(0);
        by_method.entry(evaluation.method.clone()).or_default().push(evaluation);
    }
    Ok(by_method)
}

/// How each method is called in the table, in its order.
const METHODS: [(&str, &str); 3] =
    [("repeat", "first frame repeated"), ("coarse", "dLDM decoder"), ("diffusion", "DiT after it")];

fn markdown(evaluations: &BTreeMap<String, Vec<Evaluation>>) -> String {
    let mut text = String::from(
        "| drawn by | clips | PSNR (dB) | SSIM | sharpness (truth = 1) |\n| --- | --- | --- | --- | --- |\n",
    );
    for (method, name) in METHODS {
        let Some(of_method) = evaluations.get(method) else { continue };
        let mean = |of: fn(&Evaluation) -> f32| {
            of_method.iter().map(|evaluation| f64::from(of(evaluation))).sum::<f64>() / of_method.len() as f64
        };
        let (psnr, ssim, sharpness) = (mean(|e| e.psnr_db), mean(|e| e.ssim), mean(|e| e.sharpness));
        let line = writeln!(text, "| {name} | {} | {psnr:.2} | {ssim:.3} | {sharpness:.2} |", of_method.len());
        line.expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_the_means_of_a_method() {
        let evaluation = |psnr_db| Evaluation { method: "coarse".into(), psnr_db, ssim: 0.5, sharpness: 0.25 };
        let table = markdown(&BTreeMap::from([("coarse".into(), vec![evaluation(20.0), evaluation(21.0)])]));
        assert!(table.ends_with("| dLDM decoder | 2 | 20.50 | 0.500 | 0.25 |\n"), "{table}");
        assert_eq!(table.lines().count(), 3);
    }
}
