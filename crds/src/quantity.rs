//! Numbers that travel as text: quantities of bytes as Kubernetes writes them, and decimals.
//!
//! Kubernetes objects avoid floating point (two encoders may round it differently), so a fraction is a quoted string.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// An amount as Kubernetes writes it: `76Gi`, `400Mi`, `8e9`, `500m`; whole numbers may go without quotes.
///
/// The text is kept as it was written, so that an object that is read and written again does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::quantity))]
pub struct Quantity(pub String);

/// A number that may have a fraction, quoted then: `"0.1"`, `2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::int_or_string))]
pub struct Decimal(pub String);

impl Quantity {
    /// The amount in whole units (bytes, for memory), rounded up.
    pub fn to_u64(&self) -> Result<u64, QuantityError> {
        parse_quantity(&self.0)
    }
}

impl Decimal {
    /// The value; `None` unless the text is a plain decimal number that is not negative (`1e3` is not).
    pub fn to_f64(&self) -> Option<f64> {
        let (whole, fraction) = self.0.split_once('.').unwrap_or((&self.0, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        self.0.parse().ok()
    }
}

impl From<u32> for Decimal {
    fn from(value: u32) -> Self {
        Self(value.to_string())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client may send: the API server keeps whole numbers as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(i64),
    String(String),
}

impl IntOrString {
    fn into_string(self) -> String {
        match self {
            Self::Int(n) => n.to_string(),
            Self::String(s) => s,
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IntOrString::deserialize(deserializer).map(|v| Self(v.into_string()))
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IntOrString::deserialize(deserializer).map(|v| Self(v.into_string()))
    }
}

/// Why a text is not a [`Quantity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a known suffix.
    #[error("not a quantity; write a number with one of the suffixes Ki Mi Gi Ti Pi Ei, k M G T P E, m, or none")]
    Syntax,
    /// Amounts are never negative.
    #[error("a quantity can not be negative")]
    Negative,
    /// Above 2^64 - 1.
    #[error("the quantity is too large")]
    TooLarge,
}

/// Reads an amount as Kubernetes writes it, in whole units rounded up (`1500m` is 2): binary suffixes `Ki Mi Gi Ti Pi Ei`,
/// decimal ones `n u m k M G T P E`, exponents `1e3` and `1E3`.
pub fn parse_quantity(text: &str) -> Result<u64, QuantityError> {
    if let Some(rest) = text.strip_prefix('-') {
        return Err(parse_quantity(rest).err().unwrap_or(QuantityError::Negative));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(QuantityError::Syntax);
    }
    let (mul, exponent): (u128, i32) = match suffix {
        "" => (1, 0),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Syntax)?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
                return Err(QuantityError::Syntax);
            }
            (1, digits.parse().map_err(|_| QuantityError::TooLarge)?)
        }
    };
    // digits x mul x 10^(exponent - fraction length), exact in integers. Trailing zeros carry nothing and would overflow.
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let scaled = digits.parse::<u128>().ok().and_then(|d| d.checked_mul(mul)).ok_or(QuantityError::TooLarge)?;
    let shift = exponent.saturating_sub(i32::try_from(fraction.len()).map_err(|_| QuantityError::TooLarge)?);
    let power = 10u128.checked_pow(shift.unsigned_abs());
    let value = match (shift < 0, power) {
        (false, Some(power)) => scaled.checked_mul(power).ok_or(QuantityError::TooLarge)?,
        (false, None) => return Err(QuantityError::TooLarge),
        (true, Some(power)) => scaled.div_ceil(power),
        // Smaller than any unit, and not zero: rounded up.
        (true, None) => 1,
    };
    u64::try_from(value).map_err(|_| QuantityError::TooLarge)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", 0)]
    #[case("76Gi", 76 << 30)]
    #[case("400Mi", 400 << 20)]
    #[case("1.5Gi", 3 << 29)]
    #[case(".5Ki", 512)]
    #[case("5.", 5)]
    #[case("+7", 7)]
    #[case("1k", 1000)]
    #[case("8e9", 8_000_000_000)]
    #[case("8E9", 8_000_000_000)]
    #[case("1E", 1_000_000_000_000_000_000)]
    #[case("15Ei", 15 << 60)]
    #[case("1500m", 2)]
    #[case("1n", 1)]
    #[case("1e-40", 1)]
    #[case("0.10e1", 1)]
    #[case("000000000000000000000000000000000000000000000001", 1)]
    fn quantities_are_read_exactly(#[case] text: &str, #[case] expected: u64) {
        assert_eq!(parse_quantity(text), Ok(expected));
    }

    #[rstest]
    #[case("", QuantityError::Syntax)]
    #[case(".", QuantityError::Syntax)]
    #[case("1..2", QuantityError::Syntax)]
    #[case("1.2.3", QuantityError::Syntax)]
    #[case("Gi", QuantityError::Syntax)]
    #[case("76GB", QuantityError::Syntax)]
    #[case("76 Gi", QuantityError::Syntax)]
    #[case("76gi", QuantityError::Syntax)]
    #[case("1e", QuantityError::Syntax)]
    #[case("1e+", QuantityError::Syntax)]
    #[case("--1", QuantityError::Negative)]
    #[case("-1", QuantityError::Negative)]
    #[case("-x", QuantityError::Syntax)]
    #[case("16Ei", QuantityError::TooLarge)]
    #[case("1e20", QuantityError::TooLarge)]
    #[case("1e99999999999", QuantityError::TooLarge)]
    #[case("1e400", QuantityError::TooLarge)]
    fn what_is_no_quantity_is_refused(#[case] text: &str, #[case] expected: QuantityError) {
        assert_eq!(parse_quantity(text), Err(expected));
    }

    #[rstest]
    #[case("0.1", Some(0.1))]
    #[case("2", Some(2.0))]
    #[case("-1", None)]
    #[case("1e3", None)]
    #[case(".5", None)]
    #[case("1.", None)]
    #[case("NaN", None)]
    #[case("", None)]
    fn decimals_are_plain(#[case] text: &str, #[case] expected: Option<f64>) {
        assert_eq!(Decimal(text.to_owned()).to_f64(), expected);
    }

    #[test]
    fn whole_numbers_need_no_quotes() {
        assert_eq!(serde_json::from_str::<Quantity>("7").unwrap(), Quantity("7".into()));
        assert_eq!(serde_json::from_str::<Decimal>("\"0.1\"").unwrap(), Decimal("0.1".into()));
        assert!(serde_json::from_str::<Decimal>("0.1").is_err());
    }
}
