//! Pickles as Python's own `pickle.dumps(…, 2)` could have written them: plain data, numpy's arrays, torch's tensors.
//!
//! Containers are written item by item, so that a file's names and shapes need not be gathered into one value first.
//! Differs: nothing is memorised, so a text that occurs twice is written twice.
//!
//! ```
//! use vw2_pickle::{Limits, Value, parse, write::Pickle};
//! let mut pickle = Pickle::new();
//! pickle.dict(&[("a", 1), ("b", -70_000)], |pickle, (key, value)| {
//!     pickle.text(key);
//!     pickle.int(*value);
//! });
//! let value = parse(&pickle.stop(), &Limits::default()).unwrap();
//! assert_eq!(value.get("b"), Some(&Value::Int(-70_000)));
//! ```

use crate::Dtype;
use crate::globals::{self, Global};
use crate::strides::row_major;

/// A pickle of one value, as far as it has been written.
pub struct Pickle(Vec<u8>);

impl Default for Pickle {
    fn default() -> Self {
        Pickle::new()
    }
}

impl Pickle {
    pub fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    /// # Panics
    /// The text has 4 GiB or more.
    pub fn text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).expect("a name or text is shorter than 4 GiB");
        self.0.push(b'X');
        self.0.extend(length.to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    pub fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.0.extend([b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.0.push(b'M');
            self.0.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.0.push(b'J');
            self.0.extend(value.to_le_bytes());
        } else {
            self.0.extend([0x8a, 8]);
            self.0.extend(value.to_le_bytes());
        }
    }

    /// Bytes, which this protocol can only hold as Latin-1 text.
    ///
    /// # Panics
    /// They are 2 GiB or more.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.global("_codecs", "encode");
        self.text(&bytes.iter().map(|&byte| char::from(byte)).collect::<String>());
        self.text("latin1");
        self.0.extend(b"\x86R");
    }

    /// A list; `write` writes one value for each item.
    pub fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Pickle, &T)) {
        self.0.extend(b"](");
        items.iter().for_each(|item| write(self, item));
        self.0.push(b'e');
    }

    /// A tuple of the two values that `write` writes.
    pub fn pair(&mut self, write: impl FnOnce(&mut Pickle)) {
        write(self);
        self.0.push(0x86);
    }

    /// A dictionary; `write` writes a key and a value for each item.
    pub fn dict<T>(&mut self, items: &[T], write: impl FnMut(&mut Pickle, &T)) {
        self.0.push(b'}');
        self.items(items, write);
    }

    /// An `OrderedDict`, which a module's state is; `write` writes a key and a value for each item.
    pub fn ordered_dict<T>(&mut self, items: &[T], write: impl FnMut(&mut Pickle, &T)) {
        self.empty_ordered_dict();
        self.items(items, write);
    }

    /// A row-major, little-endian numpy array.
    ///
    /// # Panics
    /// Its type is bf16, which numpy does not have.
    pub fn array(&mut self, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
        let code = match dtype {
            Dtype::Bool => "b1",
            Dtype::U8 => "u1",
            Dtype::I8 => "i1",
            Dtype::U16 => "u2",
            Dtype::I16 => "i2",
            Dtype::U32 => "u4",
            Dtype::I32 => "i4",
            Dtype::U64 => "u8",
            Dtype::I64 => "i8",
            Dtype::F16 => "f2",
            Dtype::F32 => "f4",
            Dtype::F64 => "f8",
            Dtype::BF16 => panic!("numpy has no bf16"),
        };
        self.global("numpy.core.multiarray", "_reconstruct");
        self.global("numpy", "ndarray");
        self.0.extend(b"K\0\x85");
        self.bytes(b"b");
        self.0.extend(b"\x87R(K\x01");
        self.sizes(shape);
        self.global("numpy", "dtype");
        self.text(code);
        self.0.extend(b"\x89\x88\x87R(K\x03");
        self.text("<");
        self.0.extend(b"NNNJ\xFF\xFF\xFF\xFFJ\xFF\xFF\xFF\xFFK\0tb\x89");
        self.bytes(bytes);
        self.0.extend(b"tb");
    }

    /// A row-major tensor that is all of the storage `key` of the archive.
    pub fn tensor(&mut self, key: &str, dtype: Dtype, shape: &[usize]) {
        let elements: usize = shape.iter().product();
        let class = globals::storage_of(dtype);
        self.global("torch._utils", if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" });
        self.0.extend(b"((");
        self.text("storage");
        match class {
            Some(Global { module, name, .. }) => self.global(module, name),
            None => self.global("torch.storage", "UntypedStorage"),
        }
        self.text(key);
        self.text("cpu");
        // An untyped storage counts bytes.
        self.count(if class.is_some() { elements } else { elements * dtype.size() });
        self.0.extend(b"tQK\0");
        self.sizes(shape);
        self.sizes(&row_major(shape.iter()));
        self.0.push(0x89); // wants no gradient
        self.empty_ordered_dict(); // no hooks
        if class.is_none() {
            let Global { module, name, .. } = globals::dtype_of(dtype);
            self.global(module, name);
        }
        self.0.extend(b"tR");
    }

    /// The pickle's bytes.
    pub fn stop(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }

    fn items<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Pickle, &T)) {
        self.0.push(b'(');
        items.iter().for_each(|item| write(self, item));
        self.0.push(b'u');
    }

    fn empty_ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend(b")R");
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    fn count(&mut self, count: usize) {
        self.int(i64::try_from(count).expect("what lies in memory or in a file has fewer than 2^63 elements"));
    }

    fn sizes(&mut self, sizes: &[usize]) {
        self.0.push(b'(');
        sizes.iter().for_each(|size| self.count(*size));
        self.0.push(b't');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Value, parse};

    fn read(pickle: Pickle) -> Value {
        parse(&pickle.stop(), &Limits::default()).unwrap()
    }

    #[test]
    fn integers_of_every_width_come_back() {
        let around = [0i64, 255, 256, 65_535, 65_536, 1 << 31, i64::MAX];
        let all: Vec<i64> = around.iter().flat_map(|&n| [n, -n, n.wrapping_sub(1), n.wrapping_add(1)]).collect();
        let mut pickle = Pickle::new();
        pickle.list(&all, |pickle, value| pickle.int(*value));
        assert_eq!(read(pickle), Value::List(all.into_iter().map(Value::Int).collect()));
    }

    #[test]
    fn containers_within_each_other_come_back() {
        let mut pickle = Pickle::new();
        pickle.dict(&["ü", ""], |pickle, key| {
            pickle.text(key);
            pickle.pair(|pickle| {
                pickle.list(&[(); 0], |_, ()| {});
                pickle.text(key);
            });
        });
        let pair = |text: &str| Value::Tuple(vec![Value::List(vec![]), Value::Str(text.into())]);
        let entry = |text: &str| (Value::Str(text.into()), pair(text));
        assert_eq!(read(pickle), Value::Dict(vec![entry("ü"), entry("")]));
    }

    #[test]
    fn bytes_and_arrays_of_each_type_come_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut pickle = Pickle::new();
        pickle.bytes(&bytes);
        assert_eq!(read(pickle), Value::Bytes(bytes.clone().into()));
        for dtype in Dtype::ALL.into_iter().filter(|&dtype| dtype != Dtype::BF16) {
            let bytes = &bytes[..6 * dtype.size()];
            let mut pickle = Pickle::new();
            pickle.array(dtype, &[2, 3], bytes);
            let Value::Array(array) = read(pickle) else { panic!("no array") };
            assert_eq!((array.dtype, &array.shape[..], &array.bytes[..]), (dtype, &[2, 3][..], bytes));
        }
    }

    #[test]
    fn a_tensor_of_each_type_and_shape_comes_back() {
        for dtype in Dtype::ALL {
            for shape in [&[][..], &[7], &[2, 3, 5], &[4, 0, 2]] {
                let mut pickle = Pickle::new();
                pickle.tensor("12", dtype, shape);
                let Value::Tensor(tensor) = read(pickle) else { panic!("no tensor") };
                assert_eq!((tensor.dtype, &tensor.shape[..], tensor.offset), (dtype, shape, 0), "{dtype:?}");
                assert_eq!(&*tensor.storage.key, "12");
                let bytes: Vec<u8> = (0..tensor.elements() * dtype.size()).map(|byte| byte as u8).collect();
                assert_eq!(tensor.row_major(&bytes), Some(bytes), "{dtype:?} {shape:?}");
            }
        }
    }
}
