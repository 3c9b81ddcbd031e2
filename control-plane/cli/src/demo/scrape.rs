//! Reading `/metrics`: the Prometheus text format, as far as counting and quantiles need it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::web::Caller;

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Everything one process counted, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// In the order written.
    pub samples: Vec<Sample>,
    /// As it came.
    pub text: String,
}

impl Scrape {
    /// Reads a process's telemetry port.
    ///
    /// # Errors
    /// When it does not answer with metrics.
    pub async fn of(telemetry: &Caller) -> Result<Self> {
        let answer = telemetry.get("localhost", "/metrics", &[]).await?;
        if answer.status != 200 {
            bail!("/metrics answered {}", answer.shown());
        }
        Ok(Self::parse(&String::from_utf8_lossy(&answer.body)))
    }

    /// Reads the text format; lines that are no samples are left out.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(sample).collect(), text: text.to_owned() }
    }

    /// The sum over all members of a family that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// The members of a family that carry these labels.
    pub fn with<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name && labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|found| found == v))
        })
    }

    /// Upper bounds and cumulative counts of a histogram, over all members with these labels.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let bucket = format!("{name}_bucket");
        let mut bounds: Vec<(f64, f64)> = Vec::new();
        for sample in self.with(&bucket, labels) {
            let Some(le) = sample.labels.get("le").and_then(|le| number(le)) else { continue };
            match bounds.iter_mut().find(|(bound, _)| *bound == le) {
                Some((_, count)) => *count += sample.value,
                None => bounds.push((le, sample.value)),
            }
        }
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        bounds
    }
}

/// The value below which `share` (0..1) of a histogram lies, interpolated within its bucket as Prometheus does; `None`
/// when it counted nothing.
pub fn quantile(share: f64, histogram: &[(f64, f64)]) -> Option<f64> {
    let total = histogram.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = share * total;
    let mut lower = (0.0, 0.0);
    for &(bound, count) in histogram {
        if count >= rank {
            if bound.is_infinite() || count <= lower.1 {
                return Some(lower.0);
            }
            return Some(lower.0 + (bound - lower.0) * (rank - lower.1) / (count - lower.1));
        }
        lower = (bound, count);
    }
    None
}

/// What a histogram counted since an earlier scrape of it.
pub fn since(later: &[(f64, f64)], earlier: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let before = |bound: f64| earlier.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, count)| *count);
    later.iter().map(|&(bound, count)| (bound, (count - before(bound)).max(0.0))).collect()
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok(),
    }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (name, rest) = match line.split_once('{') {
        Some((name, rest)) => (name, Some(rest)),
        None => (line.split_whitespace().next()?, None),
    };
    let Some(rest) = rest else {
        return Some(Sample {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            value: number(line.split_whitespace().nth(1)?)?,
        });
    };
    let (labels, rest) = labels(rest)?;
    Some(Sample { name: name.to_owned(), labels, value: number(rest.split_whitespace().next()?)? })
}

/// Reads `name="value",...}` and returns what follows.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => text.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => text.push(other),
            }
        };
        labels.insert(name.to_owned(), text);
        rest = &value[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let scrape =
            Scrape::parse("# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\"} 3\na{x=\"2\"} 4 1700\nb 1e3\n");
        assert_eq!(scrape.sum("a", &[]), 7.0);
        assert_eq!(scrape.sum("a", &[("y", "q\"}")]), 3.0);
        assert_eq!(scrape.sum("b", &[]), 1000.0);
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let scrape = Scrape::parse("h_bucket{le=\"1\"} 0\nh_bucket{le=\"2\"} 10\nh_bucket{le=\"+Inf\"} 10\n");
        let histogram = scrape.histogram("h", &[]);
        assert_eq!(quantile(0.5, &histogram), Some(1.5));
        assert_eq!(quantile(0.5, &since(&histogram, &histogram)), None);
    }
}
