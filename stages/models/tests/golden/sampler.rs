//! `sampler*`: scalings, noise levels, solvers, start noise. What of it the training's learning rate is, `losses` checks.

use std::convert::Infallible;

use vw2_models::sampler::{NumpyNormal, Scaling, Solver, TrainingSigmas, Trajectory, phi1, phi2, schedule};
use vw2_models::weights::Weights;

use super::harness::{Report, cases, open};

/// Of schedules in f64 and in f32; of scalings; of trajectories; of noise.
const EXACT: f64 = 1e-12;
const ROUNDED: f64 = 1e-6;
const PATHS: f64 = 1e-5;
const NOISE: f64 = 1e-7;

#[test]
fn sampler() {
    for case in cases("sampler") {
        let golden = open(&case, "");
        let mut report = Report::new(&case);
        scalings(&golden, &mut report);
        levels(&golden, &mut report);
        paths(&golden, &mut report);
        noise(&golden, &mut report);
        let input = |name: &str| name.contains("cfg.") || name.contains(".in.") || name == "phi.in";
        report.nothing_left_out(&golden, |name| input(name) || name.starts_with("lr.") || name == "noise.seed");
        report.finish();
    }
}

fn number(golden: &Weights, name: &str) -> f64 {
    golden.f64s(name).unwrap()[0]
}

/// Recorded as f32 of a decimal: 0.002, not 0.0020000000949949026.
fn decimal(golden: &Weights, name: &str) -> f64 {
    (number(golden, name) as f32).to_string().parse().unwrap()
}

/// The part of each name between `start` and `end`.
fn between(golden: &Weights, start: &str, end: &str) -> Vec<String> {
    let part = |name: &str| Some(name.strip_prefix(start)?.strip_suffix(end)?.to_owned());
    golden.names().filter_map(part).collect()
}

fn scalings(golden: &Weights, report: &mut Report) {
    let sigmas = golden.f64s("scaling.in.sigma").unwrap();
    let all = |of: &dyn Fn(f64) -> f64| sigmas.iter().map(|&sigma| of(sigma)).collect::<Vec<f64>>();
    for kind in between(golden, "scaling.", ".c_in") {
        let scaling = match kind.split_once("_sd").or(kind.split_once("_t")) {
            None => Scaling::RECTIFIED_FLOW,
            Some(("edm", text)) => Scaling::Edm { sigma_data: text.parse().unwrap() },
            Some((_, text)) => Scaling::RectifiedFlow { time_factor: text.parse().unwrap() },
        };
        let values: [(&str, &dyn Fn(f64) -> f64); 5] = [
            ("c_in", &|s| scaling.c_in(s)),
            ("c_out", &|s| scaling.c_out(s)),
            ("c_skip", &|s| scaling.c_skip(s)),
            ("c_noise", &|s| scaling.c_noise(s)),
            ("loss_weights", &|s| scaling.loss_weight(s)),
        ];
        for (name, of) in values {
            report.values(golden, &format!("scaling.{kind}.{name}"), all(of), ROUNDED);
        }
    }
    report.values(golden, "scaling.train_weights_sd1", all(&|s| Scaling::TRAINING.loss_weight(s)), ROUNDED);
}

fn levels(golden: &Weights, report: &mut Report) {
    let cfg = |name: &str| decimal(golden, &format!("cfg.{name}"));
    let of = |steps: usize| schedule(steps, cfg("sigma_min"), cfg("sigma_max"), cfg("rho"));
    for (start, end, tolerance) in
        [("schedule.ab2.n", ".f64", EXACT), ("schedule.ab2.n", ".f32", ROUNDED), ("schedule.rev_ts.n", "", EXACT)]
    {
        for steps in between(golden, start, end) {
            let recorded = format!("{start}{steps}{end}");
            report.values(golden, &recorded, of(steps.parse().unwrap()), tolerance);
        }
    }
    let z = golden.f64s("phi.in").unwrap();
    report.values(golden, "phi.phi1", z.iter().map(|&z| phi1(z)), EXACT);
    // Near 0 the reference loses digits in (phi1 - 1) / z: 2e-11 of the largest value here.
    report.values(golden, "phi.phi2", z.iter().map(|&z| phi2(z)), 1e-9);

    let draws = |name: &str| golden.f64s(name).unwrap();
    let with = |scale: f64, branch: f64, us: Vec<f64>| {
        let distribution = TrainingSigmas { scale, high_share: 0.5 };
        us.into_iter().map(|u| distribution.at(branch, u)).collect::<Vec<f64>>()
    };
    let (u, high) = ("train_sigma.in.u", "train_sigma.in.u_high");
    report.values(golden, "train_sigma.out.base", with(1.0, 1.0, draws(u)), EXACT);
    let scale = TrainingSigmas::video(24).scale;
    report.values(golden, "train_sigma.out.video_state_t24", with(scale, 1.0, draws(u)), EXACT);
    report.values(golden, "train_sigma.out.high", with(1.0, 0.0, draws(high)), EXACT);
}

fn paths(golden: &Weights, report: &mut Report) {
    let (a, b) = (number(golden, "cfg.a") as f32, number(golden, "cfg.b") as f32);
    let model = |x: &[f32], sigma: f64| {
        let sigma = sigma as f32;
        let scale = (1.0 + sigma * sigma).sqrt();
        Ok::<Vec<f32>, Infallible>(x.iter().map(|x| (a * x / scale + b).tanh()).collect())
    };
    let sigma_max = number(golden, "cfg.sigma_max") as f32;
    let noise: Vec<f32> = golden.f32s("traj.in.noise").unwrap().into_iter().map(|noise| sigma_max * noise).collect();
    let nfe = number(golden, "cfg.nfe") as usize;
    let limits = (decimal(golden, "cfg.sigma_min"), decimal(golden, "cfg.sigma_max"), decimal(golden, "cfg.rho"));
    for name in between(golden, "traj.", ".final") {
        // The inference loop has a name of its own for the solver that it uses.
        let kind = if name == "scheduler" { "2ab" } else { &name };
        let solver: Solver = serde_json::from_value(kind.into()).unwrap();
        let sigmas = schedule(nfe / solver.evaluations(), limits.0, limits.1, limits.2);
        if golden.contains(&format!("traj.{name}.sigmas")) {
            report.values(golden, &format!("traj.{name}.sigmas"), sigmas.clone(), EXACT);
        }
        let mut path = Trajectory::new(solver, sigmas, noise.clone());
        let (mut states, mut predictions) = (Vec::new(), Vec::new());
        let mut asked = |x: &[f32], sigma: f64| {
            let clean = model(x, sigma)?;
            predictions.extend(clean.iter().copied().map(f64::from));
            Ok::<_, Infallible>(clean)
        };
        while path.step(&mut asked).unwrap() {
            states.extend(path.state().iter().copied().map(f64::from));
        }
        report.values(golden, &format!("traj.{name}.states"), states, PATHS);
        if golden.contains(&format!("traj.{name}.x0_preds")) {
            report.values(golden, &format!("traj.{name}.x0_preds"), predictions, PATHS);
        }
        let end = path.finish(model).unwrap().into_iter().map(f64::from);
        report.values(golden, &format!("traj.{name}.final"), end, PATHS);
    }
}

fn noise(golden: &Weights, report: &mut Report) {
    for (name, seed) in [("noise.out", golden.i64s("noise.seed").unwrap()[0]), ("noise.seed0", 0)] {
        let count = golden.shape(name).unwrap().iter().product();
        let ours = NumpyNormal::new(seed as u32).take(count).into_iter().map(f64::from);
        report.values(golden, name, ours, NOISE);
    }
}
