//! A tap: lets a test see the tensors between the layers, under the published module paths. Costs nothing when off.

use std::fmt::Arguments;

use burn::tensor::{Tensor, TensorData};

/// Who is told of a tensor and its name.
type See<'a> = dyn FnMut(&str, TensorData) + 'a;

/// Told of intermediate tensors, in the order in which they arise. A name comes again where a module runs again.
pub struct Tap<'a>(Option<&'a mut See<'a>>);

impl<'a> Tap<'a> {
    pub fn off() -> Tap<'static> {
        Tap(None)
    }

    pub fn new(see: &'a mut See<'a>) -> Tap<'a> {
        Tap(Some(see))
    }

    /// A tensor in published layout.
    pub fn see<const D: usize>(&mut self, name: Arguments<'_>, tensor: impl FnOnce() -> Tensor<D>) {
        if let Some(see) = &mut self.0 {
            see(&name.to_string(), tensor().into_data());
        }
    }

    /// A tensor with frames first, `[B, T, C, H, W]`; it is shown as published, `[B, C, T, H, W]`.
    pub fn frames(&mut self, name: Arguments<'_>, x: &Tensor<5>) {
        self.see(name, || x.clone().swap_dims(1, 2));
    }
}
