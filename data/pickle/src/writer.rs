//! Pickles for tests, one operation after the other.

/// The bytes of a pickle so far.
#[derive(Clone, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer(vec![0x80, 2])
    }

    /// Operations without arguments, or with arguments as they are.
    pub(crate) fn op(mut self, bytes: &[u8]) -> Writer {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn times(self, count: usize, part: impl FnMut(Writer, usize) -> Writer) -> Writer {
        (0..count).fold(self, part)
    }

    pub(crate) fn text(self, text: &str) -> Writer {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub(crate) fn bytes(self, bytes: &[u8]) -> Writer {
        self.op(b"B").op(&(bytes.len() as u32).to_le_bytes()).op(bytes)
    }

    pub(crate) fn int(self, value: i32) -> Writer {
        self.op(b"J").op(&value.to_le_bytes())
    }

    pub(crate) fn put(self, index: u32) -> Writer {
        self.op(b"r").op(&index.to_le_bytes())
    }

    pub(crate) fn get(self, index: u32) -> Writer {
        self.op(b"j").op(&index.to_le_bytes())
    }

    /// The name as protocol 2 writes it.
    pub(crate) fn global(self, module: &str, name: &str) -> Writer {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    /// The name as protocol 4 writes it.
    pub(crate) fn stack_global(self, module: &str, name: &str) -> Writer {
        self.text(module).text(name).op(&[0x93])
    }

    /// A tuple of integers.
    pub(crate) fn ints(self, values: &[i32]) -> Writer {
        values.iter().fold(self.op(b"("), |writer, value| writer.int(*value)).op(b"t")
    }

    /// A numpy dtype: `order` is `<`, `>` or `|`.
    pub(crate) fn dtype(self, code: &str, order: &str) -> Writer {
        let named = self.global("numpy", "dtype").text(code).op(b"\x89\x88\x87R(K\x03");
        named.text(order).op(b"NNN").int(-1).int(-1).op(b"K\0tb")
    }

    /// A numpy array as protocols below 5 write it.
    pub(crate) fn array(self, shape: &[i32], code: &str, order: &str, column_major: bool, bytes: &[u8]) -> Writer {
        let named = self.global("numpy.core.multiarray", "_reconstruct").global("numpy", "ndarray");
        let empty = named.ints(&[0]).bytes(b"b").op(b"\x87R(K\x01").ints(shape).dtype(code, order);
        empty.op(if column_major { b"\x88" } else { b"\x89" }).bytes(bytes).op(b"tb")
    }

    /// A reference to a torch storage of f32.
    pub(crate) fn storage(self, key: &str, elements: i32) -> Writer {
        self.op(b"(").text("storage").global("torch", "FloatStorage").text(key).text("cpu").int(elements).op(b"tQ")
    }

    /// A torch tensor.
    pub(crate) fn tensor(self, elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Writer {
        let stored = self.global("torch._utils", "_rebuild_tensor_v2").op(b"(").storage("0", elements);
        let placed = stored.int(offset).ints(shape).ints(strides).op(b"\x89");
        placed.global("collections", "OrderedDict").op(b")RtR")
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}
