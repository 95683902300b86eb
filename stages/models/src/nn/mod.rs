//! Parts that the models share: initial values, linear maps, norms, causal convolution, attention, rotary positions, a tap
//! to look inside.

pub mod attention;
pub mod causal_conv3d;
pub mod init;
pub mod linear;
pub mod norm;
pub mod rotary;
pub mod tap;

pub use attention::{attend, attend_beside_zeros};
pub use causal_conv3d::CausalConv3d;
pub use init::Init;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm, standardise};
pub use rotary::Rotary;
pub use tap::Tap;
