//! Prometheus' text format.

use std::ops::Range;

/// One look at a worker's `/metrics`: lines of `name{labels} value`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    text: String,
    /// Where in the text each series stands, labels included, and its value: two hundred series are one allocation.
    series: Vec<(Range<usize>, f64)>,
}

impl Metrics {
    /// Reads the text format; what is no sample is skipped.
    pub fn parse(text: &str) -> Self {
        let mut series = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            series.extend(sample(line).map(|(at, value)| (start + at.start..start + at.end, value)));
            start += line.len();
        }
        Self { text: text.to_owned(), series }
    }

    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.series.iter().filter_map(move |(at, value)| {
            let labels = self.text[at.clone()].strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        })
    }

    /// Sum of a metric over all its labels; `None` if it is absent.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.of(name).map(|(_, value)| value).reduce(|a, b| a + b)
    }

    /// The mean of a metric over all its labels; `None` if it is absent.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let count = self.of(name).count();
        self.sum(name).map(|sum| sum / count as f64)
    }

    /// The highest value of a metric over all its labels; `None` if it is absent.
    pub fn highest(&self, name: &str) -> Option<f64> {
        self.of(name).map(|(_, value)| value).reduce(f64::max)
    }

    /// The label `key` of the first series of a metric whose value is above 0.
    pub fn label_where_positive(&self, name: &str, key: &str) -> Option<String> {
        let (labels, _) = self.of(name).find(|(_, value)| *value > 0.0)?;
        Some(labels.split_once(&format!("{key}=\""))?.1.split_once('"')?.0.to_owned())
    }

    /// Sum over the series with the label `key="value"`.
    pub fn labelled(&self, name: &str, key: &str, value: &str) -> Option<f64> {
        let wanted = format!("{key}=\"{value}\"");
        self.of(name).filter(|(labels, _)| labels.contains(&wanted)).map(|(_, value)| value).reduce(|a, b| a + b)
    }

    /// Cumulated counts of a histogram by upper bound, in rising order.
    pub(super) fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        let name = format!("{name}_bucket");
        for (labels, count) in self.of(&name) {
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
            let Some(bound) = bound else { continue };
            match buckets.iter_mut().find(|(other, _)| other.total_cmp(&bound).is_eq()) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// Where in a line the series stands, and its value.
fn sample(line: &str) -> Option<(Range<usize>, f64)> {
    let begin = line.len() - line.trim_start().len();
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    // Labels may hold spaces; the value comes after the last brace, and a timestamp may follow it.
    let split = line.rfind('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
    let (name, rest) = line.split_at(split);
    Some((begin..begin + name.trim_end().len(), rest.split_whitespace().next()?.parse().ok()?))
}
