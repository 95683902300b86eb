//! The kinds of accelerators: what this program can reach, and what the machine shows of it.

use burn::tensor::Device;

/// A kind of accelerator: `family:index` names one.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) built: bool,
    /// What to do where it is not built.
    pub(super) remedy: &'static str,
    /// All devices in a stable order; empty where there is no driver.
    pub(super) devices: fn() -> Vec<Found>,
    /// What its devices cannot do without and the machine does not have, and the remedy.
    pub(super) lack: fn() -> Option<(&'static str, &'static str)>,
}

pub(super) struct Found {
    pub(super) device: Device,
    /// Computes in software on the CPU: slower than `cpu`, good for tests.
    pub(super) software: bool,
}

/// The first one that shows a device is what `auto` takes.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "cuda",
        built: cfg!(feature = "cuda"),
        remedy: "build it with --features cuda",
        devices: cuda::devices,
        lack: cuda::lack,
    },
    Family {
        name: "wgpu",
        built: cfg!(feature = "wgpu"),
        remedy: "build it with --features wgpu",
        devices: wgpu::devices,
        lack: || None,
    },
];

/// The numbers of a device that is not the CPU.
#[cfg(feature = "cube")]
pub(super) fn accelerator_class(device: &Device) -> &'static str {
    use burn::backend::{CubeDevice, DispatchDevice};
    match device.as_dispatch() {
        DispatchDevice::Cube(CubeDevice::Cuda(_)) => "cuda-f32",
        _ => "wgpu-f32",
    }
}

#[cfg(not(feature = "cube"))]
pub(super) fn accelerator_class(device: &Device) -> &'static str {
    unreachable!("this build makes no device but the CPU's, yet there is {device:?}")
}

/// Devices of a type. Drivers may fail by panicking inside a binding; a machine with a broken driver has no device.
#[cfg(feature = "cube")]
fn enumerate(kind: burn::tensor::DeviceType) -> Vec<Device> {
    std::panic::catch_unwind(|| Device::enumerate(kind).into_vec()).unwrap_or_default()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Device, Found};

    /// None where there is no `libcuda`: Burn asks for it before it calls it.
    pub(super) fn devices() -> Vec<Found> {
        let listed: Vec<Device> = super::enumerate(burn::tensor::DeviceType::Cuda);
        listed.into_iter().map(|device| Found { device, software: false }).collect()
    }

    /// Kernels are compiled while the program runs, by NVRTC and against CUDA's headers.
    pub(super) fn lack() -> Option<(&'static str, &'static str)> {
        const REMEDY: &str = "install the CUDA toolkit, or the packages nvidia-cuda-nvrtc, -runtime, -cccl and -crt of \
                              PyPI with CUDA_PATH naming their folder `nvidia/cu13` and LD_LIBRARY_PATH its `lib`";
        // SAFETY: the call only tries to open libraries of that name.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            return Some(("there is no libnvrtc, which compiles kernels", REMEDY));
        }
        let headers =
            cubecl::cuda::install::cuda_path().is_some_and(|path| path.join("include/cuda_runtime.h").is_file());
        if headers { None } else { Some(("CUDA's headers, which kernels include, are not found", REMEDY)) }
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::Found;

    pub(super) fn devices() -> Vec<Found> {
        Vec::new()
    }

    pub(super) fn lack() -> Option<(&'static str, &'static str)> {
        None
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use burn::backend::{CubeDevice, DispatchDevice, WgpuDeviceKind};

    use super::Found;

    /// Software renderers come last.
    pub(super) fn devices() -> Vec<Found> {
        let listed = super::enumerate(burn::tensor::DeviceType::Wgpu).into_iter();
        let mut found: Vec<Found> = listed
            .map(|device| {
                let software = matches!(
                    device.as_dispatch(),
                    DispatchDevice::Cube(CubeDevice::Wgpu(wgpu)) if wgpu.kind == WgpuDeviceKind::Cpu
                );
                Found { device, software }
            })
            .collect();
        found.sort_by_key(|found| found.software);
        found
    }
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::Found;

    pub(super) fn devices() -> Vec<Found> {
        Vec::new()
    }
}
