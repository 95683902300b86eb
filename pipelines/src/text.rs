//! Writing to stdout and stderr. A reader that went away (`vw2-pipe stages | head`) ends no program in a panic.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Data for whoever reads stdout. Errors other than a closed pipe (a full disk behind a redirection) are told.
pub(crate) fn print(text: impl Display) -> miette::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(miette::miette!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// Talk: a line on stderr. Where even that cannot be written, nobody is left to be told.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Lines of cells as a table: columns as wide as their widest cell, two spaces apart, no blanks at line ends.
pub(crate) fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let pad = |line: &[String; N]| -> String {
        line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect()
    };
    lines.iter().map(|line| pad(line).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `1 blob`, `2 blobs`: the noun after a count.
pub(crate) fn plural(noun: &str, count: u64) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

/// `1,956,324,352`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

/// In the largest unit of which there is one.
pub(crate) fn size(size_bytes: u64) -> String {
    let (mut value, mut unit) = (size_bytes as f64, "bytes");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "bytes" { format!("{size_bytes} {unit}") } else { format!("{value:.1} {unit}") }
}

pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A length of time in the largest unit that leaves at least 2 of it.
pub(crate) fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_blanks_at_line_ends() {
        let lines = [["kind", "says"], ["slice", ""], ["a", "xyz"]].map(|line| line.map(str::to_owned));
        assert_eq!(table(&lines), "kind   says\nslice\na      xyz");
    }

    #[test]
    fn numbers_are_written_for_people() {
        let cases = [(0, "0", "0 bytes"), (1023, "1,023", "1023 bytes"), (1_356_324, "1,356,324", "1.3 MiB")];
        for (number, with_commas, as_size) in cases {
            assert_eq!((grouped(number), size(number as u64)), (with_commas.to_owned(), as_size.to_owned()));
        }
    }

    #[test]
    fn spans_are_told_in_a_fitting_unit() {
        let cases = [(-5, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_200_000, "2 h"), (172_800_000, "2 days")];
        for (ms, wanted) in cases {
            assert_eq!(span(ms), wanted);
        }
    }
}
