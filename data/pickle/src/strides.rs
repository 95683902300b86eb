//! Where the elements of a view lie. Sizes, strides and offsets count elements.

/// Product of the sizes, unless it is too large to count.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

/// One past the last element that a view reaches.
pub(crate) fn reach(offset: usize, shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(offset);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(*stride)?));
    last?.checked_add(1)
}

/// Strides of a row-major array that has elements.
pub(crate) fn row_major<'a>(shape: impl DoubleEndedIterator<Item = &'a usize>) -> Vec<usize> {
    let mut next = 1;
    let stride = |size: &usize| {
        let stride = next;
        next *= size;
        stride
    };
    let mut strides: Vec<usize> = shape.rev().map(stride).collect();
    strides.reverse();
    strides
}

/// Elements of so many bytes in row-major order, from where the strides say; `swap` turns each around. All that the
/// view reaches must lie in `bytes`.
pub(crate) fn gather(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize], swap: bool) -> Vec<u8> {
    let length = size * elements(shape).unwrap_or(0);
    let mut out = Vec::with_capacity(length);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    while out.len() < length {
        let element = &bytes[at * size..][..size];
        match swap {
            true => out.extend(element.iter().rev()),
            false => out.extend(element),
        }
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    out
}
