//! Parts that the models share: initial values, linear maps, norms, causal convolution, attention, a tap to look inside.

pub mod attention;
pub mod causal_conv3d;
pub mod init;
pub mod linear;
pub mod tap;

pub use attention::attend;
pub use causal_conv3d::{CausalConv3d, convolve};
pub use init::Init;
pub use linear::{LayerNorm, Linear};
pub use tap::Tap;
