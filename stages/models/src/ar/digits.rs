//! Codes as the few digits that they consist of.
//!
//! A code of levels (8, 5, 5, 5) is one of 1000 ids, but it says four small numbers, and codes that share some of them mean
//! like things. Beside a row of its own, each code takes a share of rows that stand for its digits, before the decoder and
//! behind it. So what is learned of one code is known of its neighbours: without it, a thousand rows each want examples.
//!
//! Source: our own design; upstream's AR code is not published (spec 6.4). Digits are those of FSQ: the first level counts
//! fastest (spec 3.4).

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};

use super::layers::Embedding;
use crate::nn::Init;
use crate::weights::{Named, Names, Visitor};

/// Rows for each value of each digit.
#[derive(Module, Debug)]
pub struct Digits {
    /// What a code's digits add to its embedding, [sum of levels, D].
    pub inputs: Embedding,
    /// What they add to its row of the head, likewise.
    pub outputs: Embedding,
    #[module(skip)]
    levels: Vec<u32>,
    #[module(skip)]
    vocabulary: usize,
}

impl Digits {
    pub(crate) fn init(levels: &[u32], vocabulary: usize, width: usize, init: &mut Init) -> Digits {
        let rows = levels.iter().sum::<u32>() as usize;
        let table = |init: &mut Init| Embedding::init(rows, width, init);
        Digits { inputs: table(init), outputs: table(init), levels: levels.to_vec(), vocabulary }
    }

    /// [B, T] ids to [B, T, D].
    pub(crate) fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        Embedding::rows_of(self.table(&self.inputs), ids)
    }

    /// [B, T, D] to [B, T, V].
    pub(crate) fn scores(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, t, width] = x.dims();
        let scores = x.reshape([b * t, width]).matmul(self.table(&self.outputs).transpose());
        scores.reshape([b, t, self.vocabulary])
    }

    /// The sum of the rows of each id's digits, [V, D]; 0 for ids that are no codes.
    fn table(&self, rows: &Embedding) -> Tensor<2> {
        let rows = rows.weight.val();
        let size = rows.dims()[0];
        let codes: u32 = self.levels.iter().product();
        let mut picks = vec![0.0f32; self.vocabulary * size];
        for code in 0..codes {
            let (mut rest, mut first) = (code, 0);
            for &level in &self.levels {
                picks[code as usize * size + (first + rest % level) as usize] = 1.0;
                (rest, first) = (rest / level, first + level);
            }
        }
        Tensor::from_data(TensorData::new(picks, [self.vocabulary, size]), &rows.device()).matmul(rows)
    }
}

impl Named for Digits {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("inputs", &mut self.inputs);
        names.child("outputs", &mut self.outputs);
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Device;

    use super::*;
    use crate::train::floats;

    #[test]
    fn a_code_s_row_is_the_sum_of_its_digits_rows() {
        let device = Device::flex();
        let mut digits = Digits::init(&[2, 3], 8, 1, &mut Init::new(&device, 1));
        let rows = Tensor::from_floats([[1.0], [2.0], [10.0], [20.0], [30.0]], &device);
        digits.inputs.weight = Param::from_tensor(rows);
        let ids = Tensor::<2, Int>::from_ints([[0, 1, 2, 3, 4, 5, 6, 7]], &device);
        assert_eq!(floats(digits.embed(ids)), [11.0, 12.0, 21.0, 22.0, 31.0, 32.0, 0.0, 0.0]);
    }
}
