//! "auto" | "cpu" | "wgpu:0" to a Burn device. Probes, never panics.
//!
//! The CPU is always there. An accelerator is there if this program was built with its feature and the machine shows it.
//! `auto` takes the first accelerator, else the CPU; a software renderer counts as no accelerator, but may be named.

use burn::tensor::Device;

/// Why a name gives no device. Each message says what there is instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error(
        "device `{name}` is unknown; write auto, cpu, or a family with an index, as in wgpu:0; here are: {present}"
    )]
    Unknown { name: String, present: String },
    #[error("device `{name}`: this program was built without {family}; {remedy}; here are: {present}")]
    NotBuilt { name: String, family: String, remedy: &'static str, present: String },
    #[error("device `{name}`: this machine shows {count} {family} devices; here are: {present}")]
    Absent { name: String, family: String, count: usize, present: String },
}

/// A kind of accelerator: `family:index` names one.
struct Family {
    name: &'static str,
    built: bool,
    /// What to do where it is not built.
    remedy: &'static str,
    /// All devices in a stable order; empty where there is no driver.
    devices: fn() -> Vec<Found>,
}

struct Found {
    device: Device,
    /// Computes in software on the CPU: slower than `cpu`, good for tests.
    software: bool,
}

const FAMILIES: &[Family] = &[
    Family {
        name: "cuda",
        built: false,
        remedy: "this version has no CUDA build yet, take wgpu or cpu",
        devices: Vec::new,
    },
    Family {
        name: "wgpu",
        built: cfg!(feature = "wgpu"),
        remedy: "build it with --features wgpu",
        devices: wgpu_devices,
    },
];

/// The device of that name: `auto`, `cpu`, or `family:index` (`family` alone means index 0).
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    match name {
        "cpu" => return Ok(Device::flex()),
        "auto" => {
            let hardware = FAMILIES.iter().flat_map(|family| (family.devices)()).find(|found| !found.software);
            return Ok(hardware.map_or_else(Device::flex, |found| found.device));
        }
        _ => {}
    }
    let (family, index) = name.split_once(':').unwrap_or((name, "0"));
    let present = || available().join(", ");
    let unknown = || DeviceError::Unknown { name: name.to_owned(), present: present() };
    let family = FAMILIES.iter().find(|known| known.name == family).ok_or_else(unknown)?;
    let index: usize = index.parse().map_err(|_| unknown())?;
    let (owned, title) = (name.to_owned(), family.name.to_owned());
    if !family.built {
        return Err(DeviceError::NotBuilt { name: owned, family: title, remedy: family.remedy, present: present() });
    }
    let mut devices = (family.devices)();
    if index >= devices.len() {
        let count = devices.len();
        return Err(DeviceError::Absent { name: owned, family: title, count, present: present() });
    }
    Ok(devices.swap_remove(index).device)
}

/// Names that [`parse`] accepts here and now, the CPU first.
pub fn available() -> Vec<String> {
    let mut names = vec!["cpu".to_owned()];
    for family in FAMILIES {
        names.extend((0..(family.devices)().len()).map(|index| format!("{}:{index}", family.name)));
    }
    names
}

/// What decides the last bits of a result: the backend's family and its float type. Part of every fingerprint of
/// computed tensors, so that a store never mixes them.
pub fn numeric_class(device: &Device) -> &'static str {
    let plain = device.clone().without_autodiff();
    if plain == Device::flex() { "flex-f32" } else { accelerator_class(&plain) }
}

#[cfg(feature = "wgpu")]
fn accelerator_class(_device: &Device) -> &'static str {
    "wgpu-f32"
}

#[cfg(not(feature = "wgpu"))]
fn accelerator_class(device: &Device) -> &'static str {
    unreachable!("this build makes no device but the CPU's, yet there is {device:?}")
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices() -> Vec<Found> {
    Vec::new()
}

#[cfg(feature = "wgpu")]
fn wgpu_devices() -> Vec<Found> {
    use burn::backend::{CubeDevice, WgpuDeviceKind};
    use burn::tensor::DeviceType;

    // Drivers may fail by panicking inside wgpu; a machine with a broken driver has no wgpu device.
    let listed =
        std::panic::catch_unwind(|| Device::enumerate(DeviceType::Wgpu)).map(|list| list.into_iter().collect());
    let listed: Vec<Device> = listed.unwrap_or_default();
    let mut found: Vec<Found> = listed
        .into_iter()
        .map(|device| {
            let software = matches!(
                device.as_dispatch(),
                burn::backend::DispatchDevice::Cube(CubeDevice::Wgpu(wgpu)) if wgpu.kind == WgpuDeviceKind::Cpu
            );
            Found { device, software }
        })
        .collect();
    found.sort_by_key(|found| found.software);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(parse("cpu"), Ok(Device::flex()));
        assert_eq!(available()[0], "cpu");
        assert!(parse("auto").is_ok());
        assert_eq!(numeric_class(&Device::flex()), "flex-f32");
        assert_eq!(numeric_class(&Device::flex().autodiff()), "flex-f32");
    }

    #[test]
    fn every_name_that_is_listed_parses() {
        for name in available() {
            assert!(parse(&name).is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_give_no_device_say_why() {
        let message = |name: &str| parse(name).expect_err(name).to_string();
        for name in ["", "gpu", "cpu:0", "wgpu:x", "wgpu:-1"] {
            assert!(message(name).contains("is unknown; write auto, cpu"), "{}", message(name));
        }
        assert!(message("cuda:0").contains("built without cuda"), "{}", message("cuda:0"));
        let wgpu = message("wgpu:9999");
        let reason = if cfg!(feature = "wgpu") { "this machine shows" } else { "build it with --features wgpu" };
        assert!(wgpu.contains(reason) && wgpu.contains("here are: cpu"), "{wgpu}");
    }
}
