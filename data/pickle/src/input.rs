//! The bytes of a pickle, read from front to back.

use crate::{Error, Result};

/// A place in the input. All lengths are checked here, before anything is allocated for them.
pub(crate) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Input { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let taken = self.expect(length)?;
        self.at += taken.len();
        Ok(taken)
    }

    /// The next bytes, which are not taken.
    pub(crate) fn expect(&self, length: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let next = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        next.ok_or(Error::Truncated { at: self.at, wanted: length, left: rest.len() })
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N as u64)?;
        Ok(taken.try_into().expect("as many bytes were taken as the array has"))
    }

    /// A little-endian number of `N` bytes.
    pub(crate) fn number<const N: usize>(&mut self) -> Result<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    /// As many bytes as the number of `N` bytes before them says.
    pub(crate) fn counted<const N: usize>(&mut self) -> Result<&'a [u8]> {
        let length = self.number::<N>()?;
        self.take(length)
    }

    /// Up to the end of the line, which is taken too but not given.
    pub(crate) fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or(Error::Truncated { at: self.at, wanted: rest.len() as u64 + 1, left: rest.len() })?;
        self.at += end + 1;
        Ok(&rest[..end])
    }
}
