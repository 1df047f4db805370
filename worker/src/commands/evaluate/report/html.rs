//! The report as one HTML file: no scripts, nothing loaded from elsewhere, readable in light and dark.

use std::fmt::Write;

use super::{super::result::Evaluation, plot};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8886;--soft:#8882}\
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
.verdict{border-left:4px solid #3b82c4;padding:.5rem 1rem;background:var(--soft)}\
.table{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}\
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}\
svg{max-width:100%;height:auto;margin:1rem 1rem 0 0}\
svg text{fill:currentColor;font:12px system-ui,sans-serif}\
.axis{stroke:currentColor;stroke-opacity:.4}\
footer{margin-top:2rem;font-size:.85rem;opacity:.8}";

/// The whole report.
pub(super) fn render(evaluation: &Evaluation) -> String {
    let title = escape(&super::title(evaluation));
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p class=\"verdict\">{}</p>\n",
        escape(&super::verdict(evaluation))
    );
    for section in super::sections(evaluation) {
        let _ = write!(
            text,
            "<h2>{}</h2>\n<p>{}</p>\n<div class=\"table\"><table>\n",
            section.title,
            escape(&section.note)
        );
        row(&mut text, "th", &section.header);
        for cells in &section.rows {
            row(&mut text, "td", cells);
        }
        text.push_str("</table></div>\n");
        for kind in section.plots {
            text.push_str(&plot::render(kind, evaluation));
        }
    }
    let _ = write!(text, "<footer>{}</footer>\n</body>\n</html>\n", escape(&super::provenance(evaluation)));
    text
}

fn row(text: &mut String, tag: &str, cells: &[String]) {
    text.push_str("<tr>");
    for cell in cells {
        let _ = write!(text, "<{tag}>{}</{tag}>", escape(cell));
    }
    text.push_str("</tr>\n");
}

/// Names come from files: none of them may become markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::evaluate::result::tests::example;

    /// Checks that tags are closed in the order in which they were opened, and attributes quoted.
    fn well_formed(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        for piece in html.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("not closed: <{piece}"));
            assert!(!text.contains('>'), "a bare > in {text}");
            if tag.starts_with('!') {
                continue;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closed in another order");
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap());
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    #[test]
    fn a_report_is_well_formed_and_stands_alone() {
        let html = render(&example());
        well_formed(&html);
        for outside in ["<script", "http://", "https://", "<link", "<img", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("color-scheme:light dark"));
    }

    #[test]
    fn a_report_holds_every_figure_of_its_tables_and_the_verdict_first() {
        let evaluation = example();
        let html = render(&evaluation);
        for cell in super::super::sections(&evaluation).iter().flat_map(|s| s.rows.iter().flatten()) {
            assert!(html.contains(&format!("<td>{}</td>", escape(cell))), "{cell}");
        }
        let comparison = &evaluation.profiles[1].comparison;
        for figure in [
            format!("{:.4}", comparison.perplexity.value),
            format!("{:.6}", comparison.divergence.value),
            format!("{:.6}", comparison.divergences.p999),
            format!("{:.3}", comparison.rms_probability_change_percent.value),
        ] {
            assert!(html.contains(&figure), "{figure}");
        }
        assert!(html.find("class=\"verdict\"").unwrap() < html.find("<table>").unwrap());
        assert_eq!(
            html.matches("<svg").count(),
            5,
            "perplexity, divergence, distinct-n, a needle grid for each profile"
        );
    }

    #[test]
    fn names_do_not_become_markup() {
        let html = render(&example());
        assert!(html.contains("a &lt;model&gt; &amp; more") && !html.contains("<model>"));
    }

    #[test]
    fn a_report_without_answers_has_no_empty_parts() {
        let mut evaluation = example();
        evaluation.profiles.iter_mut().for_each(|p| p.generation = None);
        let html = render(&evaluation);
        well_formed(&html);
        assert!(!html.contains("Long context") && !html.contains("distinct"));
    }
}
