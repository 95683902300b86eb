//! What the allowed functions make of their arguments.

use std::sync::Arc;

use crate::error::quoted;
use crate::globals::{Global, Rebuild, Role};
use crate::legacy;
use crate::machine::{Endian, Machine, Node, Slot};
use crate::strides::{elements, gather, reach, row_major};
use crate::{Array, Dtype, Limits, Result, Storage, Tensor};

/// No allowed function takes more arguments.
const MOST_ARGUMENTS: usize = 16;

/// No array of numpy or torch has more dimensions.
const MOST_DIMENSIONS: usize = 64;

/// A tensor may be larger than its storage (`expand` repeats elements by stride 0), but then no larger than this, as
/// the file's size does not bound it. Buffers of published models are far smaller.
const MOST_REPEATED: usize = 1 << 20;

/// How an array's elements follow each other in its bytes.
enum Order {
    /// The last index fastest.
    RowMajor,
    /// The first index fastest.
    ColumnMajor,
    /// Row-major in other axes, of which these are the array's.
    Permuted(Vec<usize>),
}

impl Machine<'_> {
    /// The value of a function called with a tuple of arguments.
    pub(crate) fn call(&mut self, function: Slot, arguments: Slot) -> Result<Slot> {
        let Slot::Global(global) = function else {
            return Err(self.damaged("a value is called as if it were a function".into()));
        };
        let arguments = self.arguments(global, arguments)?;
        let made = match (global.role, &arguments[..]) {
            (Role::OrderedDict, []) => Node::Dict(Vec::new()),
            (Role::OrderedDict, [pairs]) => self.ordered_dict(*pairs)?,
            (Role::Set, []) => Node::List(Vec::new()),
            (Role::Set, [items]) => match self.node(*items) {
                Some(Node::List(items)) => Node::List(items.clone()),
                _ => return Err(self.damaged("a set of what is no list".into())),
            },
            (Role::Bytes, []) => Node::Bytes([].into()),
            (Role::Bytes, [bytes]) => Node::Bytes(self.bytes_of(*bytes)?),
            (Role::Encode | Role::Bytes, [text, encoding]) => self.encode(*text, *encoding)?,
            (Role::BytesIo, []) => Node::NewBytesIo,
            (Role::NumpyReconstruct, [Slot::Global(class), _shape, _code]) if class.role == Role::NumpyArray => {
                Node::NewArray
            }
            (Role::NumpyDtype, [code, ..]) => self.numpy_dtype(*code)?,
            (Role::NumpyScalar, [dtype, bytes]) => return self.numpy_scalar(*dtype, *bytes),
            (Role::NumpyFromBuffer, [bytes, dtype, shape, order, axes @ ..]) => {
                let order = self.order(*order, axes)?;
                let (shape, bytes) = (self.dimensions(*shape)?, self.bytes_of(*bytes)?);
                self.array(*dtype, shape, bytes, order)?
            }
            (Role::TorchTensor(version), arguments) => self.tensor(version, arguments)?,
            (Role::TorchStorageOf, [bytes]) => self.storage_of(*bytes)?,
            (Role::TorchParameter, [tensor, ..]) if matches!(self.node(*tensor), Some(Node::Tensor(_))) => {
                return Ok(*tensor);
            }
            (Role::TorchFromType, [function @ Slot::Global(inner), _class, arguments, ..])
                if matches!(inner.role, Role::TorchTensor(_) | Role::TorchParameter) =>
            {
                return self.call(*function, *arguments);
            }
            (Role::TorchSize, [sizes]) => match self.node(*sizes) {
                Some(Node::Tuple(sizes)) if sizes.len() <= MOST_DIMENSIONS => Node::Tuple(sizes.clone()),
                _ => return Err(self.damaged("a size that is no tuple".into())),
            },
            _ => return Err(self.damaged(format!("`{global}` is called in another way than data needs"))),
        };
        self.add(made)
    }

    /// A new object of a class.
    pub(crate) fn instance(&mut self, class: Slot, arguments: Slot) -> Result<Slot> {
        match (class, self.node(arguments)) {
            (Slot::Global(global), Some(Node::Tuple(none))) if global.role == Role::BytesIo && none.is_empty() => {
                self.add(Node::NewBytesIo)
            }
            (Slot::Global(global), _) => {
                Err(self.damaged(format!("an object of `{global}`, which no data is made of")))
            }
            _ => Err(self.damaged("an object of what is no class".into())),
        }
    }

    /// Gives an object its contents.
    pub(crate) fn set_state(&mut self, object: Slot, state: Slot) -> Result<()> {
        let Slot::Node(index) = object else {
            return Err(self.damaged("a value is changed that cannot be".into()));
        };
        let fields = match self.node(state) {
            Some(Node::Tuple(fields)) if fields.len() <= MOST_ARGUMENTS => fields.clone(),
            _ => Vec::new(),
        };
        let made = match (&self.nodes[index as usize], &fields[..]) {
            (Node::NewArray, [_version, shape, dtype, Slot::Bool(column_major), bytes]) => {
                let order = if *column_major { Order::ColumnMajor } else { Order::RowMajor };
                let (shape, bytes) = (self.dimensions(*shape)?, self.bytes_of(*bytes)?);
                self.array(*dtype, shape, bytes, order)?
            }
            (Node::NewBytesIo, [bytes, _position, _attributes]) => Node::Bytes(self.bytes_of(*bytes)?),
            (Node::Dtype(dtype, _), [_version, order, Slot::None, Slot::None, Slot::None, ..]) => {
                match self.text(*order) {
                    Some("<" | "|" | "=") => Node::Dtype(*dtype, Endian::Little),
                    Some(">") => Node::Dtype(*dtype, Endian::Big),
                    _ => return Err(self.damaged("a dtype of an unknown byte order".into())),
                }
            }
            // Attributes: a state dictionary has versions of its modules here, a tensor what a program has put there.
            (Node::Dict(_) | Node::Tensor(_), _) => return Ok(()),
            _ => return Err(self.damaged("an object is given contents that do not fit it".into())),
        };
        self.nodes[index as usize] = made;
        Ok(())
    }

    /// The storage that a checkpoint's persistent id names: `("storage", class, key, device, elements)`.
    pub(crate) fn storage(&mut self, id: Slot) -> Result<Slot> {
        let fields = match self.node(id) {
            Some(Node::Tuple(fields)) if fields.len() <= MOST_ARGUMENTS => fields.clone(),
            _ => Vec::new(),
        };
        let ([tag, Slot::Global(class), key, _device, Slot::Int(elements)]
        | [tag, Slot::Global(class), key, _device, Slot::Int(elements), Slot::None]) = fields[..]
        else {
            return Err(self.damaged("a reference that names no storage, or a part of one; save the file again".into()));
        };
        let (Role::TorchStorage(dtype), Some("storage")) = (class.role, self.text(tag)) else {
            return Err(self.damaged("a reference that names no storage".into()));
        };
        let key: Arc<str> = match (key, self.node(key), self.text(key)) {
            (_, Some(Node::Str(key)), _) => key.clone(),
            (_, _, Some(key)) => key.into(),
            (Slot::Int(key), ..) => key.to_string().into(),
            _ => return Err(self.damaged("a storage's key is no string".into())),
        };
        let elements = self.size(Slot::Int(elements))?;
        self.charge(key.len())?;
        self.add(Node::Storage(Arc::new(Storage { key, dtype, elements, contents: None })))
    }

    fn arguments(&self, global: &Global, arguments: Slot) -> Result<Vec<Slot>> {
        match self.node(arguments) {
            Some(Node::Tuple(items)) if items.len() <= MOST_ARGUMENTS => Ok(items.clone()),
            _ => Err(self.damaged(format!("`{global}` is called with something else than a few arguments"))),
        }
    }

    fn ordered_dict(&mut self, pairs: Slot) -> Result<Node> {
        let Some(Node::List(pairs)) = self.node(pairs) else {
            return Err(self.damaged("an OrderedDict of what is no list".into()));
        };
        let pair = |pair: &Slot| match self.node(*pair) {
            Some(Node::Tuple(pair) | Node::List(pair)) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(self.damaged("an OrderedDict of what are no pairs".into())),
        };
        let pairs: Vec<_> = pairs.iter().map(pair).collect::<Result<_>>()?;
        self.hold(2 * pairs.len())?;
        Ok(Node::Dict(pairs))
    }

    fn encode(&mut self, text: Slot, encoding: Slot) -> Result<Node> {
        let (Some(Node::Str(text)), Some("latin1" | "latin-1")) = (self.node(text), self.text(encoding)) else {
            return Err(self.damaged("bytes as text of an unknown encoding".into()));
        };
        let text = text.clone();
        self.charge(text.len())?;
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
        let bytes = bytes.ok_or_else(|| self.damaged("bytes as text that is not Latin-1".into()))?;
        Ok(Node::Bytes(bytes.into()))
    }

    fn bytes_of(&self, slot: Slot) -> Result<Arc<[u8]>> {
        match self.node(slot) {
            Some(Node::Bytes(bytes)) => Ok(bytes.clone()),
            Some(Node::List(_)) => Err(self.damaged("an array of Python objects; save it with a numeric dtype".into())),
            _ => Err(self.damaged("bytes are wanted, but something else is there".into())),
        }
    }

    fn size(&self, slot: Slot) -> Result<usize> {
        let size = if let Slot::Int(size) = slot { usize::try_from(size).ok() } else { None };
        size.ok_or_else(|| self.damaged("a size that is no number from 0 up".into()))
    }

    fn dimensions(&self, slot: Slot) -> Result<Vec<usize>> {
        match self.node(slot) {
            Some(Node::Tuple(sizes) | Node::List(sizes)) if sizes.len() <= MOST_DIMENSIONS => {
                sizes.iter().map(|size| self.size(*size)).collect()
            }
            _ => Err(self.damaged(format!("a shape that is no tuple of at most {MOST_DIMENSIONS} sizes"))),
        }
    }

    fn numpy_dtype(&self, code: Slot) -> Result<Node> {
        let code = self.text(code).unwrap_or_default();
        let dtype = match code {
            "b1" => Dtype::Bool,
            "u1" => Dtype::U8,
            "i1" => Dtype::I8,
            "u2" => Dtype::U16,
            "i2" => Dtype::I16,
            "u4" => Dtype::U32,
            "i4" => Dtype::I32,
            "u8" => Dtype::U64,
            "i8" => Dtype::I64,
            "f2" => Dtype::F16,
            "f4" => Dtype::F32,
            "f8" => Dtype::F64,
            _ if code.starts_with('O') => {
                return Err(self.damaged("an array of Python objects; save it with a numeric dtype".into()));
            }
            _ => {
                let code = quoted(code);
                return Err(self.damaged(format!("an array of dtype `{code}`; save it as integers, floats or bools")));
            }
        };
        Ok(Node::Dtype(dtype, Endian::Little))
    }

    fn numpy_scalar(&mut self, dtype: Slot, bytes: Slot) -> Result<Slot> {
        let bytes = self.bytes_of(bytes)?;
        let Node::Array(scalar) = self.array(dtype, Vec::new(), bytes, Order::RowMajor)? else {
            unreachable!("`array` makes arrays");
        };
        Ok(match (scalar.dtype, scalar.i64s().as_deref()) {
            (Dtype::Bool, Some(value)) => Slot::Bool(value == [1]),
            (_, Some(&[value])) => Slot::Int(value),
            (Dtype::F64, _) => Slot::Float(scalar.bytes.first_chunk().map_or(0.0, |b| f64::from_le_bytes(*b))),
            (dtype, _) if dtype.is_float() => Slot::Float(scalar.f32s()[0].into()),
            _ => return Err(self.damaged("an integer beyond 63 bits".into())),
        })
    }

    fn order(&self, order: Slot, axes: &[Slot]) -> Result<Order> {
        match (self.text(order), axes) {
            (Some("C"), _) => Ok(Order::RowMajor),
            (Some("F"), _) => Ok(Order::ColumnMajor),
            (Some("K"), [] | [Slot::None]) => Ok(Order::RowMajor),
            (Some("K"), [axes]) => Ok(Order::Permuted(self.dimensions(*axes)?)),
            _ => Err(self.damaged("an array of an unknown order".into())),
        }
    }

    /// An array of checked size, brought into row-major and little-endian order.
    fn array(&mut self, dtype: Slot, shape: Vec<usize>, bytes: Arc<[u8]>, order: Order) -> Result<Node> {
        let Some(&Node::Dtype(dtype, endian)) = self.node(dtype) else {
            return Err(self.damaged("an array without a dtype".into()));
        };
        let elements = elements(&shape);
        let wanted = elements.and_then(|elements| elements.checked_mul(dtype.size()));
        if wanted != Some(bytes.len()) {
            let found = bytes.len();
            return Err(self.damaged(format!("{found} bytes do not fill an array of shape {shape:?} and {dtype:?}")));
        }
        let (shape, strides) = match order {
            _ if elements == Some(0) => (shape, None),
            Order::RowMajor => (shape, None),
            Order::ColumnMajor => {
                let mut strides = row_major(shape.iter().rev());
                strides.reverse();
                (shape, Some(strides))
            }
            Order::Permuted(axes) => {
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..shape.len()) {
                    return Err(self.damaged(format!("axes {axes:?} of an array of shape {shape:?}")));
                }
                let strides = row_major(shape.iter());
                let pick = |of: &[usize]| axes.iter().map(|&axis| of[axis]).collect();
                (pick(&shape), Some(pick(&strides)))
            }
        };
        let swap = endian == Endian::Big && dtype.size() > 1;
        let bytes = if swap || strides.is_some() {
            self.charge(bytes.len())?;
            let strides = strides.unwrap_or_else(|| row_major(shape.iter()));
            gather(&bytes, dtype.size(), &shape, &strides, swap).into()
        } else {
            bytes
        };
        Ok(Node::Array(Arc::new(Array { dtype, shape, bytes })))
    }

    /// The storage that a file of torch holds, which is a value of the pickle.
    fn storage_of(&mut self, bytes: Slot) -> Result<Node> {
        let bytes = self.bytes_of(bytes)?;
        // It is read once more, so it counts once more; and no file within it is read.
        self.charge(bytes.len())?;
        let nested = self
            .limits
            .nested
            .checked_sub(1)
            .ok_or_else(|| self.damaged("a file within its bytes, which is not looked into".into()))?;
        let storage = legacy::storage(&bytes, &Limits { nested, ..self.limits.clone() });
        let storage = storage.map_err(|error| self.damaged(format!("within a tensor's storage: {error}")))?;
        Ok(Node::Storage(Arc::new(storage)))
    }

    fn tensor(&mut self, version: Rebuild, arguments: &[Slot]) -> Result<Node> {
        let [storage, offset, shape, strides, rest @ ..] = arguments else {
            return Err(self.damaged("a tensor is made of too few values".into()));
        };
        let Some(Node::Storage(storage)) = self.node(*storage) else {
            return Err(self.damaged("a tensor without a storage".into()));
        };
        let dtype = match (version, rest, storage.dtype) {
            (Rebuild::V3, [_, _, Slot::Global(global), ..], stored) => match global.role {
                Role::TorchDtype(dtype) if stored.is_none_or(|stored| stored == dtype) => Some(dtype),
                _ => None,
            },
            (Rebuild::V1 | Rebuild::V2, _, stored) => stored,
            _ => None,
        };
        let dtype = dtype.ok_or_else(|| self.damaged("a tensor whose dtype does not fit its storage".into()))?;
        let (offset, shape, strides) = (self.size(*offset)?, self.dimensions(*shape)?, self.dimensions(*strides)?);
        // An untyped storage counts bytes.
        let stored = if storage.dtype.is_some() { storage.elements } else { storage.elements / dtype.size() };
        let fits = shape.len() == strides.len() && reach(offset, &shape, &strides).is_some_and(|end| end <= stored);
        if !fits || elements(&shape).is_none_or(|elements| elements > stored.max(MOST_REPEATED)) {
            let key = quoted(&storage.key);
            return Err(self.damaged(format!(
                "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} does not lie in storage `{key}` \
                 of {stored} elements"
            )));
        }
        Ok(Node::Tensor(Arc::new(Tensor { storage: storage.clone(), dtype, offset, shape, strides })))
    }
}
