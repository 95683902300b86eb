//! Figures of a run by name, each with the steps at which it was taken. They travel in checkpoints, bit for bit.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use crate::Result;
use crate::weights::Weights;

/// Before a name in a checkpoint: steps and values, f64 `[n, 2]`.
const PREFIX: &str = "log.";

/// Columns of (step, value), steps rising.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    columns: BTreeMap<String, Vec<(u32, f64)>>,
}

impl Log {
    pub fn push(&mut self, name: &str, step: u32, value: f64) {
        match self.columns.get_mut(name) {
            Some(points) => points.push((step, value)),
            None => drop(self.columns.insert(name.to_owned(), vec![(step, value)])),
        }
    }

    /// All columns, sorted by name.
    pub fn columns(&self) -> &BTreeMap<String, Vec<(u32, f64)>> {
        &self.columns
    }

    pub fn points(&self, name: &str) -> &[(u32, f64)] {
        self.columns.get(name).map_or(&[], Vec::as_slice)
    }

    /// The mean of the last `count` values, for a figure that does not hang on one minibatch; NaN where there is none.
    pub fn recent(&self, name: &str, count: usize) -> f64 {
        let points = self.points(name);
        let recent = &points[points.len().saturating_sub(count)..];
        recent.iter().map(|point| point.1).sum::<f64>() / recent.len() as f64
    }

    /// Means over `count` points each, at the last of them, for curves of what hangs on one minibatch.
    pub fn smoothed(&self, name: &str, count: usize) -> Vec<(u32, f64)> {
        let mean = |part: &[(u32, f64)]| part.iter().map(|point| point.1).sum::<f64>() / part.len() as f64;
        self.points(name).chunks(count).map(|part| (part[part.len() - 1].0, mean(part))).collect()
    }

    /// The lowest value with its step; the earliest of equal ones.
    pub fn lowest(&self, name: &str) -> Option<(u32, f64)> {
        self.points(name).iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
    }

    pub(super) fn tensors(&self) -> Vec<(String, TensorData)> {
        let tensor = |(name, points): (&String, &Vec<(u32, f64)>)| {
            let values: Vec<f64> = points.iter().flat_map(|&(step, value)| [f64::from(step), value]).collect();
            (format!("{PREFIX}{name}"), TensorData::new(values, [points.len(), 2]))
        };
        self.columns.iter().map(tensor).collect()
    }

    pub(super) fn read(file: &Weights) -> Result<Log> {
        let mut log = Log::default();
        for name in file.names().filter(|name| name.starts_with(PREFIX)) {
            let values = file.f64s(name)?;
            let points = values.chunks_exact(2).map(|pair| (pair[0] as u32, pair[1])).collect();
            log.columns.insert(name[PREFIX.len()..].to_owned(), points);
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_lowest_values_are_of_what_was_pushed() {
        let mut log = Log::default();
        for (step, value) in [(1, 4.0), (2, 1.0), (3, 2.0), (4, 1.0)] {
            log.push("loss", step, value);
        }
        assert_eq!((log.recent("loss", 2), log.recent("loss", 9), log.lowest("loss")), (1.5, 2.0, Some((2, 1.0))));
        assert_eq!(log.smoothed("loss", 3), [(3, 7.0 / 3.0), (4, 1.0)]);
        assert!(log.recent("other", 3).is_nan() && log.lowest("other").is_none());
    }
}
