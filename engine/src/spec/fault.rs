//! What is wrong with a pipeline's TOML: every fault of the file at once, each with its place and a remedy.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, SourceCode};

/// The text that faults point into.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// As the user named it.
    pub name: String,
    pub text: Arc<str>,
}

impl SourceText {
    /// Line and column of a byte, both from 1; columns count characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(byte)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl SourceCode for SourceText {
    fn read_span<'a>(
        &'a self,
        span: &miette::SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let text = self.text.as_bytes().read_span(span, before, after)?;
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.name.clone(),
            text.data(),
            *text.span(),
            text.line(),
            text.column(),
            text.line_count(),
        )))
    }
}

/// All faults of one file, in the file's order.
#[derive(Clone, Debug)]
pub struct SpecErrors {
    source: SourceText,
    faults: Vec<SpecError>,
}

/// One fault. Public only through [`SpecErrors`].
#[derive(Clone, Debug)]
pub struct SpecError {
    message: String,
    /// Where, and what to say there; `None` for what is missing, or was given on the command line.
    label: Option<(Range<usize>, String)>,
    help: Option<String>,
}

impl SpecErrors {
    pub fn len(&self) -> usize {
        self.faults.len()
    }

    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// One line each, `file:line:column: message; remedy`, for logs.
    pub fn lines(&self) -> Vec<String> {
        let line = |fault: &SpecError| {
            let at = fault.label.as_ref().map(|(span, _)| self.source.position(span.start));
            let at = at.map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
            let help = fault.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
            format!("{}{at}: {}{help}", self.source.name, fault.message)
        };
        self.faults.iter().map(line).collect()
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "`{}` has {count} error{}", self.source.name, if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for SpecErrors {}

impl Diagnostic for SpecErrors {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.faults.iter().map(|fault| fault as &dyn Diagnostic)))
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SpecError {}

impl Diagnostic for SpecError {
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (span, text) = self.label.as_ref()?;
        let text = (!text.is_empty()).then(|| text.clone());
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(text, span.clone()))))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// Collects faults.
pub(crate) struct Faults {
    source: SourceText,
    faults: Vec<SpecError>,
}

impl Faults {
    pub(crate) fn new(source: SourceText) -> Faults {
        Faults { source, faults: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        at: Option<Range<usize>>,
        label: impl Into<String>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let label = at.map(|span| (span, label.into()));
        self.faults.push(SpecError { message: message.into(), label, help });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// `Err` with all faults, in the file's order; those without a place come last.
    pub(crate) fn check(self) -> Result<(), SpecErrors> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let Faults { source, mut faults } = self;
        faults.sort_by_key(|fault| fault.label.as_ref().map_or(usize::MAX, |(span, _)| span.start));
        Err(SpecErrors { source, faults })
    }
}

/// "did you mean": the name that a slip of the fingers may have turned into `word`.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let distance = |name: &'a str| (strsim::damerau_levenshtein(word, name), name);
    names.into_iter().map(distance).filter(|(steps, _)| *steps <= allowed).min().map(|(_, name)| name)
}

/// The help that goes with [`nearest`].
pub(crate) fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, names).map(|name| format!("did you mean `{name}`?"))
}

/// Names in a row, for messages: `a, b, c`.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}
