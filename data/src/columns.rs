//! A batch's columns by name, checked against a table's schema once.

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, GenericListArray, ListArray, PrimitiveArray, StringArray,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use std::sync::Arc;

use crate::{Error, Result};

/// A field that always has a value.
pub(crate) fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

/// The element of a list column; never null.
pub(crate) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, false))
}

pub(crate) fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

/// A batch whose columns are known to be those of a table.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    batch: &'a RecordBatch,
}

impl<'a> Columns<'a> {
    /// Checks that every column of `schema` is there, with its type and without nulls where none may be. Further columns
    /// are ignored.
    pub(crate) fn check(table: &'static str, schema: &SchemaRef, batch: &'a RecordBatch) -> Result<Self> {
        for want in schema.fields() {
            let column = || want.name().clone();
            let Some(found) = batch.column_by_name(want.name()) else {
                let names: Vec<&str> = batch.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
                return Err(Error::NoColumn { table, column: column(), found: names.join(", ") });
            };
            if !found.data_type().equals_datatype(want.data_type()) {
                let (want, found) = (want.data_type().to_string(), found.data_type().to_string());
                return Err(Error::ColumnType { table, column: column(), want, found });
            }
            if !want.is_nullable() && found.null_count() > 0 {
                return Err(Error::Null { table, column: column(), nulls: found.null_count() });
            }
        }
        Ok(Columns { batch })
    }

    pub(crate) fn array(&self, name: &str) -> &'a ArrayRef {
        self.batch.column_by_name(name).expect("`check` found every column of the schema")
    }

    pub(crate) fn primitive<T: ArrowPrimitiveType>(&self, name: &str) -> &'a PrimitiveArray<T> {
        self.array(name).as_primitive()
    }

    pub(crate) fn strings(&self, name: &str) -> &'a StringArray {
        self.array(name).as_string()
    }

    pub(crate) fn list(&self, name: &str) -> &'a ListArray {
        self.array(name).as_list()
    }
}

/// The numbers of one row of a list column.
pub(crate) fn list_values<T: ArrowPrimitiveType>(list: &ListArray, row: usize) -> &[T::Native] {
    let (start, end) = (list.value_offsets()[row] as usize, list.value_offsets()[row + 1] as usize);
    &list.values().as_primitive::<T>().values()[start..end]
}

/// A list column with one row, which takes `values` over without a copy.
pub(crate) fn one_list<T: ArrowPrimitiveType>(table: &'static str, values: Vec<T::Native>) -> Result<ListArray> {
    let length = i32::try_from(values.len()).map_err(|_| Error::TooLong { table, values: values.len() })?;
    let array = PrimitiveArray::<T>::new(ScalarBuffer::from(values), None);
    let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, length]));
    Ok(GenericListArray::new(item(T::DATA_TYPE), offsets, Arc::new(array), None))
}

/// A string column with one row.
pub(crate) fn one_string(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

/// A string column with one row that may have no value.
pub(crate) fn one_optional(value: Option<&str>) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

/// A column of numbers with one row.
pub(crate) fn one<T: ArrowPrimitiveType>(value: T::Native) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_value(value, 1))
}

/// A batch of one row from columns in the schema's order.
pub(crate) fn one_row(schema: SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema, columns).expect("a table's own builder makes columns of the table's schema")
}

/// The optional string at `row`.
pub(crate) fn optional(strings: &StringArray, row: usize) -> Option<&str> {
    strings.is_valid(row).then(|| strings.value(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Int64Type, UInt32Type};

    fn table() -> SchemaRef {
        schema(vec![field("index", DataType::UInt32), field("frames", DataType::List(item(DataType::UInt32)))])
    }

    #[test]
    fn a_missing_column_and_a_wrong_type_are_named() {
        let only = schema(vec![field("index", DataType::UInt32)]);
        let batch = one_row(only, vec![one::<UInt32Type>(3)]);
        let error = Columns::check("clips", &table(), &batch).err().unwrap().to_string();
        assert_eq!(error, "table `clips`: no column `frames`, but index");

        let wide = schema(vec![field("index", DataType::Int64)]);
        let batch = one_row(wide, vec![one::<Int64Type>(3)]);
        let error = Columns::check("clips", &table(), &batch).err().unwrap().to_string();
        assert_eq!(error, "table `clips`: column `index` wants UInt32, found Int64");
    }

    #[test]
    fn a_null_where_a_value_must_be_is_refused() {
        let loose = schema(vec![Field::new("index", DataType::UInt32, true)]);
        let batch = one_row(loose, vec![Arc::new(PrimitiveArray::<UInt32Type>::from(vec![None]))]);
        let strict = schema(vec![field("index", DataType::UInt32)]);
        let error = Columns::check("clips", &strict, &batch).err().unwrap().to_string();
        assert_eq!(error, "table `clips`: column `index` has 1 nulls, but it must always have a value");
    }

    #[test]
    fn a_list_takes_its_values_over_and_gives_them_back() {
        let list = one_list::<UInt32Type>("clips", vec![4, 2, 2]).unwrap();
        assert_eq!(list_values::<UInt32Type>(&list, 0), [4, 2, 2]);
    }
}
