//! The listing of a model's parameters by published name.

use std::fmt::{Display, Write};

use burn::module::Param;
use burn::tensor::{Device, Tensor};

/// A model, or a part of one, that lists its parameters under their published names, each once.
pub trait Named {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>);
}

/// Sees each parameter of a model with its full name.
pub trait Visitor {
    /// A float parameter, or a float buffer which is stored with the weights but not trained (its gradient is off).
    fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>);

    /// The weight of a linear map, which casts it to the type of its input: it may be held in fewer bits.
    fn matrix(&mut self, name: &str, param: &mut Param<Tensor<2>>) {
        self.param(name, param);
    }

    /// A buffer of upstream that only keeps books: it is written as given, and read by nobody.
    fn note(&mut self, _name: &str, _note: &Note) {}
}

/// An integer buffer that upstream stores beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// Where a walk stands: the name so far, and who is told.
pub struct Names<'a, V> {
    prefix: String,
    visitor: &'a mut V,
}

impl<'a, V: Visitor> Names<'a, V> {
    pub fn new(visitor: &'a mut V) -> Self {
        Names { prefix: String::new(), visitor }
    }

    /// One parameter, under `name` below the place where the walk stands.
    pub fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
        let kept = self.enter(name);
        self.visitor.param(&self.prefix, param);
        self.prefix.truncate(kept);
    }

    /// As [`Names::param`], where the model may go without.
    pub fn optional<const D: usize>(&mut self, name: &str, param: &mut Option<Param<Tensor<D>>>) {
        if let Some(param) = param {
            self.param(name, param);
        }
    }

    /// As [`Names::param`], for a parameter whose every use casts it (see [`Visitor::matrix`]).
    pub fn matrix(&mut self, name: &str, param: &mut Param<Tensor<2>>) {
        let kept = self.enter(name);
        self.visitor.matrix(&self.prefix, param);
        self.prefix.truncate(kept);
    }

    pub fn note(&mut self, name: &str, note: &Note) {
        let kept = self.enter(name);
        self.visitor.note(&self.prefix, note);
        self.prefix.truncate(kept);
    }

    /// A part of the model. `name` may have several segments.
    pub fn child(&mut self, name: impl Display, part: &mut impl Named) {
        let kept = self.enter(name);
        part.walk(self);
        self.prefix.truncate(kept);
    }

    /// Numbered parts: `name.0`, `name.1`, …
    pub fn children<P: Named>(&mut self, name: &str, parts: &mut [P]) {
        for (index, part) in parts.iter_mut().enumerate() {
            self.child(format_args!("{name}.{index}"), part);
        }
    }

    fn enter(&mut self, name: impl Display) -> usize {
        let kept = self.prefix.len();
        if kept > 0 {
            self.prefix.push('.');
        }
        write!(self.prefix, "{name}").expect("writing to a string cannot fail");
        kept
    }
}

/// Names and shapes of all parameters of a model, in the order of its walk. Initialises nothing.
pub fn shapes(model: &mut impl Named) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Vec<(String, Vec<usize>)>);
    impl Visitor for Shapes {
        fn param<const D: usize>(&mut self, name: &str, param: &mut Param<Tensor<D>>) {
            self.0.push((name.to_owned(), param.lazy_shape().to_vec()));
        }
    }
    let mut seen = Shapes(Vec::new());
    model.walk(&mut Names::new(&mut seen));
    seen.0
}

/// The device on which a model's parameters lie, if it has any.
pub fn device_of(model: &mut impl Named) -> Option<Device> {
    struct Seen(Option<Device>);
    impl Visitor for Seen {
        fn param<const D: usize>(&mut self, _: &str, param: &mut Param<Tensor<D>>) {
            self.0.get_or_insert_with(|| param.lazy_device());
        }
    }
    let mut seen = Seen(None);
    model.walk(&mut Names::new(&mut seen));
    seen.0
}
