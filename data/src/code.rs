//! `codes`: the discrete latent dynamics of one clip, as the dLDM's encoder gives them.
//!
//! Shapes: a clip of 1 + 4k frames has k pairs of latent frames; `codes` u16 `[pairs, queries]`, pair-major.
//! Range:  each code < product of `levels`.

use std::sync::Arc;

use arrow::array::{ListArray, StringArray, UInt16Array};
use arrow::datatypes::{DataType, Float16Type, SchemaRef, UInt16Type};
use arrow::record_batch::RecordBatch;
use half::f16;

use crate::Result;
use crate::clip::{Origin, Origins};
use crate::columns::{Columns, field, item, list_values, one, one_list, one_row, one_string, schema};
use crate::tensor::{Tensors, no_tensor, one_tensor, tensor_field};

/// A dLDM's feature of a first frame, f16 `[C, h, w]`: what a rollout starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    pub values: Vec<f16>,
    pub shape: [usize; 3],
}

/// The codes of one clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    /// Pair-major: `codes[pair * queries + query]`.
    pub codes: Vec<u16>,
    /// Levels of each axis of the quantizer's grid.
    pub levels: Vec<u16>,
    /// Codes per pair of latent frames.
    pub queries: u16,
    /// Of the clip's first frame; only a video's first clip has it.
    pub feature: Option<Feature>,
    /// Hash of the weights that made the codes.
    pub model: String,
    pub origin: Origin,
}

/// A checked batch of table `codes`.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    codes: &'a ListArray,
    levels: &'a ListArray,
    queries: &'a UInt16Array,
    feature: Tensors<'a, 3>,
    model: &'a StringArray,
    origin: Origins<'a>,
}

impl<'a> Codes<'a> {
    pub const NAME: &'static str = "codes";

    pub fn schema() -> SchemaRef {
        let mut fields = vec![
            field("codes", DataType::List(item(DataType::UInt16))),
            field("levels", DataType::List(item(DataType::UInt16))),
            field("queries", DataType::UInt16),
            tensor_field::<Float16Type>("feature", &["C", "H", "W"], true),
            field("model", DataType::Utf8),
        ];
        fields.extend(Origins::fields());
        schema(fields)
    }

    pub fn view(batch: &'a RecordBatch) -> Result<Self> {
        let columns = Columns::check(Self::NAME, &Self::schema(), batch)?;
        Ok(Codes {
            codes: columns.list("codes"),
            levels: columns.list("levels"),
            queries: columns.primitive::<UInt16Type>("queries"),
            feature: Tensors::check(Self::NAME, "feature", columns.array("feature"))?,
            model: columns.strings("model"),
            origin: Origins::of(columns),
        })
    }

    /// Pair-major codes.
    pub fn codes(&self, row: usize) -> &'a [u16] {
        list_values::<UInt16Type>(self.codes, row)
    }

    pub fn levels(&self, row: usize) -> &'a [u16] {
        list_values::<UInt16Type>(self.levels, row)
    }

    /// Codes per pair of latent frames.
    pub fn queries(&self, row: usize) -> u16 {
        self.queries.value(row)
    }

    /// Values and shape `[C, h, w]` of the first frame's feature.
    pub fn feature(&self, row: usize) -> Option<(&'a [f16], [usize; 3])> {
        let there = self.feature.is_valid(row);
        there.then(|| (self.feature.values::<Float16Type>(row), self.feature.shape(row)))
    }

    pub fn model(&self, row: usize) -> &'a str {
        self.model.value(row)
    }

    pub fn origin(&self, row: usize) -> Origin {
        self.origin.get(row)
    }

    /// All columns of one row.
    pub fn code(&self, row: usize) -> Code {
        Code {
            codes: self.codes(row).to_vec(),
            levels: self.levels(row).to_vec(),
            queries: self.queries(row),
            feature: self.feature(row).map(|(values, shape)| Feature { values: values.to_vec(), shape }),
            model: self.model(row).to_owned(),
            origin: self.origin(row),
        }
    }

    /// An error if the feature's values do not fill its shape.
    pub fn row(code: &Code) -> Result<RecordBatch> {
        let feature = match &code.feature {
            Some(f) => one_tensor::<Float16Type, 3>(Self::NAME, "feature", f.values.clone(), f.shape)?,
            None => no_tensor::<Float16Type>(3),
        };
        let mut columns = vec![
            Arc::new(one_list::<UInt16Type>(Self::NAME, code.codes.clone())?) as _,
            Arc::new(one_list::<UInt16Type>(Self::NAME, code.levels.clone())?) as _,
            one::<UInt16Type>(code.queries),
            feature,
            one_string(&code.model),
        ];
        columns.extend(Origins::columns(&code.origin));
        Ok(one_row(Self::schema(), columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_was_put_in() {
        let feature = Feature { values: [0.5, -1.0, 2.0, 0.0].map(f16::from_f32).to_vec(), shape: [1, 2, 2] };
        for feature in [None, Some(feature)] {
            let code = Code {
                codes: vec![17, 63999, 0, 4],
                levels: vec![8, 8, 8, 5, 5, 5],
                queries: 2,
                feature,
                model: "ab12".into(),
                origin: Origin { index: 1, fps: 30.0, task: Some("push".into()) },
            };
            let batch = Codes::row(&code).unwrap();
            assert_eq!(Codes::view(&batch).unwrap().code(0), code);
        }
    }
}
