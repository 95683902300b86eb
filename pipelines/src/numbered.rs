//! Names that differ in numbers only, as one: `blocks.{0..27}.mlp.weight` stands for 28.

use std::collections::BTreeMap;

/// Names as one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Numbers that take several values as `{0..2,5}`, ends included. The names are exactly all combinations.
    pub(crate) pattern: String,
    pub(crate) count: usize,
    /// The smallest name, for sorting.
    pub(crate) first: Order,
}

/// A name that sorts as people count: `x.2` before `x.10`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Number(u64),
    Text(String),
}

/// As few patterns as there are, in the order of their smallest names.
pub(crate) fn collapse<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Run> {
    let mut alike: BTreeMap<Vec<Option<String>>, Vec<Vec<u64>>> = BTreeMap::new();
    for name in names {
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        for piece in pieces(name) {
            match piece {
                Piece::Text(text) => texts.push(Some(text)),
                Piece::Number(number) => {
                    texts.push(None);
                    numbers.push(number);
                }
            }
        }
        alike.entry(texts).or_default().push(numbers);
    }
    let mut runs = Vec::new();
    for (texts, mut numbers) in alike {
        numbers.sort();
        runs.extend(products(numbers).into_iter().map(|sets| run(&texts, &sets)));
    }
    runs.sort_by(|a, b| a.first.cmp(&b.first));
    runs
}

fn pieces(name: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = name;
    while let Some(start) = rest.chars().next() {
        let is_number = start.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_number).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        // `007` is no number to count with.
        let number = piece.parse().ok().filter(|number: &u64| number.to_string() == piece);
        pieces.push(number.map_or_else(|| Piece::Text(piece.to_owned()), Piece::Number));
        rest = after;
    }
    pieces
}

/// Splits sorted tuples of equal length into products of sets: every tuple is in exactly one.
fn products(tuples: Vec<Vec<u64>>) -> Vec<Vec<Vec<u64>>> {
    if tuples.first().is_none_or(Vec::is_empty) {
        return vec![Vec::new()];
    }
    let mut rests: BTreeMap<u64, Vec<Vec<u64>>> = BTreeMap::new();
    for tuple in tuples {
        rests.entry(tuple[0]).or_default().push(tuple[1..].to_vec());
    }
    let mut sets: BTreeMap<Vec<Vec<u64>>, Vec<u64>> = BTreeMap::new();
    for (first, rest) in rests {
        sets.entry(rest).or_default().push(first);
    }
    let put = |firsts: &[u64], rest: Vec<Vec<u64>>| [vec![firsts.to_vec()], rest].concat();
    sets.into_iter().flat_map(|(rest, firsts)| products(rest).into_iter().map(move |rest| put(&firsts, rest))).collect()
}

fn run(texts: &[Option<String>], sets: &[Vec<u64>]) -> Run {
    let (mut pattern, mut first, mut sets_left) = (String::new(), Vec::new(), sets.iter());
    for text in texts {
        match (text, sets_left.clone().next()) {
            (None, Some(set)) => {
                pattern += &written(set);
                first.push(Piece::Number(set[0]));
                sets_left.next();
            }
            (text, _) => {
                let text = text.clone().unwrap_or_default();
                pattern += &text;
                first.push(Piece::Text(text));
            }
        }
    }
    Run { pattern, count: sets.iter().map(Vec::len).product(), first: Order(first) }
}

/// `{0..2,5}`, or the number itself where it is the only one.
fn written(set: &[u64]) -> String {
    if let [number] = set {
        return number.to_string();
    }
    let spans = set.chunk_by(|a, b| a + 1 == *b).map(|span| match span {
        [first, .., last] => format!("{first}..{last}"),
        _ => span[0].to_string(),
    });
    format!("{{{}}}", spans.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_numbers_are_one_pattern_which_gives_exactly_them() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, usize)]);
        let cases: &[Case<'_>] = &[
            (&["a.weight"], &[("a.weight", 1)]),
            (&["x.10", "x.9", "x.11"], &[("x.{9..11}", 3)]),
            (&["x.0.a", "x.1.a", "x.5.a", "x.0.b"], &[("x.{0..1,5}.a", 3), ("x.0.b", 1)]),
            (&["x.0.0", "x.0.1", "x.1.0", "x.1.1"], &[("x.{0..1}.{0..1}", 4)]),
            (&["x.0.0", "x.0.1", "x.1.0"], &[("x.0.{0..1}", 2), ("x.1.0", 1)]),
            (&["conv1d.0", "conv3d.0"], &[("conv{1,3}d.0", 2)]),
            (&["x.007", "x.7"], &[("x.7", 1), ("x.007", 1)]),
            (&["b.block2", "b.block10"], &[("b.block{2,10}", 2)]),
            (&["", "é1", "18446744073709551616"], &[("", 1), ("18446744073709551616", 1), ("é1", 1)]),
        ];
        for (names, wanted) in cases {
            let runs = collapse(names.iter().copied());
            let found: Vec<(&str, usize)> = runs.iter().map(|run| (run.pattern.as_str(), run.count)).collect();
            assert_eq!(found, *wanted, "{names:?}");
        }
    }
}
