//! Which kernels a piece of work launches, by the names that they give themselves.
//!
//! A kernel is named by the path of its type: `vw2_kernels::ops::fsq::cube::quantise::Quantise` is the one that the macro
//! makes of the function `quantise`. All threads and devices are watched.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::dry_run::DryRun;
use cubecl::logging::{LaunchObservation, LaunchObserver};

/// Does the work, and says what was launched meanwhile.
pub fn watch<R>(work: impl FnOnce() -> R) -> (R, BTreeSet<&'static str>) {
    let seen = Arc::new(Seen::default());
    let watching = LaunchObservation::new(seen.clone());
    let result = work();
    drop(watching);
    let names = std::mem::take(&mut *seen.0.lock().unwrap_or_else(PoisonError::into_inner));
    (result, names)
}

/// As [`watch`], but what is launched is only compiled and then dropped, on all devices: results mean nothing.
pub fn watch_dry(work: impl FnOnce()) -> BTreeSet<&'static str> {
    let dry = DryRun::new();
    let ((), names) = watch(work);
    drop(dry);
    names
}

/// The function behind a kernel of this crate; `None` for a kernel of another.
pub fn own_function(kernel: &'static str) -> Option<&'static str> {
    let path = kernel.split('<').next().unwrap_or(kernel);
    if !path.starts_with("vw2_kernels::") {
        return None;
    }
    path.rsplit("::").nth(1)
}

#[derive(Default)]
struct Seen(Mutex<BTreeSet<&'static str>>);

impl LaunchObserver for Seen {
    fn launched(&self, kernel: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_our_own_is_known_by_its_function() {
        assert_eq!(own_function("vw2_kernels::ops::fsq::cube::quantise::Quantise"), Some("quantise"));
        assert_eq!(own_function("vw2_kernels::ops::norm::cube::rows::Rows<half::bf16, f32>"), Some("rows"));
        assert_eq!(own_function("burn_cubecl::kernel::cast::base::cast_element::CastElement<f32>"), None);
    }
}
