//! Names of devices, "auto" | "cpu" | "wgpu:0" | "cuda:0", and Burn devices for them. Probes, never panics.
//!
//! The CPU is always there. An accelerator is there if this program was built with its feature and the machine shows it.
//! `auto` takes the first accelerator, else the CPU; a software renderer counts as no accelerator, but may be named.
//! Several devices are a list with commas, `cuda:0,cuda:1`, or all of a family, `cuda:*`.

mod family;
mod peak;

use burn::tensor::Device;

pub use peak::{Peak, Portrait, peak, portrait};

use family::{FAMILIES, Found};

/// Why a name gives no device. Each message says what there is instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error(
        "device `{name}` is unknown; write auto, cpu, or a family with an index, as in wgpu:0, or with a star for all of \
         it; here are: {present}"
    )]
    Unknown { name: String, present: String },
    #[error("device `{name}`: this program was built without {family}; {remedy}; here are: {present}")]
    NotBuilt { name: String, family: String, remedy: &'static str, present: String },
    #[error("device `{name}`: this machine shows {count} {family} devices; here are: {present}")]
    Absent { name: String, family: String, count: usize, present: String },
    #[error("device `{name}`: {lack}; {remedy}; here are: {present}")]
    Unready { name: String, lack: &'static str, remedy: &'static str, present: String },
    #[error("devices `{first}` and `{other}` compute with other last bits; name devices of one family")]
    Mixed { first: String, other: String },
}

/// The device of that name: `auto`, `cpu`, or `family:index` (`family` alone means index 0).
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    find(name).map(|(_, device)| device)
}

/// The devices of a list, by names that [`parse`] takes: commas taken apart, stars and `auto` replaced by what is here.
/// A device may stand in it twice. All of them give the same numbers, those of the class that is returned with them.
pub fn list(names: &str) -> Result<(Vec<String>, &'static str), DeviceError> {
    let mut found = Vec::new();
    for name in names.split(',').map(str::trim) {
        match name.strip_suffix(":*") {
            None => found.push(find(name)?),
            Some(family) => {
                // The first one is asked for by name, so that its absence is told.
                found.push(find(family)?);
                for index in 1.. {
                    match find(&format!("{family}:{index}")) {
                        Ok(next) => found.push(next),
                        Err(_) => break,
                    }
                }
            }
        }
    }
    let class = numeric_class(&found[0].1);
    if let Some((other, _)) = found.iter().find(|(_, device)| numeric_class(device) != class) {
        return Err(DeviceError::Mixed { first: found[0].0.clone(), other: other.clone() });
    }
    Ok((found.into_iter().map(|(name, _)| name).collect(), class))
}

/// Names that [`parse`] accepts here and now, the CPU first.
pub fn available() -> Vec<String> {
    let mut names = vec!["cpu".to_owned()];
    for family in FAMILIES {
        if (family.lack)().is_none() {
            names.extend((0..(family.devices)().len()).map(|index| format!("{}:{index}", family.name)));
        }
    }
    names
}

/// Families of which no device can be used, and why.
pub fn absent() -> Vec<(&'static str, String)> {
    let why = |family: &family::Family| {
        if !family.built {
            return Some(format!("this program was built without it; {}", family.remedy));
        }
        let count = (family.devices)().len();
        match (family.lack)() {
            _ if count == 0 => Some("this machine shows none".to_owned()),
            Some((lack, remedy)) => Some(format!("this machine shows {count}, but {lack}; {remedy}")),
            None => None,
        }
    };
    FAMILIES.iter().filter_map(|family| Some((family.name, why(family)?))).collect()
}

/// What decides the last bits of a result: the backend's family and its float type. Part of every fingerprint of
/// computed tensors, so that a store never mixes them.
pub fn numeric_class(device: &Device) -> &'static str {
    let plain = device.clone().without_autodiff();
    if plain == Device::flex() { "flex-f32" } else { family::accelerator_class(&plain) }
}

/// The device, and its name in full.
fn find(name: &str) -> Result<(String, Device), DeviceError> {
    let cpu = || ("cpu".to_owned(), Device::flex());
    match name {
        "cpu" => return Ok(cpu()),
        "auto" => {
            for family in FAMILIES {
                let hardware = (family.devices)().into_iter().enumerate().find(|(_, found)| !found.software);
                if let Some((index, found)) = hardware {
                    let name = format!("{}:{index}", family.name);
                    return ready(family, &name).map(|()| (name.clone(), found.device));
                }
            }
            return Ok(cpu());
        }
        _ => {}
    }
    let (family, index) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || DeviceError::Unknown { name: name.to_owned(), present: present() };
    let family = FAMILIES.iter().find(|known| known.name == family).ok_or_else(unknown)?;
    let index: usize = index.parse().map_err(|_| unknown())?;
    let (owned, title) = (name.to_owned(), family.name.to_owned());
    if !family.built {
        return Err(DeviceError::NotBuilt { name: owned, family: title, remedy: family.remedy, present: present() });
    }
    let mut devices: Vec<Found> = (family.devices)();
    if index >= devices.len() {
        let count = devices.len();
        return Err(DeviceError::Absent { name: owned, family: title, count, present: present() });
    }
    ready(family, name)?;
    Ok((format!("{title}:{index}"), devices.swap_remove(index).device))
}

/// Whether kernels can be compiled for devices of the family.
fn ready(family: &family::Family, name: &str) -> Result<(), DeviceError> {
    match (family.lack)() {
        None => Ok(()),
        Some((lack, remedy)) => Err(DeviceError::Unready { name: name.to_owned(), lack, remedy, present: present() }),
    }
}

fn present() -> String {
    available().join(", ")
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
            assert_eq!(list(&name).map(|(names, _)| names), Ok(vec![name.clone()]));
        }
    }

    #[test]
    fn a_list_names_each_device_and_the_class_of_all() {
        assert_eq!(list("cpu"), Ok((vec!["cpu".to_owned()], "flex-f32")));
        assert_eq!(list("cpu, cpu"), Ok((vec!["cpu".to_owned(); 2], "flex-f32")));
        for name in available().into_iter().filter(|name| name.ends_with(":0")) {
            let family = name.trim_end_matches("0");
            let (all, _) = list(&format!("{family}*")).expect("there is one at least");
            let wanted: Vec<String> = available().into_iter().filter(|name| name.starts_with(family)).collect();
            assert_eq!(all, wanted);
            let mixed = list(&format!("cpu,{name}")).expect_err("two classes");
            assert_eq!(mixed, DeviceError::Mixed { first: "cpu".to_owned(), other: name });
        }
    }

    #[test]
    fn names_that_give_no_device_say_why() {
        let message = |name: &str| list(name).expect_err(name).to_string();
        for name in ["", "gpu", "cpu:0", "wgpu:x", "wgpu:-1", "cpu,", "gpu:*", "cpu,gpu"] {
            assert!(message(name).contains("is unknown; write auto, cpu"), "{}", message(name));
        }
        for (family, built) in [("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))] {
            let told = message(&format!("{family}:9999"));
            let reason =
                if built { "this machine shows".to_owned() } else { format!("build it with --features {family}") };
            assert!(told.contains(&reason) && told.contains("here are: cpu"), "{told}");
        }
    }
}
