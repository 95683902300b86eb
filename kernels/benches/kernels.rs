//! Every kernel at its real sizes on every device of this machine: milliseconds, GB/s, GFLOP/s, and what part of the
//! device's own best rates that is.
//!
//! Inputs lie on the device before the clock starts; the clock stops when the device has finished. The best rates are
//! measured at the start, by a large matrix product and a copy; the larger of a kernel's two parts says what bounds it.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vw2_kernels::device::{self, Peak};
use vw2_kernels::{Cost, KERNELS, Value, available, parse};

fn kernels(criterion: &mut Criterion) {
    for name in available() {
        let device = parse(&name).expect("every listed device opens");
        let peak = device::peak(&device);
        eprintln!(
            "{name}: {}: {:.0} GFLOP/s, {:.1} GB/s",
            device::portrait(&device).title,
            peak.f32_gflops,
            peak.gbytes
        );
        for kernel in KERNELS {
            let mut group = criterion.benchmark_group(format!("{} on {name}", kernel.name));
            group.sample_size(10);
            for case in kernel.sizes {
                let inputs: Vec<Value> =
                    (kernel.inputs)(case, 1).iter().map(|data| Value::new(data, &device)).collect();
                let cost = (kernel.cost)(case);
                let mut best = Duration::MAX;
                group.throughput(Throughput::BytesDecimal(cost.bytes));
                group.bench_function(BenchmarkId::from_parameter(format!("{case:?}")), |bencher| {
                    bencher.iter_custom(|runs| {
                        let start = Instant::now();
                        for _ in 0..runs {
                            let began = Instant::now();
                            std::hint::black_box((kernel.run)(case, &inputs));
                            device.sync().expect("the device finishes its work");
                            best = best.min(began.elapsed());
                        }
                        start.elapsed()
                    });
                });
                if best < Duration::MAX {
                    eprintln!("{}", told(best, cost, peak));
                }
            }
        }
    }
}

/// The best time, and what it comes to.
fn told(best: Duration, cost: Cost, peak: Peak) -> String {
    let seconds = best.as_secs_f64();
    let (gbytes, gflops) = (cost.bytes as f64 / 1e9 / seconds, cost.flops as f64 / 1e9 / seconds);
    let part = |rate: f64, of: f64| 100.0 * rate / of;
    format!(
        "{:>24.3} ms, {gbytes:.1} GB/s ({:.0} %), {gflops:.1} GFLOP/s ({:.0} %)",
        seconds * 1e3,
        part(gbytes, peak.gbytes),
        part(gflops, peak.f32_gflops)
    )
}

criterion_group!(benches, kernels);
criterion_main!(benches);
