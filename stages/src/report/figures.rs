//! The figures of a report: named numbers in groups, in the order in which they are told.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Device;
use vw2_data::formats::episodes::{self, Episode};
use vw2_data::{Clips, Codes, Evaluation, Evaluations};
use vw2_engine::stage::{Rows, StageError};
use vw2_models::ar::{Example, Minibatch};
use vw2_models::train::metrics::perplexity;

use super::probe::{Sample, r_squared};
use crate::autoregressor::Autoregressor;
use crate::baselines::Baselines;
use crate::export::split_id;
use crate::scenes::Scenes;
use crate::training::fold;

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// `drawing`, `codes`, `ar`, `motion`.
    pub(super) group: &'static str,
    /// What it is of: a way of drawing; empty where the group is of one thing.
    pub(super) of: String,
    pub(super) name: &'static str,
    pub(super) value: f64,
}

fn figure(group: &'static str, of: &str, name: &'static str, value: f64) -> Figure {
    Figure { group, of: of.to_owned(), name, value }
}

/// How the ways of drawing are called, in their order.
pub(super) const METHODS: [(&str, &str); 5] = [
    ("repeat", "first frame repeated"),
    ("coarse", "dLDM decoder"),
    ("shuffled", "dLDM decoder, codes of another clip"),
    ("rollout", "dLDM decoder, codes imagined by the AR model"),
    ("diffusion", "DiT after the dLDM decoder"),
];

/// The figures of drawing, and the first clips' pictures: a clip's id, and its picture's hash.
pub(super) struct Drawing {
    pub(super) figures: Vec<Figure>,
    pub(super) pictures: Vec<(String, String)>,
}

/// Means over all clips for each way of drawing.
pub(super) fn drawing(table: &dyn Rows, pictures: usize) -> Result<Drawing, StageError> {
    let mut by_method: BTreeMap<String, Vec<Evaluation>> = BTreeMap::new();
    let mut shown = Vec::new();
    for index in 0..table.len() {
        let row = table.row(index)?;
        let evaluation = Evaluations::view(&row)?.evaluation(0);
        if let Some(picture) = evaluation.picture.clone().filter(|_| shown.len() < pictures) {
            let id = table.id(index);
            shown.push((id.rsplit_once('/').map_or(id, |(clip, _)| clip).to_owned(), picture));
        }
        by_method.entry(evaluation.method.clone()).or_default().push(evaluation);
    }
    let mut figures = Vec::new();
    for (method, _) in METHODS {
        let Some(rows) = by_method.get(method) else { continue };
        let mean =
            |of: fn(&Evaluation) -> f32| rows.iter().map(|row| f64::from(of(row))).sum::<f64>() / rows.len() as f64;
        figures.push(figure("drawing", method, "clips", rows.len() as f64));
        figures.push(figure("drawing", method, "psnr_db", mean(|row| row.psnr_db)));
        figures.push(figure("drawing", method, "psnr_of_all_db", together(rows)));
        figures.push(figure("drawing", method, "ssim", mean(|row| row.ssim)));
        figures.push(figure("drawing", method, "sharpness", mean(|row| row.sharpness)));
    }
    let psnr = |method: &str| {
        figures.iter().find(|figure| figure.of == method && figure.name == "psnr_db").map(|figure| figure.value)
    };
    if let (Some(own), Some(shuffled)) = (psnr("coarse"), psnr("shuffled")) {
        figures.push(figure("codes", "", "shuffled_codes_gap_db", own - shuffled));
    }
    Ok(Drawing { figures, pictures: shown })
}

/// PSNR of the mean squared error over all clips, which are of one size. The mean of PSNRs favours who draws still clips
/// perfectly; this one favours who is never far off. Of several drawings of a clip, the table has the mean PSNR only.
fn together(rows: &[Evaluation]) -> f64 {
    let error = |row: &Evaluation| 10f64.powf(-f64::from(row.psnr_db) / 10.0);
    -10.0 * (rows.iter().map(error).sum::<f64>() / rows.len() as f64).log10()
}

/// Which codes are in use, over the whole table.
pub(super) fn usage(table: &dyn Rows) -> Result<Vec<Figure>, StageError> {
    let (mut all, mut codebook) = (Vec::new(), 0.0);
    for index in 0..table.len() {
        let row = table.row(index)?;
        let codes = Codes::view(&row)?.code(0);
        codebook = codes.levels.iter().map(|&level| f64::from(level)).product();
        all.extend(codes.codes.iter().map(|&code| u32::from(code)));
    }
    let used = all.iter().collect::<BTreeSet<_>>().len() as f64;
    Ok(vec![
        figure("codes", "", "codes", all.len() as f64),
        figure("codes", "", "codebook", codebook),
        figure("codes", "", "codes_used", used),
        figure("codes", "", "code_perplexity", perplexity(&all)),
    ])
}

/// How well the AR model foretells the codes of held-out videos.
pub(super) fn foretelling(scenes: &Scenes, ar: &Autoregressor, device: &Device) -> Result<Vec<Figure>, StageError> {
    let codebook = scenes.levels.iter().product::<u32>();
    let (mut nats, mut right, mut count) = (0.0, 0.0, 0.0);
    for scene in &scenes.held {
        let task = scenes.tasks.get(scene.task as usize).filter(|name| !name.is_empty() && !ar.tasks.is_empty());
        let task = ar.task_number(task.map(String::as_str))?;
        let example = Example { task, ..scene.example() };
        let judged = ar.model.judge(&Minibatch::new(&ar.model.config, &[example], device)?);
        for code in judged.iter().filter(|judged| !judged.end) {
            nats += code.nats;
            right += f64::from(u8::from(code.first));
            count += 1.0;
        }
    }
    let bits = |nats: f64| nats / std::f64::consts::LN_2;
    let baselines = Baselines::of(&scenes.train, &scenes.held, codebook as usize);
    let model = nats / count;
    Ok(vec![
        figure("ar", "", "held_out_videos", scenes.held.len() as f64),
        figure("ar", "", "bits_per_code", bits(model)),
        figure("ar", "", "bits_per_code_by_frequency", bits(baselines.unigram)),
        figure("ar", "", "bits_per_code_by_bigram", bits(baselines.bigram)),
        figure("ar", "", "below_the_better_percent", 100.0 * (1.0 - model / baselines.better())),
        figure("ar", "", "next_code_accuracy", right / count),
    ])
}

/// Whether codes tell true motion: R^2 of `states`. Videos are split into `one_in` parts, and each is judged by a map that
/// was fitted on the others.
pub(super) fn motion(
    codes: &dyn Rows,
    clips: &dyn Rows,
    episodes: &[Episode],
    states: &[usize],
    one_in: u64,
) -> Result<Vec<Figure>, StageError> {
    let spans: BTreeMap<&str, usize> = (0..clips.len()).map(|index| (clips.id(index), index)).collect();
    let mut folds: BTreeMap<u64, Vec<Sample>> = BTreeMap::new();
    for index in 0..codes.len() {
        let id = codes.id(index);
        let video = split_id(id).0;
        let (Some(episode), Some(&clip)) = (episodes::of_video(episodes, video), spans.get(id)) else { continue };
        let (row, clip) = (codes.row(index)?, clips.row(clip)?);
        let (code, frames) = (Codes::view(&row)?.code(0), Clips::view(&clip)?.clip(0).frames);
        let samples = samples_of(&code.codes, &code.levels, usize::from(code.queries), &frames, episode, states)?;
        folds.entry(fold(video, one_in.max(2))).or_default().extend(samples);
    }
    let folds: Vec<Vec<Sample>> = folds.into_values().collect();
    let Some(found) = r_squared(&folds) else { return Ok(Vec::new()) };
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let each =
        found.iter().zip(states).map(|(value, state)| figure("motion", &format!("state {state}"), "r_squared", *value));
    let counts = [
        figure("motion", "", "pairs", folds.iter().map(Vec::len).sum::<usize>() as f64),
        figure("motion", "", "folds", folds.len() as f64),
        figure("motion", "", "r_squared", mean),
    ];
    Ok(counts.into_iter().chain(each).collect())
}

/// A sample for each pair of latent frames.
fn samples_of(
    codes: &[u16],
    levels: &[u16],
    queries: usize,
    frames: &[u32],
    episode: &Episode,
    states: &[usize],
) -> Result<Vec<Sample>, StageError> {
    let pairs = codes.len() / queries.max(1);
    let step = (frames.len() - 1) / pairs.max(1);
    let state = |frame: u32, state: usize| -> Result<f64, StageError> {
        let found = episode.states.get(frame as usize).and_then(|values| values.get(state));
        let fault = || {
            let (frames, width) = (episode.states.len(), episode.states.first().map_or(0, Vec::len));
            format!(
                "`motion`: no state {state} at frame {frame} of {}; it has {frames} frames with {width} states each",
                episode.video
            )
        };
        found.copied().ok_or_else(|| fault().into())
    };
    let sample = |(pair, codes): (usize, &[u16])| {
        let (from, to) = (frames[pair * step], frames[(pair + 1) * step]);
        let target = states.iter().map(|&index| Ok(state(to, index)? - state(from, index)?));
        let target = target.collect::<Result<_, StageError>>()?;
        Ok(Sample { features: codes.iter().flat_map(|&code| digits(code, levels)).collect(), target })
    };
    codes.chunks_exact(queries).enumerate().map(sample).collect()
}

/// The place of a code on each axis of the grid; the first axis is the fastest.
fn digits(code: u16, levels: &[u16]) -> Vec<f64> {
    let mut left = code;
    levels
        .iter()
        .map(|&level| {
            let digit = left % level;
            left /= level;
            f64::from(digit)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_clips_together_weigh_the_worst_most() {
        let row = |psnr_db| Evaluation { method: "coarse".into(), psnr_db, ssim: 1.0, sharpness: 1.0, picture: None };
        // Squared errors of 0.01 and 0.0001: their mean is 0.00505.
        assert!((together(&[row(20.0), row(40.0)]) - 22.967).abs() < 1e-3);
        assert!((together(&[row(25.0), row(25.0)]) - 25.0).abs() < 1e-6);
    }

    #[test]
    fn a_code_has_a_place_on_each_axis() {
        assert_eq!(digits(500, &[8, 5, 5, 5]), [4.0, 2.0, 2.0, 2.0]);
        assert_eq!(digits(999, &[8, 5, 5, 5]), [7.0, 4.0, 4.0, 4.0]);
    }

    #[test]
    fn a_pair_moves_from_its_first_frame_to_its_last() {
        let episode = Episode { video: "a".into(), states: (0..20).map(|k| vec![0.0, f64::from(k * k)]).collect() };
        let frames: Vec<u32> = (0..9).map(|frame| 2 * frame).collect();
        let samples = samples_of(&[1, 2, 3, 4], &[8, 5], 2, &frames, &episode, &[1]).unwrap();
        let targets: Vec<f64> = samples.iter().map(|sample| sample.target[0]).collect();
        assert_eq!(targets, [64.0, 256.0 - 64.0]);
        assert_eq!(samples[1].features, [3.0, 0.0, 4.0, 0.0]);
        let error = samples_of(&[1, 2, 3, 4], &[8, 5], 2, &frames, &episode, &[2]).err().unwrap().to_string();
        assert!(error.contains("no state 2 at frame 8 of a") && error.contains("20 frames with 2 states"), "{error}");
    }
}
