//! The AR model as stages use it: with the names of its tasks.

use burn::tensor::Device;
use vw2_engine::stage::StageError;
use vw2_models::ar::CodeModel;
use vw2_models::weights::Weights;

/// The AR model with the names of its tasks.
pub(crate) struct Autoregressor {
    pub(crate) model: CodeModel,
    pub(crate) tasks: Vec<String>,
}

impl Autoregressor {
    pub(crate) fn load(weights: &Weights, device: &Device) -> Result<Autoregressor, StageError> {
        let tasks = weights.metadata().get("tasks").map_or(Ok(Vec::new()), |text| serde_json::from_str(text))?;
        Ok(Autoregressor { model: CodeModel::load(weights, device)?, tasks })
    }

    /// A task's place in the model's list; 0 for no task.
    pub(crate) fn task_number(&self, task: Option<&str>) -> Result<u32, StageError> {
        task_number(task, &self.tasks)
    }
}

fn task_number(task: Option<&str>, tasks: &[String]) -> Result<u32, StageError> {
    let Some(task) = task else { return Ok(0) };
    match tasks.iter().position(|known| known == task) {
        Some(index) => Ok(index as u32),
        None => Err(format!("the model knows no task `{task}`; it was trained on {}", tasks.join(", ")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_found_by_name() {
        let tasks = ["boat".to_owned(), "plane".to_owned()];
        assert_eq!(task_number(None, &tasks).unwrap(), 0);
        assert_eq!(task_number(Some("plane"), &tasks).unwrap(), 1);
        assert!(task_number(Some("horse"), &tasks).unwrap_err().to_string().contains("boat, plane"));
    }
}
