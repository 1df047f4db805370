//! Percentiles of any number of values in constant memory.

/// Values counted in buckets whose bounds grow by 5 %, from a tenth of a millisecond to days.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

const LEAST: f64 = 1e-4;
const GROWTH: f64 = 1.05;
const BUCKETS: usize = 460;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    /// Counts a value, in seconds.
    pub fn add(&mut self, value: f64) {
        let place = if value <= LEAST { 0.0 } else { ((value / LEAST).ln() / GROWTH.ln()).floor() };
        self.counts[(place as usize).min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The value that a share `q` (0 to 1) of all values does not exceed, within 2.5 %; 0 without values.
    pub fn quantile(&self, q: f64) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        let rank = ((q * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return LEAST * GROWTH.powf(place as f64 + 0.5);
            }
        }
        LEAST * GROWTH.powf(BUCKETS as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_their_bucket() {
        let mut histogram = Histogram::default();
        for i in 1..=1000 {
            histogram.add(f64::from(i) / 100.0);
        }
        for (q, exact) in [(0.5, 5.0), (0.95, 9.5), (0.99, 9.9)] {
            let value = histogram.quantile(q);
            assert!((value / exact - 1.0).abs() < 0.03, "{q}: {value}");
        }
    }

    #[test]
    fn values_beyond_the_ends_are_counted_at_the_ends() {
        let mut histogram = Histogram::default();
        histogram.add(0.0);
        histogram.add(1e30);
        assert_eq!(histogram.count(), 2);
        assert!(histogram.quantile(0.1) < 2.0 * LEAST && histogram.quantile(1.0) > 86_400.0);
    }
}
