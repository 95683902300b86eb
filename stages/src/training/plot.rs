//! A loss curve as SVG: text that any browser shows.

use std::fmt::Write;

/// A named line of (step, value).
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(u32, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Left, top, right, bottom.
const MARGIN: [f64; 4] = [64.0, 40.0, 150.0, 44.0];
const COLOURS: [&str; 4] = ["#2b6cb0", "#c05621", "#718096", "#2f855a"];

/// Draws curves over steps on a linear scale that starts at 0 or just below the smallest value.
pub(crate) fn plot_svg(title: &str, unit: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|(_, value)| value.is_finite());
    let last_step = points().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let top = points().map(|p| p.1).fold(0.0, f64::max);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() && low < 0.0 { low } else { 0.0 };
    let step = tick(top - low);
    let high = ((top / step).ceil() * step).max(low + step);
    let [left, above, right, below] = MARGIN;
    let x = |step: f64| left + step / last_step * (WIDTH - left - right);
    let y = |value: f64| HEIGHT - below - (value - low) / (high - low) * (HEIGHT - above - below);

    let mut svg = String::new();
    let mut line = |text: std::fmt::Arguments| writeln!(svg, "{text}").expect("writing to a string cannot fail");
    line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">"
    ));
    line(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"));
    line(format_args!("<text x=\"{left}\" y=\"22\" font-size=\"15\">{title}</text>"));
    let mut value = (low / step).ceil() * step;
    while value <= high + step * 1e-9 {
        let (at, end) = (y(value), WIDTH - right);
        line(format_args!("<path d=\"M{left} {at:.1}H{end}\" stroke=\"#e2e8f0\"/>"));
        line(format_args!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.4}</text>", left - 6.0, at + 4.0));
        value += step;
    }
    for part in 0..=4 {
        let at = last_step * f64::from(part) / 4.0;
        line(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0}</text>",
            x(at),
            HEIGHT - below + 18.0
        ));
    }
    line(format_args!("<text x=\"{left}\" y=\"{:.1}\" fill=\"#4a5568\">step; y: {unit}</text>", HEIGHT - 8.0));
    for (index, curve) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<String> = curve
            .points
            .iter()
            .filter(|(_, value)| value.is_finite())
            .map(|&(step, value)| format!("{:.1} {:.1}", x(f64::from(step)), y(value)))
            .collect();
        line(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            path.join(" ")
        ));
        let at = above + 14.0 + 18.0 * index as f64;
        line(format_args!(
            "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>",
            WIDTH - right + 8.0,
            curve.name
        ));
    }
    line(format_args!("</svg>"));
    svg
}

/// A round distance between grid lines: about five of them over `range`.
fn tick(range: f64) -> f64 {
    let rough = (range / 5.0).max(1e-12);
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= rough).unwrap_or(10.0);
    digit * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_lines_stand_at_round_distances() {
        for (range, want) in [(1.0, 0.2), (7.3, 2.0), (0.04, 0.01), (120.0, 50.0)] {
            assert!((tick(range) - want).abs() < 1e-12 * want.max(1.0), "{range}: {}", tick(range));
        }
    }

    #[test]
    fn every_point_lies_inside_the_picture() {
        let points = (0..50).map(|i| (i * 3, f64::from(i) * 0.1)).collect();
        let svg = plot_svg("loss", "nats", &[Curve { name: "train".into(), points }]);
        let line = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let numbers: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers.len(), 100);
        assert!(numbers.chunks(2).all(|p| (0.0..=WIDTH).contains(&p[0]) && (0.0..=HEIGHT).contains(&p[1])), "{line}");
    }
}
