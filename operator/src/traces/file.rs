//! Reading a trace from CSV.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use jiff::civil::DateTime;

use super::csv::{Row, Rows};
use super::{Arrival, LONGEST, Trace};

/// How a file writes its times.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clock {
    /// Date and time of day, without a zone (the Azure traces).
    Civil,
    /// Seconds since the start.
    Seconds,
}

/// The columns of one kind of file: its time, prompt length and answer length.
const KINDS: [(Clock, [&str; 3]); 2] = [
    (Clock::Civil, ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]),
    (Clock::Seconds, ["arrival_seconds", "prompt_tokens", "output_tokens"]),
];

impl Trace {
    /// Reads a CSV file whose first line is either `TIMESTAMP,ContextTokens,GeneratedTokens` or
    /// `arrival_seconds,prompt_tokens,output_tokens`, in any order and among other columns. The first arrival becomes 0.
    ///
    /// # Errors
    /// The file can not be read, or a line is wrong: line and column are named.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no trace", path.display()))
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// A line is wrong: line and column are named.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rows = Rows::new(text);
        let header = rows.next().ok_or_else(|| anyhow!("line 1: the file is empty; {EXPECTED}"))??;
        let (clock, columns) = columns(&header)?;
        let mut reader = Times { clock, first: None, previous: None };
        let mut arrivals = Vec::new();
        for row in rows {
            let (line, fields) = row?;
            let field = |column: usize| -> anyhow::Result<(&str, &str)> {
                let (name, index) = columns[column];
                let value = fields.get(index);
                let value =
                    value.ok_or_else(|| anyhow!("line {line}: the column {name} is missing; complete the row"))?;
                Ok((name, value.as_str()))
            };
            let (name, value) = field(0)?;
            let at = reader.read(value).with_context(|| format!("line {line}, column {name}"))?;
            let length = |column| {
                let (name, value) = field(column)?;
                length(value).with_context(|| format!("line {line}, column {name}"))
            };
            arrivals.push(Arrival { at, prompt_tokens: length(1)?, output_tokens: length(2)? });
        }
        if arrivals.is_empty() {
            bail!("line {}: there is no request; add a row for each", header.0 + 1);
        }
        Ok(Self { arrivals })
    }
}

const EXPECTED: &str =
    "begin it with TIMESTAMP,ContextTokens,GeneratedTokens or arrival_seconds,prompt_tokens,output_tokens";

/// The kind of the file, and its three columns by name and index.
fn columns((line, header): &Row) -> anyhow::Result<(Clock, [(&'static str, usize); 3])> {
    let find = |name: &str| header.iter().position(|column| column.eq_ignore_ascii_case(name));
    // A file is of the kind that it has a column of, so that the message names the one that lacks.
    let kind = KINDS.iter().find(|(_, names)| names.iter().any(|name| find(name).is_some()));
    let (clock, names) = kind.ok_or_else(|| anyhow!("line {line}: no column of a trace; {EXPECTED}"))?;
    let mut columns = [("", 0); 3];
    for (column, name) in columns.iter_mut().zip(names) {
        let index = find(name).ok_or_else(|| anyhow!("line {line}: the column {name} is missing; {EXPECTED}"))?;
        *column = (name, index);
    }
    Ok((*clock, columns))
}

/// Times relative to the first, none before the one above it.
struct Times {
    clock: Clock,
    first: Option<f64>,
    previous: Option<f64>,
}

impl Times {
    fn read(&mut self, value: &str) -> anyhow::Result<f64> {
        let at = match self.clock {
            Clock::Civil => civil_seconds(value)?,
            Clock::Seconds => seconds(value)?,
        };
        if self.previous.is_some_and(|previous| at < previous) {
            bail!("{value} is before the row above; sort the file by time");
        }
        self.previous = Some(at);
        let since = at - *self.first.get_or_insert(at);
        if since > LONGEST {
            bail!("{value} is more than a year after the first row; correct or delete the row");
        }
        Ok(since)
    }
}

fn civil_seconds(value: &str) -> anyhow::Result<f64> {
    let time: DateTime =
        value.parse().map_err(|_| anyhow!("`{value}` is not a time such as 2023-11-16 18:15:46.6805900"))?;
    // Microseconds since a day of this century keep their precision in a double.
    let since = time.duration_since(DateTime::constant(2020, 1, 1, 0, 0, 0, 0));
    Ok(since.as_secs_f64())
}

fn seconds(value: &str) -> anyhow::Result<f64> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    seconds.ok_or_else(|| anyhow!("`{value}` is not a number of seconds, 0 or more"))
}

fn length(value: &str) -> anyhow::Result<u32> {
    let tokens = value.parse::<u32>().ok().filter(|tokens| *tokens > 0);
    tokens.ok_or_else(|| anyhow!("`{value}` is not a number of tokens, 1 or more; correct or delete the row"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn azures_times_are_counted_from_the_first() {
        let trace = Trace::parse(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.7500000,396,109\n",
        );
        let arrivals = vec![
            Arrival { at: 0.0, prompt_tokens: 374, output_tokens: 44 },
            Arrival { at: 2.25, prompt_tokens: 396, output_tokens: 109 },
        ];
        assert_eq!(trace.unwrap(), Trace { arrivals });
    }

    #[test]
    fn seconds_columns_may_stand_in_any_order_with_dos_line_ends() {
        let trace = Trace::parse("output_tokens,note,prompt_tokens,arrival_seconds\r\n3,x,2,10\r\n\r\n5,y,4,11.5\r\n");
        let arrivals = vec![
            Arrival { at: 0.0, prompt_tokens: 2, output_tokens: 3 },
            Arrival { at: 1.5, prompt_tokens: 4, output_tokens: 5 },
        ];
        assert_eq!(trace.unwrap(), Trace { arrivals });
    }

    #[test]
    fn a_column_of_text_may_hold_commas_and_line_ends_in_quotes() {
        let trace = Trace::parse(
            "\"arrival_seconds\",text,prompt_tokens,output_tokens\n1,\"well, say \"\"yes\"\"\nor no\",2,3\n\"2\",x,4,5\n",
        );
        let arrivals = vec![
            Arrival { at: 0.0, prompt_tokens: 2, output_tokens: 3 },
            Arrival { at: 1.0, prompt_tokens: 4, output_tokens: 5 },
        ];
        assert_eq!(trace.unwrap(), Trace { arrivals });
    }

    #[rstest]
    #[case::empty_file("", "line 1: the file is empty")]
    #[case::other_file("a,b,c\n1,2,3", "line 1: no column of a trace")]
    #[case::missing_column("TIMESTAMP,ContextTokens\n", "line 1: the column GeneratedTokens is missing")]
    #[case::no_request("arrival_seconds,prompt_tokens,output_tokens\n", "line 2: there is no request")]
    #[case::unsorted(
        "arrival_seconds,prompt_tokens,output_tokens\n2,1,1\n1,1,1",
        "line 3, column arrival_seconds: 1 is before"
    )]
    #[case::too_late(
        "arrival_seconds,prompt_tokens,output_tokens\n1,1,1\n1e300,1,1",
        "line 3, column arrival_seconds: 1e300 is more than a year after"
    )]
    #[case::after_a_row_of_two_lines(
        "arrival_seconds,prompt_tokens,output_tokens,text\n1,4,1,\"two\nlines\"\n2,0,1,x",
        "line 4, column prompt_tokens: `0`"
    )]
    #[case::open_quote("arrival_seconds,prompt_tokens,output_tokens\n1,4,\"1", "line 2: a quote is opened")]
    #[case::negative_time(
        "arrival_seconds,prompt_tokens,output_tokens\n-1,4,1",
        "line 2, column arrival_seconds: `-1`"
    )]
    #[case::negative_output(
        "arrival_seconds,prompt_tokens,output_tokens\n1,4,-1",
        "line 2, column output_tokens: `-1`"
    )]
    #[case::negative("arrival_seconds,prompt_tokens,output_tokens\n1,-4,1", "line 2, column prompt_tokens: `-4`")]
    #[case::zero("arrival_seconds,prompt_tokens,output_tokens\n1,4,0", "line 2, column output_tokens: `0`")]
    #[case::short_row(
        "arrival_seconds,prompt_tokens,output_tokens\n1,4",
        "line 2: the column output_tokens is missing"
    )]
    #[case::not_a_time(
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1",
        "line 2, column TIMESTAMP: `yesterday`"
    )]
    #[case::not_finite("arrival_seconds,prompt_tokens,output_tokens\nNaN,4,1", "line 2, column arrival_seconds: `NaN`")]
    fn a_wrong_file_is_refused_by_line_and_column(#[case] text: &str, #[case] message: &str) {
        let error = format!("{:#}", Trace::parse(text).unwrap_err());
        assert!(error.contains(message), "{error}");
    }
}
