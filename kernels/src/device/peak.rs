//! What a device is and what it can do: its name and memory, and the best rates that a second of trying shows.
//!
//! Rates are those of a large matrix product and of reading and writing memory once, by the same code that models run. They
//! are what a kernel's share is a share of; a data sheet promises more.

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use rayon::prelude::*;

/// A device, as it shows itself when it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Portrait {
    /// What it calls itself; its family's name where it does not.
    pub title: String,
    /// Its memory in bytes, where it says.
    pub memory_bytes: Option<u64>,
}

/// The best rates seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Of a product of f32 matrices, two operations per multiplication.
    pub f32_gflops: f64,
    /// Of a product of bf16 matrices, where the device computes in bf16.
    pub bf16_gflops: Option<f64>,
    /// Bytes read and written per second, in 10⁹, by a pass over memory much larger than any cache.
    pub gbytes: f64,
}

/// Opens the device.
pub fn portrait(device: &Device) -> Portrait {
    let plain = device.clone().without_autodiff();
    if plain == Device::flex() {
        return Portrait { title: cpu_title(), memory_bytes: cpu_memory_bytes() };
    }
    accelerator(&plain)
}

/// Measures for about a second in all.
pub fn peak(device: &Device) -> Peak {
    let device = device.clone().without_autodiff();
    let share = Duration::from_millis(350);
    let bf16 = device != Device::flex() && device.supports_dtype(DType::BF16);
    Peak {
        f32_gflops: product_gflops(&device, FloatDType::F32, share),
        bf16_gflops: bf16.then(|| product_gflops(&device, FloatDType::BF16, share)),
        gbytes: if device == Device::flex() { copy_on_cpu(share) } else { copy_on_accelerator(&device, share) },
    }
}

/// The best of products that grow until one takes a twentieth of the time.
fn product_gflops(device: &Device, dtype: FloatDType, limit: Duration) -> f64 {
    let began = Instant::now();
    let mut best = 0.0f64;
    let mut size = 256;
    while size <= 8192 {
        let draw = || Tensor::<2>::random([size, size], Distribution::Uniform(-1.0, 1.0), device).cast(dtype);
        let (a, b) = (draw(), draw());
        let flops = 2.0 * (size as f64).powi(3);
        // The first one compiles.
        let mut seconds = timed(device, || drop(a.clone().matmul(b.clone())));
        for _ in 0..4 {
            seconds = timed(device, || drop(a.clone().matmul(b.clone())));
            best = best.max(flops / seconds / 1e9);
            if began.elapsed() > limit {
                return best;
            }
        }
        if seconds < limit.as_secs_f64() / 20.0 {
            size *= 2;
        }
    }
    best
}

/// x + 1 over 512 MiB, or as much as is left of a small device.
fn copy_on_accelerator(device: &Device, limit: Duration) -> f64 {
    let count = 1usize << 26;
    let x = Tensor::<1>::ones([count], device);
    let began = Instant::now();
    let mut best = 0.0f64;
    timed(device, || drop(x.clone() + 1.0));
    while began.elapsed() < limit {
        let seconds = timed(device, || drop(x.clone() + 1.0));
        best = best.max(8.0 * count as f64 / seconds / 1e9);
    }
    best
}

/// All threads copy 128 MiB, each its own part.
fn copy_on_cpu(limit: Duration) -> f64 {
    let count = 1usize << 25;
    let (from, mut to) = (vec![1.0f32; count], vec![0.0f32; count]);
    let part = count.div_ceil(4 * rayon::current_num_threads());
    let began = Instant::now();
    let mut best = 0.0f64;
    while best == 0.0 || began.elapsed() < limit {
        let start = Instant::now();
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&to);
        best = best.max(8.0 * count as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn timed(device: &Device, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    // A device that is lost says so where its results are read.
    device.sync().ok();
    start.elapsed().as_secs_f64()
}

#[cfg(feature = "cube")]
fn accelerator(device: &Device) -> Portrait {
    use burn::backend::DispatchDevice;
    let title = device.identity().map_or_else(|| super::numeric_class(device).to_owned(), |identity| identity.name);
    let memory_bytes = match device.as_dispatch() {
        DispatchDevice::Cube(cube) => cube.client().properties().memory.max_memory(),
        _ => None,
    };
    Portrait { title, memory_bytes }
}

#[cfg(not(feature = "cube"))]
fn accelerator(device: &Device) -> Portrait {
    Portrait { title: super::numeric_class(device).to_owned(), memory_bytes: None }
}

/// As Linux tells it; elsewhere by the number of threads alone.
fn cpu_title() -> String {
    let threads = rayon::current_num_threads();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&info, "model name").unwrap_or("CPU");
    format!("{model}, {threads} threads")
}

fn cpu_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = field(&info, "MemTotal")?.trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_system_are_read_by_their_name() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: B\nMemTotal:   24 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("24 kB"));
        assert_eq!(field(text, "model"), None);
    }

    #[test]
    fn rates_are_finite_and_not_zero() {
        let Peak { f32_gflops, bf16_gflops, gbytes } = peak(&Device::flex());
        assert!(f32_gflops.is_finite() && f32_gflops > 0.0 && gbytes.is_finite() && gbytes > 0.0);
        assert_eq!(bf16_gflops, None, "the CPU computes in f32");
        assert!(!portrait(&Device::flex()).title.is_empty());
    }
}
