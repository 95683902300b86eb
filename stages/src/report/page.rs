//! A report as text: Markdown, and a page for a browser with the same tables and some pictures.

use std::fmt::Write;

use super::figures::{Figure, METHODS};

/// What a group's table is called.
const GROUPS: [(&str, &str); 3] = [
    ("codes", "Codes"),
    ("ar", "Next code, on held-out videos"),
    ("motion", "True motion from codes, each video by a map fitted on others"),
];

/// A table: its title, its head, its rows.
type Table = (String, Vec<String>, Vec<Vec<String>>);

/// The report in Markdown; warnings stand first.
pub(super) fn markdown(figures: &[Figure], warnings: &[String]) -> String {
    let mut text = String::new();
    let mut line = |of: std::fmt::Arguments<'_>| writeln!(text, "{of}").expect("writing to a string cannot fail");
    for warning in warnings {
        line(format_args!("**Warning:** {warning}.\n"));
    }
    for (index, (title, head, rows)) in tables(figures).into_iter().enumerate() {
        if index > 0 {
            line(format_args!(""));
        }
        line(format_args!("### {title}\n"));
        line(format_args!("| {} |", head.join(" | ")));
        line(format_args!("|{}", " --- |".repeat(head.len())));
        rows.iter().for_each(|row| line(format_args!("| {} |", row.join(" | "))));
    }
    text
}

/// The report as HTML. `pictures`: a clip's id, and its picture's path below the page.
pub(super) fn html(figures: &[Figure], warnings: &[String], pictures: &[(String, String)]) -> String {
    let mut text = String::from(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Report</title>\n<style>body { font-family: sans-serif; margin: 2em }
td, th { padding: 0.2em 0.8em; text-align: left } td + td { text-align: right } img { image-rendering: pixelated }
</style>\n",
    );
    let mut line = |of: std::fmt::Arguments<'_>| writeln!(text, "{of}").expect("writing to a string cannot fail");
    for warning in warnings {
        line(format_args!("<p><b>Warning:</b> {}.</p>", escaped(warning)));
    }
    for (title, head, rows) in tables(figures) {
        line(format_args!("<h3>{}</h3>\n<table>", escaped(&title)));
        let cells = |tag: &str, cells: &[String]| {
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect::<String>()
        };
        line(format_args!("<tr>{}</tr>", cells("th", &head)));
        rows.iter().for_each(|row| line(format_args!("<tr>{}</tr>", cells("td", row))));
        line(format_args!("</table>"));
    }
    if !pictures.is_empty() {
        line(format_args!("<h3>Clips: the true frames, and below them those of each way in the table's order</h3>"));
    }
    for (id, path) in pictures {
        line(format_args!("<p>{}<br><img src=\"{}\" alt=\"\"></p>", escaped(id), escaped(path)));
    }
    text
}

fn tables(figures: &[Figure]) -> Vec<Table> {
    let mut tables = Vec::new();
    let value = |of: &str, name: &str| {
        figures
            .iter()
            .find(|figure| figure.group == "drawing" && figure.of == of && figure.name == name)
            .map(|figure| figure.value)
    };
    let drawn = METHODS.iter().filter_map(|(method, called)| {
        let clips = value(method, "clips")?;
        let (psnr, together) = (value(method, "psnr_db")?, value(method, "psnr_of_all_db")?);
        let ssim = value(method, "ssim")?;
        let sharpness = value(method, "sharpness")?;
        Some(vec![
            (*called).to_owned(),
            format!("{clips:.0}"),
            format!("{psnr:.2}"),
            format!("{together:.2}"),
            format!("{ssim:.3}"),
            format!("{sharpness:.2}"),
        ])
    });
    let head = ["drawn by", "clips", "PSNR (dB), mean of clips", "of all pixels", "SSIM", "sharpness (truth = 1)"]
        .map(str::to_owned)
        .to_vec();
    tables.push(("Frames after the first".to_owned(), head, drawn.collect()));
    for (group, title) in GROUPS {
        let rows: Vec<Vec<String>> = figures
            .iter()
            .filter(|figure| figure.group == group)
            .map(|figure| {
                let of = if figure.of.is_empty() { String::new() } else { format!(", {}", figure.of) };
                vec![format!("{}{of}", figure.name.replace('_', " ")), number(figure.value)]
            })
            .collect();
        if !rows.is_empty() {
            tables.push((title.to_owned(), vec!["figure".into(), "value".into()], rows));
        }
    }
    tables
}

/// Counts without a point, others with three digits after it.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Vec<Figure> {
        let figure = |group, of: &str, name, value| Figure { group, of: of.into(), name, value };
        vec![
            figure("drawing", "coarse", "clips", 2.0),
            figure("drawing", "coarse", "psnr_db", 20.5),
            figure("drawing", "coarse", "psnr_of_all_db", 19.25),
            figure("drawing", "coarse", "ssim", 0.5),
            figure("drawing", "coarse", "sharpness", 0.25),
            figure("codes", "", "codes_used", 120.0),
            figure("motion", "state 0", "r_squared", 0.8125),
        ]
    }

    #[test]
    fn each_group_has_its_table() {
        let text = markdown(&figures(), &["few codes".to_owned()]);
        for line in [
            "**Warning:** few codes.",
            "| dLDM decoder | 2 | 20.50 | 19.25 | 0.500 | 0.25 |",
            "| codes used | 120 |",
            "| r squared, state 0 | 0.812 |",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        assert!(!text.contains("Next code"), "a group without figures has no table");
    }

    #[test]
    fn names_cannot_break_the_page() {
        let page = html(&figures(), &[], &[("<b>&\"".to_owned(), "pictures/a.png".to_owned())]);
        assert!(page.contains("&lt;b&gt;&amp;&quot;<br><img src=\"pictures/a.png\""), "{page}");
    }
}
