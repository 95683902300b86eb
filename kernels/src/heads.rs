//! A Flex tensor [B, heads, N, D] of any strides, read as a matrix per head.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};

use crate::matrix::Matrix;

pub(crate) struct Heads {
    tensor: FloatTensor<Flex>,
    pub(crate) dims: [usize; 4],
    strides: [usize; 4],
}

impl Heads {
    pub(crate) fn new(tensor: FloatTensor<Flex>) -> Heads {
        let tensor = match tensor.layout().strides().iter().all(|&stride| stride >= 0) {
            true => tensor,
            false => tensor.to_contiguous(), // a flipped tensor
        };
        let shape = tensor.shape();
        let dims = std::array::from_fn(|i| shape[i]);
        let strides = std::array::from_fn(|i| tensor.layout().strides()[i] as usize);
        Heads { tensor, dims, strides }
    }

    /// As [`Heads::new`], copied if need be, so that the values of a row are neighbours.
    pub(crate) fn with_rows(tensor: FloatTensor<Flex>) -> Heads {
        let rows = tensor.layout().strides()[3] == 1;
        Heads::new(if rows { tensor } else { tensor.to_contiguous() })
    }

    pub(crate) fn head(&self, batch: usize, head: usize) -> Matrix<'_> {
        let start = self.tensor.layout().start_offset() + batch * self.strides[0] + head * self.strides[1];
        let data = &self.tensor.storage::<f32>()[start..];
        Matrix::new(data, [self.dims[2], self.dims[3]], [self.strides[2], self.strides[3]])
    }
}
