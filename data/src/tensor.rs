//! Tensors in a column: the canonical Arrow extension type `arrow.variable_shape_tensor`.
//!
//! Storage: a struct of `data` (list of numbers, row-major) and `shape` (fixed-size list of i32, one per axis).

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, Int32Array, ListArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Int32Type};

use crate::columns::{field, item, list_values, one_list};
use crate::{Error, Result};

fn fields<T: ArrowPrimitiveType>(axes: usize) -> Fields {
    let shape = DataType::FixedSizeList(item(DataType::Int32), axes as i32);
    Fields::from(vec![field("data", DataType::List(item(T::DATA_TYPE))), field("shape", shape)])
}

/// A field of tensors with the named axes.
pub(crate) fn tensor_field<T: ArrowPrimitiveType>(name: &str, axes: &[&str], nullable: bool) -> Field {
    let names = serde_json::json!({ "dim_names": axes }).to_string();
    Field::new(name, DataType::Struct(fields::<T>(axes.len())), nullable).with_metadata(HashMap::from([
        ("ARROW:extension:name".to_owned(), "arrow.variable_shape_tensor".to_owned()),
        ("ARROW:extension:metadata".to_owned(), names),
    ]))
}

/// A column of one tensor; `values` are taken over without a copy.
pub(crate) fn one_tensor<T: ArrowPrimitiveType, const N: usize>(
    table: &'static str,
    column: &'static str,
    values: Vec<T::Native>,
    shape: [usize; N],
) -> Result<ArrayRef> {
    let lengths = shape.map(|length| i64::try_from(length).unwrap_or(i64::MAX));
    if product(&lengths) != Some(values.len()) {
        return Err(Error::Shape { table, column, values: values.len(), shape: lengths.to_vec() });
    }
    // An axis longer than i32 could only stand beside an axis of length 0.
    let axes: Vec<i32> = lengths.iter().map(|&length| length.min(i64::from(i32::MAX)) as i32).collect();
    let shape = FixedSizeListArray::new(item(DataType::Int32), N as i32, Arc::new(Int32Array::from(axes)), None);
    let data = one_list::<T>(table, values)?;
    Ok(Arc::new(StructArray::new(fields::<T>(N), vec![Arc::new(data), Arc::new(shape)], None)))
}

/// A column of one missing tensor.
pub(crate) fn no_tensor<T: ArrowPrimitiveType>(axes: usize) -> ArrayRef {
    Arc::new(StructArray::new_null(fields::<T>(axes), 1))
}

/// A checked tensor column with `N` axes.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a, const N: usize> {
    column: &'a StructArray,
    data: &'a ListArray,
    shape: &'a FixedSizeListArray,
}

impl<'a, const N: usize> Tensors<'a, N> {
    /// `array` has the type of [`tensor_field`]; checked here: every row has as many values as its shape says.
    pub(crate) fn check(table: &'static str, column: &'static str, array: &'a ArrayRef) -> Result<Self> {
        let tensors = Tensors {
            column: array.as_struct(),
            data: array.as_struct().column(0).as_list(),
            shape: array.as_struct().column(1).as_fixed_size_list(),
        };
        for row in (0..array.len()).filter(|&row| array.is_valid(row)) {
            let (shape, values) = (tensors.axes(row).map(i64::from), tensors.data.value_length(row) as usize);
            if product(&shape) != Some(values) {
                return Err(Error::Shape { table, column, values, shape: shape.to_vec() });
            }
        }
        Ok(tensors)
    }

    pub(crate) fn is_valid(&self, row: usize) -> bool {
        self.column.is_valid(row)
    }

    pub(crate) fn values<T: ArrowPrimitiveType>(&self, row: usize) -> &'a [T::Native] {
        list_values::<T>(self.data, row)
    }

    pub(crate) fn shape(&self, row: usize) -> [usize; N] {
        self.axes(row).map(|length| length as usize)
    }

    fn axes(&self, row: usize) -> [i32; N] {
        let axes = self.shape.value(row);
        std::array::from_fn(|axis| axes.as_primitive::<Int32Type>().value(axis))
    }
}

/// The number of values in a shape, unless an axis is negative or the product is beyond all memory.
fn product(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |total, &length| total.checked_mul(usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Float32Type;

    #[test]
    fn values_that_do_not_fill_the_shape_are_refused() {
        for (values, shape) in [(5, [2, 3]), (7, [2, 3]), (1, [0, 1]), (0, [usize::MAX, 2])] {
            let made = one_tensor::<Float32Type, 2>("latents", "tensor", vec![0.0; values], shape);
            assert!(made.is_err(), "{values} values as {shape:?}");
        }
    }

    #[test]
    fn a_tensor_gives_back_its_values_and_shape() {
        let array =
            one_tensor::<Float32Type, 2>("latents", "tensor", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]).unwrap();
        let tensors = Tensors::<2>::check("latents", "tensor", &array).unwrap();
        assert_eq!(tensors.shape(0), [3, 2]);
        assert_eq!(tensors.values::<Float32Type>(0), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(!Tensors::<2>::check("codes", "feature", &no_tensor::<Float32Type>(2)).unwrap().is_valid(0));
    }

    #[test]
    fn the_extension_is_named_as_arrow_names_it() {
        let field = tensor_field::<Float32Type>("tensor", &["C", "H"], false);
        assert_eq!(field.extension_type_name(), Some("arrow.variable_shape_tensor"));
        assert_eq!(field.extension_type_metadata(), Some(r#"{"dim_names":["C","H"]}"#));
    }
}
