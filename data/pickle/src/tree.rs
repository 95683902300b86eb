//! From the machine's arena to one finished value.

use crate::machine::{Node, Slot};
use crate::{Error, Limits, Result, Value};

/// The tree below `root`. Shared values are copied (their bytes are not), and each copy counts; so a few values that
/// refer to each other over and over end in an error, as does one that contains itself.
pub(crate) fn build(nodes: &[Node], root: Slot, at: usize, limits: &Limits) -> Result<Value> {
    Tree { nodes, at, limits, values: 0 }.value(root, 0)
}

struct Tree<'a> {
    nodes: &'a [Node],
    at: usize,
    limits: &'a Limits,
    values: usize,
}

impl Tree<'_> {
    fn value(&mut self, slot: Slot, depth: usize) -> Result<Value> {
        let depth_limit = self.limits.depth.min(Limits::DEEPEST);
        if depth > depth_limit {
            return Err(self.limit("containers within each other", depth_limit));
        }
        let index = match slot {
            Slot::None => return Ok(Value::None),
            Slot::Bool(value) => return Ok(Value::Bool(value)),
            Slot::Int(value) => return Ok(Value::Int(value)),
            Slot::Float(value) => return Ok(Value::Float(value)),
            Slot::Global(global) => return Ok(Value::Global(global.module, global.name)),
            Slot::Node(index) => index,
        };
        let nodes = self.nodes;
        Ok(match &nodes[index as usize] {
            Node::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Node::Str(text) => Value::Str(text.clone()),
            Node::List(items) => Value::List(self.values(items, depth + 1)?),
            Node::Tuple(items) => Value::Tuple(self.values(items, depth + 1)?),
            Node::Dict(pairs) => {
                self.count(2 * pairs.len())?;
                let mut values = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    values.push((self.value(*key, depth + 1)?, self.value(*value, depth + 1)?));
                }
                Value::Dict(values)
            }
            Node::Dtype(dtype, _) => Value::Dtype(*dtype),
            Node::Array(array) => Value::Array(array.clone()),
            Node::Tensor(tensor) => Value::Tensor(tensor.clone()),
            Node::Storage(storage) => Value::Storage(storage.clone()),
            Node::NewArray | Node::NewBytesIo => {
                return Err(Error::Damaged { at: self.at, reason: "an array without its contents".into() });
            }
        })
    }

    fn values(&mut self, slots: &[Slot], depth: usize) -> Result<Vec<Value>> {
        self.count(slots.len())?;
        let mut values = Vec::with_capacity(slots.len());
        for slot in slots {
            values.push(self.value(*slot, depth)?);
        }
        Ok(values)
    }

    /// Counts the values of a container before any room is made for them.
    fn count(&mut self, values: usize) -> Result<()> {
        self.values = self.values.saturating_add(values);
        if self.values > self.limits.items {
            return Err(self.limit("values, as they contain each other again and again", self.limits.items));
        }
        Ok(())
    }

    fn limit(&self, what: &'static str, limit: usize) -> Error {
        Error::Limit { at: self.at, what, limit: limit as u64 }
    }
}
