//! Parts that the models share: initial values, linear maps, norms, causal convolution, rotary positions, a tap
//! to look inside, blocks that are computed again on the way back.

pub mod causal_conv3d;
pub mod cost;
pub mod init;
pub mod linear;
pub mod norm;
pub mod recompute;
pub mod rotary;
pub mod tap;

pub use causal_conv3d::CausalConv3d;
pub use init::Init;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::Rotary;
pub use tap::Tap;
