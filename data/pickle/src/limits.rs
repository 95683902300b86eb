//! How much a pickle may hold.

/// Bounds of one pickle. With the defaults, 100 MB of memory suffice beside twice the input's size.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Size of a file for [`crate::read`].
    pub file_bytes: u64,
    /// Operations of the stack machine.
    pub operations: usize,
    /// Values: on the stack, in containers, and in the finished tree, where one that is referred to twice counts twice.
    pub items: usize,
    /// Values kept for later reference.
    pub memo: usize,
    /// Containers within containers; at most [`Limits::DEEPEST`].
    pub depth: usize,
    /// Files within the pickle's bytes within each other: a tensor that was pickled by itself has one.
    pub nested: usize,
    /// Bytes of one string or array.
    pub bytes: usize,
    /// Bytes of all strings and arrays. Whatever stands here, they take no more than a few times the input's size.
    pub total_bytes: usize,
}

impl Limits {
    /// Finished values are walked and dropped by recursion, which this bounds.
    pub const DEEPEST: usize = 500;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            file_bytes: 1 << 30,
            operations: 5_000_000,
            items: 500_000,
            memo: 400_000,
            depth: 100,
            nested: 1,
            bytes: 1 << 30,
            total_bytes: 1 << 31,
        }
    }
}
