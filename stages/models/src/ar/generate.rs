//! One id after the other, with a cache: each step costs one position, whatever was before.

use burn::tensor::Tensor;

use super::decoder::{Ar, KvCache};
use super::sampling::{Draws, Sampling, known};
use crate::{Error, Result};

/// Whether to go on after an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    No,
    /// The id is kept and is the last.
    Here,
}

impl Ar {
    /// Up to `count` ids after a prompt of embeddings [1, T, D].
    ///
    /// `look` sees the ids so far and the logits of the next [1, V], and yields those to choose from: what it sets to minus
    /// infinity is not chosen. `stop` sees each new list of ids. Logits stay on their device; an id leaves it at each step.
    ///
    /// # Errors
    /// A batch of several prompts, an empty prompt, more positions than the decoder was made for, a bad [`Sampling`], logits
    /// of which none is a finite number.
    pub fn generate(
        &self,
        prompt: Tensor<3>,
        count: usize,
        sampling: &Sampling,
        mut look: impl FnMut(&[u32], Tensor<2>) -> Tensor<2>,
        mut stop: impl FnMut(&[u32]) -> Stop,
    ) -> Result<Vec<u32>> {
        sampling.check()?;
        let [batch, length, _] = prompt.dims();
        let limit = self.config.max_position_embeddings;
        if batch != 1 || length == 0 {
            return Err(Error::Input(format!(
                "generation takes 1 prompt of at least 1 position, not [{batch}, {length}]"
            )));
        }
        if (length + count).saturating_sub(1) > limit {
            return Err(Error::Input(format!(
                "a prompt of {length} positions and {count} new ids exceed max_position_embeddings {limit}"
            )));
        }
        let device = prompt.device();
        // The last id is chosen from what its predecessor sees, so it never enters the cache.
        let mut cache = KvCache::new(&self.config, 1, (length + count).saturating_sub(1).max(length), &device);
        let mut draws = Draws::new(sampling);
        let mut ids = Vec::with_capacity(count);
        let mut next = prompt;
        while ids.len() < count {
            let [_, length, width] = next.dims();
            let hidden = self.extend(next, &mut cache)?.slice([0..1, length - 1..length, 0..width]);
            let logits = self.logits(hidden);
            let vocabulary = logits.dims()[2];
            let id = draws.choose(look(&ids, logits.reshape([1, vocabulary])));
            ids.push(known(id.clone())?);
            if stop(&ids) == Stop::Here || ids.len() == count {
                break;
            }
            next = self.embed(id.unsqueeze());
        }
        Ok(ids)
    }
}
