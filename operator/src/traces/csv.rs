//! Rows of a CSV text.

use std::iter::Peekable;
use std::str::Chars;

use anyhow::bail;

/// A row: the line that it begins in, from 1 on, and its fields without quotes and outer blanks.
pub(super) type Row = (usize, Vec<String>);

/// Reads row by row. A field in quotes may hold commas, line ends, and quotes that are doubled. Blank rows are left out.
pub(super) struct Rows<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        // Some programs begin a file with a byte-order mark.
        Self { chars: text.trim_start_matches('\u{feff}').chars().peekable(), line: 1 }
    }

    /// The next row, blank or not; `None` at the end.
    fn row(&mut self) -> anyhow::Result<Option<Row>> {
        if self.chars.peek().is_none() {
            return Ok(None);
        }
        let (begin, mut fields, mut field) = (self.line, Vec::new(), String::new());
        while let Some(next) = self.chars.next() {
            match next {
                '\n' => {
                    self.line += 1;
                    break;
                }
                ',' => fields.push(std::mem::take(&mut field)),
                // Only at a field's start is it more than a character.
                '"' if field.trim().is_empty() => field = self.quoted()?,
                other => field.push(other),
            }
        }
        fields.push(field);
        Ok(Some((begin, fields.iter().map(|field| field.trim().to_owned()).collect())))
    }

    /// The rest of a field whose quote was read, up to its other one.
    fn quoted(&mut self) -> anyhow::Result<String> {
        let (begin, mut field) = (self.line, String::new());
        while let Some(next) = self.chars.next() {
            match next {
                '"' if self.chars.next_if_eq(&'"').is_none() => return Ok(field),
                '\n' => self.line += 1,
                _ => {}
            }
            field.push(next);
        }
        bail!("line {begin}: a quote is opened and not closed; close it, or delete it");
    }
}

impl Iterator for Rows<'_> {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.row() {
                Ok(Some((_, fields))) if fields.iter().all(String::is_empty) && fields.len() == 1 => {}
                row => return row.transpose(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(usize, Vec<String>)> {
        Rows::new(text).collect::<anyhow::Result<_>>().unwrap()
    }

    fn row(line: usize, fields: &[&str]) -> (usize, Vec<String>) {
        (line, fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn quotes_hold_commas_line_ends_and_quotes() {
        let text = "\u{feff}a, \"b, c\" ,d\r\n\r\n\"two\nlines\",\"say \"\"no\"\"\",\"\"\n5\" disk,x,";
        let expected =
            [row(1, &["a", "b, c", "d"]), row(3, &["two\nlines", "say \"no\"", ""]), row(5, &["5\" disk", "x", ""])];
        assert_eq!(rows(text), expected);
    }

    #[test]
    fn a_quote_that_is_not_closed_is_named_by_the_line_that_opens_it() {
        let mut rows = Rows::new("a,b\nc,\"d\ne,f\n");
        assert_eq!(rows.next().unwrap().unwrap(), row(1, &["a", "b"]));
        assert!(rows.next().unwrap().unwrap_err().to_string().starts_with("line 2: a quote is opened"));
    }
}
