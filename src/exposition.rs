//! Metrics in Prometheus' text format (version 0.0.4), for servers and agents alike.

use std::fmt::Write as _;

/// The type of what is served.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// What every name begins with.
const PREFIX: &str = "natpunch_";

/// A text in the making.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    /// A family of metrics: samples follow.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}"
        );
    }

    /// A sample of the family. Labels' values are this program's own words, or names that are DNS
    /// labels: nothing to escape.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut shown = String::new();
        for (label, word) in labels {
            let comma = if shown.is_empty() { "" } else { "," };
            let _ = write!(shown, "{comma}{label}=\"{word}\"");
        }
        if !shown.is_empty() {
            shown = format!("{{{shown}}}");
        }
        let _ = writeln!(self.0, "{PREFIX}{name}{shown} {value}");
    }

    /// A family of one gauge.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value as f64);
    }

    /// The text.
    pub(crate) fn text(self) -> String {
        self.0
    }
}

/// How often something took how long.
#[derive(Debug, Clone)]
pub(crate) struct Histogram<const N: usize> {
    /// Upper bounds in seconds, rising.
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    pub(crate) const fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [0; N],
            count: 0,
            sum: 0.0,
        }
    }

    /// Counts one that took so many seconds.
    pub(crate) fn observe(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        for (bound, count) in self.bounds.iter().zip(&mut self.counts) {
            *count += u64::from(seconds <= *bound);
        }
    }

    /// Writes its samples down. The family is the caller's to begin.
    pub(crate) fn render(&self, name: &str, to: &mut Exposition) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            to.sample(&bucket, &[("le", &bound.to_string())], *count as f64);
        }
        to.sample(&bucket, &[("le", "+Inf")], self.count as f64);
        to.sample(&format!("{name}_sum"), &[], self.sum);
        to.sample(&format!("{name}_count"), &[], self.count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_below_each_bound_and_all_of_it() {
        let mut histogram = Histogram::new([0.5, 2.0]);
        for seconds in [0.25, 1.0, 1.5, 60.0] {
            histogram.observe(seconds);
        }
        let mut text = Exposition::default();
        text.family("x_seconds", "histogram", "X.");
        histogram.render("x_seconds", &mut text);
        assert_eq!(
            text.text(),
            "# HELP natpunch_x_seconds X.\n# TYPE natpunch_x_seconds histogram\n\
             natpunch_x_seconds_bucket{le=\"0.5\"} 1\nnatpunch_x_seconds_bucket{le=\"2\"} 3\n\
             natpunch_x_seconds_bucket{le=\"+Inf\"} 4\nnatpunch_x_seconds_sum 62.75\nnatpunch_x_seconds_count 4\n"
        );
    }
}
