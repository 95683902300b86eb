//! Every kernel at its real sizes on every device of this machine: milliseconds, GB/s and GFLOP/s.
//!
//! Inputs lie on the device before the clock starts; the clock stops when the device has finished.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vw2_kernels::{KERNELS, Value, available, parse};

fn kernels(criterion: &mut Criterion) {
    for name in available() {
        let device = parse(&name).expect("every listed device opens");
        for kernel in KERNELS {
            let mut group = criterion.benchmark_group(format!("{} on {name}", kernel.name));
            group.sample_size(10);
            for case in kernel.sizes {
                let inputs: Vec<Value> =
                    (kernel.inputs)(case, 1).iter().map(|data| Value::new(data, &device)).collect();
                let cost = (kernel.cost)(case);
                let mut spent = (Duration::ZERO, 0);
                group.throughput(Throughput::BytesDecimal(cost.bytes));
                group.bench_function(BenchmarkId::from_parameter(format!("{case:?}")), |bencher| {
                    bencher.iter_custom(|runs| {
                        let start = Instant::now();
                        for _ in 0..runs {
                            std::hint::black_box((kernel.run)(case, &inputs));
                            device.sync().expect("the device finishes its work");
                        }
                        let elapsed = start.elapsed();
                        spent = (spent.0 + elapsed, spent.1 + runs);
                        elapsed
                    });
                });
                if spent.1 > 0 {
                    let gflop = (cost.flops * spent.1) as f64 / 1e9;
                    eprintln!("{:>24.1} GFLOP/s", gflop / spent.0.as_secs_f64());
                }
            }
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
