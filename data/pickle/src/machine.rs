//! The stack machine: one operation after the other, into an arena.
//!
//! Values lie in the arena and refer to each other by number. So neither sharing nor nesting costs anything here,
//! cycles are harmless, and nothing is dropped by recursion; `tree.rs` then builds the finished value, and counts.

use std::collections::HashMap;
use std::sync::Arc;

use crate::globals::{self, Global};
use crate::input::Input;
use crate::text;
use crate::{Array, Dtype, Error, Limits, Result, Storage, Tensor};

/// A value on the stack or in a container.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Global(&'static Global),
    Node(u32),
}

/// A value that has an identity: it may be referred to twice, and some may change after that.
pub(crate) enum Node {
    Bytes(Arc<[u8]>),
    Str(Arc<str>),
    List(Vec<Slot>),
    Tuple(Vec<Slot>),
    Dict(Vec<(Slot, Slot)>),
    Dtype(Dtype, Endian),
    Array(Arc<Array>),
    Tensor(Arc<Tensor>),
    Storage(Arc<Storage>),
    /// A numpy array whose contents are still to come.
    NewArray,
    /// An `io.BytesIO` whose contents are still to come.
    NewBytesIo,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Endian {
    Little,
    Big,
}

pub(crate) struct Machine<'a> {
    pub(crate) nodes: Vec<Node>,
    /// Where the operation stands that is being done.
    pub(crate) at: usize,
    input: Input<'a>,
    pub(crate) limits: &'a Limits,
    stack: Vec<Slot>,
    /// Heights of the stack at which the open containers begin.
    marks: Vec<usize>,
    memo: HashMap<u64, Slot>,
    /// Values that were put into containers so far.
    held: usize,
    /// Bytes that may still be stored.
    bytes_left: usize,
}

/// Runs the pickle at the start of `bytes`; gives all its values, the one it stands for, and its length in bytes.
pub(crate) fn run(bytes: &[u8], limits: &Limits) -> Result<(Vec<Node>, Slot, usize)> {
    // Every string lies in the input. It is stored once, once more where it is text that stands for bytes, and once
    // more where these have to be turned into another order.
    let bytes_left = limits.total_bytes.min(bytes.len().saturating_mul(3));
    let mut machine = Machine {
        nodes: Vec::new(),
        at: 0,
        input: Input::new(bytes),
        limits,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        held: 0,
        bytes_left,
    };
    for _ in 0..limits.operations {
        if let Some(root) = machine.step()? {
            return Ok((machine.nodes, root, machine.input.at()));
        }
    }
    Err(machine.limit("operations", limits.operations))
}

impl Machine<'_> {
    /// One operation; the result when it was the last.
    fn step(&mut self) -> Result<Option<Slot>> {
        self.at = self.input.at();
        let [operation] = self.input.array()?;
        match operation {
            // What is around the values.
            0x80 => {
                let [protocol] = self.input.array()?;
                if protocol > 5 {
                    return Err(self.damaged(format!("protocol {protocol}; 0 to 5 can be read, so save it with 5")));
                }
            }
            0x95 => {
                let length = self.input.number::<8>()?;
                self.input.expect(length)?;
            }
            b'.' => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(self.damaged("the pickle ends within a list or tuple".into()));
                }
                return Ok(Some(root));
            }

            // Plain values.
            b'N' => self.push(Slot::None)?,
            0x88 => self.push(Slot::Bool(true))?,
            0x89 => self.push(Slot::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.push(Slot::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.input.array()?;
                self.push(Slot::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.input.array()?);
                self.push(Slot::Int(value.into()))?;
            }
            0x8a => {
                let bytes = self.input.counted::<1>()?;
                self.long(bytes)?;
            }
            0x8b => {
                let bytes = self.input.counted::<4>()?;
                self.long(bytes)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.input.array()?);
                self.push(Slot::Float(value))?;
            }
            b'I' | b'L' | b'F' => {
                let line = self.input.line()?;
                let number = match operation {
                    b'F' => text::float(line).map(Slot::Float),
                    // Protocol 0 has no other way to write a bool.
                    b'I' if line == b"00" => Some(Slot::Bool(false)),
                    b'I' if line == b"01" => Some(Slot::Bool(true)),
                    _ => text::int(line).map(Slot::Int),
                };
                self.push(number.ok_or_else(|| self.damaged("this is no number of at most 64 bits".into()))?)?;
            }

            // Strings. What Python 2 called a string may be either; bytes can still be read as text.
            b'X' => {
                let bytes = self.input.counted::<4>()?;
                self.str(bytes)?;
            }
            0x8c => {
                let bytes = self.input.counted::<1>()?;
                self.str(bytes)?;
            }
            0x8d => {
                let bytes = self.input.counted::<8>()?;
                self.str(bytes)?;
            }
            b'V' => {
                let line = self.input.line()?;
                let text = text::escaped_unicode(line).ok_or_else(|| self.damaged("an escape is broken".into()))?;
                self.str(text.as_bytes())?;
            }
            b'C' | b'U' => {
                let bytes = self.input.counted::<1>()?;
                self.bytes(bytes)?;
            }
            b'B' | b'T' => {
                let bytes = self.input.counted::<4>()?;
                self.bytes(bytes)?;
            }
            0x8e | 0x96 => {
                let bytes = self.input.counted::<8>()?;
                self.bytes(bytes)?;
            }
            b'S' => {
                let line = self.input.line()?;
                let bytes =
                    text::quoted_bytes(line).ok_or_else(|| self.damaged("a string's quotes are broken".into()))?;
                self.bytes(&bytes)?;
            }
            // Whether a buffer may be written to makes no difference here.
            0x98 => _ = self.top()?,
            0x97 => {
                return Err(
                    self.damaged("its data lies outside of the pickle; save it without `buffer_callback`".into())
                );
            }

            // Containers.
            b'(' => {
                // An open container may also have its function's arguments open.
                if self.marks.len() >= 2 * self.limits.depth {
                    return Err(self.limit("containers within each other", self.limits.depth));
                }
                self.marks.push(self.stack.len());
            }
            b')' => self.push_node(Node::Tuple(Vec::new()))?,
            b']' | 0x8f => self.push_node(Node::List(Vec::new()))?,
            b'}' => self.push_node(Node::Dict(Vec::new()))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(operation - 0x84))?;
                self.push_node(Node::Tuple(items))?;
            }
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::List(items))?;
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::Dict(Vec::new()))?;
                self.set_items(items)?;
            }
            b'a' => {
                let item = self.pop_many(1)?;
                self.append(item)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(pair)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }

            // The stack and the memo.
            b'0' if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
            b'0' => _ = self.pop()?,
            b'1' => {
                let height = self.mark()?;
                self.stack.truncate(height);
            }
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'h' => {
                let index = self.input.number::<1>()?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.input.number::<4>()?;
                self.recall(index)?;
            }
            b'g' => {
                let index = self.line_index()?;
                self.recall(index)?;
            }
            b'q' => {
                let index = self.input.number::<1>()?;
                self.memorize(index)?;
            }
            b'r' => {
                let index = self.input.number::<4>()?;
                self.memorize(index)?;
            }
            b'p' => {
                let index = self.line_index()?;
                self.memorize(index)?;
            }
            0x94 => self.memorize(self.memo.len() as u64)?,

            // Names and calls.
            b'c' => {
                let global = self.line_global()?;
                self.push(Slot::Global(global))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.text(module), self.text(name)) else {
                    return Err(self.damaged("a name is not a string".into()));
                };
                let global = globals::find(self.at, module, name)?;
                self.push(Slot::Global(global))?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.call(function, arguments)?;
                self.push(made)?;
            }
            0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                let made = self.instance(class, arguments)?;
                self.push(made)?;
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                self.set_state(object, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            b'i' => {
                let global = self.line_global()?;
                return Err(self.damaged(format!("an old-style object of `{global}`, which no data is made of")));
            }
            b'o' | 0x92 => return Err(self.damaged("an object of a class, which no data is made of".into())),
            b'P' => return Err(self.damaged("a reference to something outside the file, which no data has".into())),
            0x82..=0x84 => {
                return Err(self.damaged("a name by number, which only the program that wrote it knows".into()));
            }
            other => {
                return Err(self.damaged(format!("there is no operation 0x{other:02x}; this is no pickle, or damaged")));
            }
        }
        Ok(None)
    }

    /// Puts a new value into the arena.
    pub(crate) fn add(&mut self, node: Node) -> Result<Slot> {
        let count = self.nodes.len();
        if count >= self.limits.items {
            return Err(self.limit("values", self.limits.items));
        }
        if let Node::List(items) | Node::Tuple(items) = &node {
            self.hold(items.len())?;
        }
        self.nodes.push(node);
        Ok(Slot::Node(u32::try_from(count).map_err(|_| self.limit("values", self.limits.items))?))
    }

    pub(crate) fn node(&self, slot: Slot) -> Option<&Node> {
        let Slot::Node(index) = slot else { return None };
        self.nodes.get(index as usize)
    }

    pub(crate) fn text(&self, slot: Slot) -> Option<&str> {
        match self.node(slot)? {
            Node::Str(text) => Some(text),
            Node::Bytes(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Takes bytes from what may be stored.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.limits.bytes {
            return Err(self.limit("bytes in one string or array", self.limits.bytes));
        }
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or_else(|| self.damaged("its arrays repeat each other beyond measure".into()))?;
        Ok(())
    }

    /// Takes values from what containers may hold.
    pub(crate) fn hold(&mut self, items: usize) -> Result<()> {
        self.held = self.held.saturating_add(items);
        if self.held > self.limits.items {
            return Err(self.limit("values in containers", self.limits.items));
        }
        Ok(())
    }

    pub(crate) fn damaged(&self, reason: String) -> Error {
        Error::Damaged { at: self.at, reason }
    }

    fn limit(&self, what: &'static str, limit: usize) -> Error {
        Error::Limit { at: self.at, what, limit: limit as u64 }
    }

    fn push(&mut self, slot: Slot) -> Result<()> {
        if self.stack.len() >= self.limits.items {
            return Err(self.limit("values on the stack", self.limits.items));
        }
        self.stack.push(slot);
        Ok(())
    }

    fn push_node(&mut self, node: Node) -> Result<()> {
        let slot = self.add(node)?;
        self.push(slot)
    }

    fn long(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > 8 {
            let reason = format!("an integer of {} bytes; 8 is the most that can be read", bytes.len());
            return Err(self.damaged(reason));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = if negative { [0xFF; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Slot::Int(i64::from_le_bytes(wide)))
    }

    fn str(&mut self, bytes: &[u8]) -> Result<()> {
        self.charge(bytes.len())?;
        let text = str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8".into()))?;
        self.push_node(Node::Str(text.into()))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.charge(bytes.len())?;
        self.push_node(Node::Bytes(bytes.into()))
    }

    fn line_index(&mut self) -> Result<u64> {
        let line = self.input.line()?;
        let index = text::int(line).and_then(|index| index.try_into().ok());
        index.ok_or_else(|| self.damaged("this is no number of a stored value".into()))
    }

    fn line_global(&mut self) -> Result<&'static Global> {
        let (module, name) = (self.input.line()?, self.input.line()?);
        globals::find(self.at, &String::from_utf8_lossy(module), &String::from_utf8_lossy(name))
    }

    /// Height of the stack from which on it may be taken from: no value before the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Slot> {
        let top = self.stack[self.floor()..].last().copied();
        top.ok_or_else(|| self.damaged("a value is wanted, but there is none".into()))
    }

    fn pop(&mut self) -> Result<Slot> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Slot>> {
        let found = self.stack.len() - self.floor();
        if found < count {
            return Err(self.damaged(format!("{count} values are wanted, but there are {found}")));
        }
        Ok(self.stack.drain(self.stack.len() - count..).collect())
    }

    fn mark(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(|| self.damaged("a container ends that was not begun".into()))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Slot>> {
        let height = self.mark()?;
        Ok(self.stack.drain(height..).collect())
    }

    fn top_node(&mut self) -> Result<Option<&mut Node>> {
        let Slot::Node(index) = self.top()? else { return Ok(None) };
        Ok(self.nodes.get_mut(index as usize))
    }

    fn append(&mut self, new: Vec<Slot>) -> Result<()> {
        self.hold(new.len())?;
        match self.top_node()? {
            Some(Node::List(items)) => items.extend(new),
            _ => return Err(self.damaged("something is appended to what is no list".into())),
        }
        Ok(())
    }

    fn set_items(&mut self, new: Vec<Slot>) -> Result<()> {
        self.hold(new.len())?;
        let (new, rest) = new.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.damaged("a key without a value".into()));
        }
        match self.top_node()? {
            Some(Node::Dict(pairs)) => pairs.extend(new.iter().map(|[key, value]| (*key, *value))),
            _ => return Err(self.damaged("a key is set in what is no dictionary".into())),
        }
        Ok(())
    }

    fn memorize(&mut self, index: u64) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() >= self.limits.memo {
            return Err(self.limit("stored values", self.limits.memo));
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        let slot = self.memo.get(&index).copied();
        self.push(slot.ok_or_else(|| self.damaged(format!("value {index} is referred to, but none was stored there")))?)
    }
}
