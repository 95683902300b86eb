//! `report`: all that was measured to one table: Parquet, Markdown, and a page with small pictures.
//!
//! Evaluations give the figures of drawing. Where codes are connected: which of them are in use; with an AR model, how well
//! it foretells those of held-out videos, beside trivial predictors; with clips and recorded states, whether a linear map
//! finds true motion in them. A collapse is told as a warning.

mod figures;

mod page;

mod probe;

use std::sync::Arc;

use arrow::array::{Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use vw2_data::formats::{episodes, metrics};
use vw2_data::{Shard, Shards};
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::{
    Context, InputFile, Location, Needs, Operator, Output, Placement, Port, Stage, StageError, Table, Unit,
};

use crate::autoregressor::Autoregressor;
use crate::model_file::ModelFile;
use crate::scenes::Scenes;
use crate::tables;
use figures::{Drawing, Figure};

/// Means over all clips, and what the codes say.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// True motion, to see whether codes tell it; wants ports `codes` and `clips`.
    #[serde(default)]
    pub motion: Option<Motion>,
    /// One video in so many is held out from the baselines and the linear map, and is what they and the AR model are judged
    /// on: the split of `train-ar`.
    #[serde(default = "one_in")]
    pub one_in: u64,
    /// The folder that receives `table.md`, `report.html` and `figures.parquet`.
    pub path: Location,
}

/// Where true motion is recorded.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Motion {
    /// A line of JSON per video, with its `states` at each frame.
    pub file: InputFile,
    /// Which numbers of a state to look at, as the place of what moves.
    #[serde(default = "places")]
    pub states: Vec<usize>,
}

fn one_in() -> u64 {
    crate::train_ar::HELD_OUT_ONE_IN
}

fn places() -> Vec<usize> {
    vec![0, 1]
}

impl Stage for Report {
    const KIND: &'static str = "report";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "all evaluations, and what is known of codes, to one table";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[
        Port::whole("evaluations", &tables::EVALUATIONS),
        Port::whole("codes", &tables::CODES).optional(),
        Port::whole("clips", &tables::CLIPS).optional(),
        Port::whole("ar", &tables::CHECKPOINTS).optional(),
    ];
    const OUTPUT: &'static Table = &tables::SHARDS;

    fn check(&self) -> Result<(), String> {
        match (self.one_in, &self.motion) {
            (0 | 1, _) => Err(format!("`one_in` is {}; one video in 2 or more is held out", self.one_in)),
            (_, Some(motion)) if motion.states.is_empty() => Err("`motion.states` is empty".into()),
            _ => Ok(()),
        }
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.path.0.clone(), versioned: false })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let ar = ModelFile::new(ctx, None, "ar", Autoregressor::load)?;
        Ok(Box::new(Reporter { ar, params: self.clone(), ctx: ctx.clone() }))
    }
}

/// How many clips the page shows.
const PICTURES: usize = 8;
/// Figures at which codes are called collapsed: used ones of so many, and the gap in dB.
const USED_ONE_IN: f64 = 50.0;
const GAP_DB: f64 = 0.3;

struct Reporter {
    ar: ModelFile<Autoregressor>,
    params: Report,
    ctx: Context,
}

impl Operator for Reporter {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            self.report(unit, out)?;
        }
        Ok(())
    }
}

impl Reporter {
    fn report(&mut self, unit: &Unit, out: &mut Output) -> Result<(), StageError> {
        let Report { motion, one_in, .. } = &self.params;
        let evaluations = unit.table("evaluations").expect("the plan connects required ports");
        let Drawing { figures: mut all, pictures } = figures::drawing(evaluations, PICTURES)?;
        let clips = all.iter().filter(|figure| figure.name == "clips").map(|figure| figure.value).fold(0.0, f64::max);
        if let Some(codes) = unit.table("codes") {
            all.extend(figures::usage(codes)?);
            if unit.table("ar").is_some() {
                let (ar, device) = self.ar.get(unit)?;
                match Scenes::read(codes, *one_in)? {
                    Ok(scenes) => all.extend(figures::foretelling(&scenes, ar, device)?),
                    Err(reason) => tracing::warn!("{}: nothing is told of the AR model: {reason}", unit.id),
                }
            }
        }
        match (motion, unit.table("codes"), unit.table("clips")) {
            (None, ..) => {}
            (Some(motion), Some(codes), Some(clips)) => {
                let episodes = episodes::read(&motion.file.0)?;
                let found = figures::motion(codes, clips, &episodes, &motion.states, *one_in)?;
                if found.is_empty() {
                    tracing::warn!("{}: nothing is told of motion: no recorded video in both parts", unit.id);
                }
                all.extend(found);
            }
            _ => return Err("`motion` wants ports `codes` and `clips` connected".into()),
        }
        let warnings = warnings(&all);
        warnings.iter().for_each(|warning| tracing::warn!("{}: {warning}", unit.id));
        self.publish(unit, out, &all, &warnings, pictures, clips as u32)
    }

    fn publish(
        &self,
        unit: &Unit,
        out: &mut Output,
        all: &[Figure],
        warnings: &[String],
        pictures: Vec<(String, String)>,
        clips: u32,
    ) -> Result<(), StageError> {
        let blobs = &self.ctx.blobs;
        let place = |(id, hash): (String, String)| -> Result<((String, String), Hash), StageError> {
            let path = format!("pictures/{}.png", id.replace(['/', '#'], "_"));
            Ok(((id, path), hash.parse()?))
        };
        let (shown, hashes): (Vec<(String, String)>, Vec<Hash>) =
            pictures.into_iter().map(place).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let table = page::markdown(all, warnings);
        let blob = blobs.put(table.as_bytes())?;
        let mut files = vec![
            ("table.md".to_owned(), blob),
            ("report.html".to_owned(), blobs.put(page::html(all, warnings, &shown).as_bytes())?),
            ("figures.parquet".to_owned(), blobs.put(&metrics::batch_to_bytes(&batch(all))?)?),
        ];
        files.extend(shown.into_iter().zip(hashes).map(|((_, path), hash)| (path, hash)));
        let row = Shards::row(&Shard { clips, size_bytes: table.len() as u64, blob: blob.to_string() })?;
        out.push_with_files(unit, "", row, files);
        Ok(())
    }
}

/// What a user should know before going on with these codes.
fn warnings(all: &[Figure]) -> Vec<String> {
    let value = |name: &str| all.iter().find(|figure| figure.group == "codes" && figure.name == name).map(|f| f.value);
    let mut told = Vec::new();
    if let Some(gap) = value("shuffled_codes_gap_db").filter(|gap| *gap < GAP_DB) {
        told.push(format!(
            "the decoder draws as well with the codes of another clip (gap {gap:.2} dB): the codes say nothing"
        ));
    }
    if let (Some(used), Some(codebook), Some(codes)) = (value("codes_used"), value("codebook"), value("codes"))
        && used * USED_ONE_IN < codebook.min(codes)
    {
        told.push(format!("{used} of {codebook} codes are in use: the dLDM has collapsed"));
    }
    told
}

/// The figures as a table.
fn batch(all: &[Figure]) -> RecordBatch {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let fields = vec![text("group"), text("of"), text("figure"), Field::new("value", DataType::Float64, false)];
    let strings = |of: fn(&Figure) -> &str| Arc::new(StringArray::from_iter_values(all.iter().map(of)));
    let values = Float64Array::from_iter_values(all.iter().map(|figure| figure.value));
    let columns =
        vec![strings(|f| f.group) as _, strings(|f| &f.of) as _, strings(|f| f.name) as _, Arc::new(values) as _];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("each array was made of its field's type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collapse_is_a_warning() {
        let of = |used: f64, gap: f64| {
            let figure = |name, value| Figure { group: "codes", of: String::new(), name, value };
            warnings(&[
                figure("shuffled_codes_gap_db", gap),
                figure("codes", 4000.0),
                figure("codebook", 1000.0),
                figure("codes_used", used),
            ])
        };
        assert!(of(200.0, 2.0).is_empty());
        assert_eq!((of(9.0, 2.0).len(), of(200.0, 0.0).len(), of(1.0, 0.0).len()), (1, 1, 2));
        assert!(of(9.0, 2.0)[0].starts_with("9 of 1000 codes"));
    }
}
