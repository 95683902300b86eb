//! Numbers and strings as the text lines of protocol 0.

/// A decimal integer; Python 2 writes an `L` behind long ones.
pub(crate) fn int(line: &[u8]) -> Option<i64> {
    str::from_utf8(line.strip_suffix(b"L").unwrap_or(line)).ok()?.trim_ascii().parse().ok()
}

pub(crate) fn float(line: &[u8]) -> Option<f64> {
    str::from_utf8(line).ok()?.trim_ascii().parse().ok()
}

/// Latin-1 with `\uXXXX` and `\UXXXXXXXX` for all else ("raw-unicode-escape").
pub(crate) fn escaped_unicode(mut line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    while let [first, rest @ ..] = line {
        let digits = match (first, rest.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(*first));
                line = rest;
                continue;
            }
        };
        text.push(char::from_u32(hex(rest.get(1..=digits)?)?)?);
        line = &rest[1 + digits..];
    }
    Some(text)
}

/// A string of Python 2 in its quotes, with the escapes that its `repr` makes.
pub(crate) fn quoted_bytes(line: &[u8]) -> Option<Vec<u8>> {
    let [quote @ (b'\'' | b'"'), inner @ .., last] = line.trim_ascii_end() else { return None };
    if last != quote {
        return None;
    }
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => u8::try_from(hex(&[*rest.next()?, *rest.next()?])?).ok()?,
                &escaped @ (b'\\' | b'\'' | b'"') => escaped,
                _ => return None,
            },
            plain => plain,
        });
    }
    Some(bytes)
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, &digit| Some(sum << 4 | char::from(digit).to_digit(16)?))
}
