//! Products of matrices in memory, on one thread: a checked face of the `gemm` crate, whose kernels Flex's own products
//! use, too.

/// Floats in memory, read as a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one behind the other.
    pub(crate) fn dense(data: &'a [f32], rows: usize, columns: usize) -> Matrix<'a> {
        Matrix::new(data, [rows, columns], [columns, 1])
    }

    /// # Panics
    /// An element lies outside of `data`.
    pub(crate) fn new(data: &'a [f32], [rows, columns]: [usize; 2], steps: [usize; 2]) -> Matrix<'a> {
        let [row_step, column_step] = steps;
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * row_step + (columns - 1) * column_step;
            assert!(last < data.len(), "{rows} x {columns} in steps of {steps:?} exceed {} values", data.len());
        }
        Matrix { data, rows, columns, row_step, column_step }
    }

    pub(crate) fn transposed(self) -> Matrix<'a> {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }

    /// `count` rows from `start` on.
    pub(crate) fn rows(self, start: usize, count: usize) -> Matrix<'a> {
        if count == 0 {
            return Matrix { rows: 0, ..self };
        }
        let data = &self.data[start * self.row_step..];
        Matrix::new(data, [count, self.columns], [self.row_step, self.column_step])
    }

    pub(crate) fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_step + column * self.column_step]
    }

    /// A row, where its values are neighbours.
    pub(crate) fn row(&self, row: usize) -> Option<&'a [f32]> {
        (self.column_step == 1).then(|| &self.data[row * self.row_step..][..self.columns])
    }
}

/// What becomes of the values that a product is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old {
    Dropped,
    /// The product is added to them.
    Kept,
}

/// `out = factor a b`, or `out += factor a b`; `out` is dense.
///
/// # Panics
/// The sizes do not fit each other.
pub(crate) fn multiply(out: &mut [f32], old: Old, a: Matrix<'_>, b: Matrix<'_>, factor: f32) {
    assert_eq!(a.columns, b.rows, "columns of the first factor are rows of the second");
    assert_eq!(out.len(), a.rows * b.columns, "the product is {} x {}", a.rows, b.columns);
    let steps = |step: usize| isize::try_from(step).expect("a slice is at most isize::MAX long");
    // SAFETY: `Matrix::new` and `rows` have checked that every element of `a` and `b` lies in its slice, and the line above
    // that `out` has exactly the product's elements; it is borrowed alone.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            steps(b.columns),
            old == Old::Kept,
            a.data.as_ptr(),
            steps(a.column_step),
            steps(a.row_step),
            b.data.as_ptr(),
            steps(b.column_step),
            steps(b.row_step),
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_worked_out_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = [1.0; 4];
        let wide = Matrix::dense(&a, 2, 3);
        multiply(&mut out, Old::Dropped, wide, wide.transposed(), 1.0);
        assert_eq!(out, [14.0, 32.0, 32.0, 77.0]);
        multiply(&mut out, Old::Kept, wide.rows(1, 1).transposed().rows(0, 2), Matrix::dense(&a, 1, 2), 2.0);
        assert_eq!(out, [22.0, 48.0, 42.0, 97.0]);
        assert_eq!(wide.transposed().row(0), None);
        assert_eq!((wide.row(1), wide.at(1, 2)), (Some(&a[3..]), 6.0));
    }

    #[test]
    #[should_panic(expected = "exceed 6 values")]
    fn a_matrix_beyond_its_memory_is_refused() {
        Matrix::new(&[0.0; 6], [2, 3], [4, 1]);
    }
}
