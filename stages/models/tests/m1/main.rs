use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeSet;
use vw2_models::{dldm::*, train::*};
fn clip(rng: &mut StdRng, b: usize, s: usize, t: usize, a: &Device) -> Tensor<5> { let mut v = vec![-0.8f32; b * 3 * t * s * s];
    let k = s as f32 / 32.0;
    for bi in 0..b { let (mut x, mut y) = (rng.random_range(4.0..20.0f32) * k, rng.random_range(4.0..20.0f32) * k); let (dx, dy) = (k * rng.random_range(-0.8..0.8f32), k * rng.random_range(-0.8..0.8f32));
      for ti in 0..t { x += dx; y += dy; for yy in 0..s { for xx in 0..s { if (xx as f32 - x).abs() < 4.0 * k && (yy as f32 - y).abs() < 4.0 * k { for ch in 0..3 { v[(((bi * 3 + ch) * t) + ti) * s * s + yy * s + xx] = 0.3 * ch as f32 + 0.2; } } } } } }
    Tensor::<5>::from_data(TensorData::new(v, [b, 3, t, s, s]), a) }
fn stats(m: &Dldm, x: Tensor<5>) -> String {
    let e = m.encode(x).unwrap();
    let [b, n, d] = e.query.dims();
    let q: Vec<f32> = e.query.into_data().try_into_vec().unwrap();
    let mut within = 0.0; for i in 0..n * d { let c: Vec<f32> = (0..b).map(|k| q[k * n * d + i]).collect(); let m = c.iter().sum::<f32>() / b as f32; within += (c.iter().map(|v| (v - m).powi(2)).sum::<f32>() / b as f32) / (n * d) as f32; }
    let mean = q.iter().sum::<f32>() / q.len() as f32; let all = q.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / q.len() as f32;
    let i: Vec<i64> = e.indices.into_data().convert::<i64>().try_into_vec().unwrap();
    let hc = e.h.clone(); let hmean = hc.clone().mean_dim(0); let hw = (hc - hmean).square().mean().into_scalar::<f32>().sqrt();
    let h: Vec<f32> = e.h.into_data().try_into_vec().unwrap(); let hm = h.iter().sum::<f32>() / h.len() as f32; let hv = h.iter().map(|v| (v - hm).powi(2)).sum::<f32>() / h.len() as f32;
    format!("query std across clips {:.4}, overall {:.4}; distinct {}; h std {:.3} across clips {hw:.3}", within.sqrt(), all.sqrt(), i.iter().collect::<BTreeSet<_>>().len(), hv.sqrt())
}
#[test]
fn fresh() {
    let d = Device::flex(); let mut rng = StdRng::seed_from_u64(1);
    let x = clip(&mut rng, 8, 64, 17, &d);
    for seed in 0..3 { eprintln!("fresh seed {seed}: {}", stats(&Dldm::new(&DldmConfig::preset("tiny").unwrap(), &d, seed).unwrap(), x.clone())); }
}
#[test]
fn learns() {
    if std::env::var_os("LEARN").is_none() { return; }
    use burn::module::Module;
    let a = Device::flex().autodiff();
    let mut rng = StdRng::seed_from_u64(1);
    let c = DldmConfig::preset("tiny").unwrap();
    let mut m = Dldm::new(&c, &a, 1).unwrap();
    let mut o = AdamW::new(AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 });
    let held = clip(&mut StdRng::seed_from_u64(99), 8, 64, 17, &Device::flex());
    let still = (held.clone().narrow(2, 0, 1) - held.clone()).abs().mean().into_scalar::<f32>();
    let t0 = std::time::Instant::now();
    for step in 0..300 {
        let x = clip(&mut rng, 2, 64, 17, &a);
        let (r, _) = m.reconstruct(x.clone()).unwrap();
        let l = (r - x.clone()).abs().mean();
        let mut g = Grads::of(&l, &mut m);
        g.clip(1.0, |_| true);
        o.step(&mut m, &g, 1e-3 * (1.0f64).min((step + 1) as f64 / 20.0));
        if step % 25 == 24 { let v = m.valid(); let l = (v.reconstruct(held.clone()).unwrap().0 - held.clone()).abs().mean().into_scalar::<f32>(); eprintln!("step {step} {:.0}s held {l:.4} still {still:.4} {}", t0.elapsed().as_secs_f64(), stats(&v, held.clone())); }
    }
}
