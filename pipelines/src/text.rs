//! Writing to stdout and stderr. A reader that went away (`vw2-pipe stages | head`) ends no program in a panic.

use std::fmt::Display;
use std::io::{self, Write};

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

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn a_table_is_aligned_and_has_no_blanks_at_line_ends() {
        let lines = [["kind", "says"], ["slice", ""], ["a", "xyz"]].map(|line| line.map(str::to_owned));
        assert_eq!(table(&lines), "kind   says\nslice\na      xyz");
    }
}
