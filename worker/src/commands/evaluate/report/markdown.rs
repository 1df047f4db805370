//! The report as Markdown: the same verdict and tables, without pictures.

use std::fmt::Write;

use super::super::result::Evaluation;

/// The whole report.
pub(super) fn render(evaluation: &Evaluation) -> String {
    let mut text = format!("# {}\n\n{}\n", escape(&super::title(evaluation)), escape(&super::verdict(evaluation)));
    for section in super::sections(evaluation) {
        let _ = write!(text, "\n## {}\n\n{}\n\n", section.title, escape(&section.note));
        row(&mut text, &section.header);
        let _ = writeln!(text, "|---|{}", "---:|".repeat(section.header.len().saturating_sub(1)));
        for cells in &section.rows {
            row(&mut text, cells);
        }
    }
    let _ = write!(text, "\n{}\n", escape(&super::provenance(evaluation)));
    text
}

fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.iter().map(|c| escape(c)).collect::<Vec<_>>().join(" | "));
}

/// Names come from files: none of them may become markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '|' | '<' | '>' | '*' | '_' | '`' | '[' | ']' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::evaluate::result::tests::example;

    #[test]
    fn every_row_has_the_columns_of_its_header() {
        let text = render(&example());
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut lines = text.lines().peekable();
        let mut tables = 0;
        while let Some(line) = lines.next() {
            if !line.starts_with("| profile") {
                continue;
            }
            tables += 1;
            while let Some(row) = lines.next_if(|l| l.starts_with('|')) {
                assert_eq!(columns(row), columns(line), "{row}");
            }
        }
        assert_eq!(tables, 5);
    }

    #[test]
    fn names_do_not_become_markup() {
        let text = render(&example());
        assert!(text.starts_with("# Quality of a \\<model\\> & more\n"), "{text}");
        assert!(text.contains("q4\\_1 is within the limits"));
    }
}
