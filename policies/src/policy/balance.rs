//! How an endpoint is chosen for each request: the algorithm, what it hashes, and how newcomers are warmed up.
//!
//! Settings and defaults are those of the field (Envoy's, where it has them); how each algorithm works is `balance` of the
//! traffic crate.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The label of an instance that says its share of the traffic, among the endpoints of each Service it stands behind.
pub const WEIGHT_LABEL: &str = "equerry.dev/weight";
/// The largest weight; the smallest is 1, and 1 is what an instance without the label weighs.
pub const MAX_WEIGHT: u32 = 1000;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct LoadBalancer {
    /// By what.
    pub algorithm: Algorithm,
    /// How a new endpoint is warmed up; `None`: it gets its whole share at once. Never beside a hash.
    pub slow_start: Option<SlowStart>,
}

/// What an endpoint is chosen by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The better of two drawn at random, by peak-EWMA latency times requests in flight.
    #[default]
    P2cEwma,
    /// The better of two drawn at random, by requests in flight.
    LeastRequest,
    /// One after the other, each as often as it weighs.
    RoundRobin,
    /// At random.
    Random,
    /// The next one on a ring of hashes.
    RingHash(RingHash),
    /// By a table of hashes.
    Maglev(Maglev),
}

/// Settings of `ring_hash`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RingHash {
    /// What is hashed.
    pub hash: HashOn,
    /// Points on the ring, at least; `None`: 160 for each unit of weight (nginx's ketama), however many endpoints there are.
    pub minimum_size: Option<u32>,
    /// Points on the ring, at most.
    pub maximum_size: u32,
    /// No endpoint has more in flight than this, in percent of its fair share; 100 or more. `None`: no bound.
    pub bounded_load: Option<u32>,
}

impl RingHash {
    /// The largest ring: Envoy's 8 Mi points.
    pub const MAXIMUM_SIZE: u32 = 8 << 20;

    /// With the field's defaults.
    pub fn on(hash: HashOn) -> Self {
        Self { hash, minimum_size: None, maximum_size: Self::MAXIMUM_SIZE, bounded_load: None }
    }
}

/// Settings of `maglev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Maglev {
    /// What is hashed.
    pub hash: HashOn,
    /// Places in the table; a prime number.
    pub table_size: u32,
}

impl Maglev {
    /// The table of the Maglev paper, and of Envoy.
    pub const TABLE_SIZE: u32 = 65_537;
    /// The largest table (Envoy's), which is a prime number too.
    pub const MAX_TABLE_SIZE: u32 = 5_000_011;

    /// With the field's defaults.
    pub fn on(hash: HashOn) -> Self {
        Self { hash, table_size: Self::TABLE_SIZE }
    }
}

/// What of a request is hashed. A request without it goes to an endpoint at random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashOn {
    /// The values of a header.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
    /// The value of a query parameter, as it was sent.
    Query(String),
    /// The address of the instance that calls.
    SourceAddress,
    /// The identity of the workload that calls.
    Identity,
}

/// A new endpoint's weight grows over a window: weight × max(10%, (age / window)^(1 / aggression)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// How long it takes to its whole weight.
    pub window: Duration,
    /// In percent: 100 grows evenly, more grows faster at first.
    pub aggression: u32,
}

impl SlowStart {
    /// Grows evenly (Envoy's aggression 1.0).
    pub const AGGRESSION: u32 = 100;
}

/// How it travels: the algorithm alone where there is nothing else to say, as from the first version on.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Bare(Algorithm),
    #[serde(rename_all = "camelCase")]
    Full {
        algorithm: Algorithm,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slow_start: Option<SlowStart>,
    },
}

impl From<Written> for LoadBalancer {
    fn from(written: Written) -> Self {
        match written {
            Written::Bare(algorithm) => Self { algorithm, slow_start: None },
            Written::Full { algorithm, slow_start } => Self { algorithm, slow_start },
        }
    }
}

impl From<LoadBalancer> for Written {
    fn from(LoadBalancer { algorithm, slow_start }: LoadBalancer) -> Self {
        match slow_start {
            None => Self::Bare(algorithm),
            slow_start => Self::Full { algorithm, slow_start },
        }
    }
}

/// The weight that an instance's labels say; 1 where they say nothing.
///
/// # Errors
/// In words, when the label's value is not a whole number from 1 to [`MAX_WEIGHT`].
pub fn weight(labels: &BTreeMap<String, String>) -> Result<u32, String> {
    let Some(text) = labels.get(WEIGHT_LABEL) else { return Ok(1) };
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    match text.parse() {
        Ok(weight) if digits && (1..=MAX_WEIGHT).contains(&weight) => Ok(weight),
        _ => Err(format!("label {WEIGHT_LABEL}: found {text:?}, expected a whole number from 1 to {MAX_WEIGHT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_travels_as_the_first_version_wrote_it_where_there_is_no_more_to_say() {
        let written = |balancer: &LoadBalancer| serde_json::to_string(balancer).unwrap();
        let plain = LoadBalancer::default();
        assert_eq!(written(&plain), r#""p2c_ewma""#);
        let maglev = LoadBalancer { algorithm: Algorithm::Maglev(Maglev::on(HashOn::Identity)), slow_start: None };
        assert_eq!(written(&maglev), r#"{"maglev":{"hash":"identity","tableSize":65537}}"#);
        let ramp = SlowStart { window: Duration::from_secs(30), aggression: 100 };
        let warm = LoadBalancer { algorithm: Algorithm::RoundRobin, slow_start: Some(ramp) };
        for balancer in [plain, maglev, warm] {
            assert_eq!(serde_json::from_str::<LoadBalancer>(&written(&balancer)).unwrap(), balancer);
        }
        assert!(serde_json::from_str::<LoadBalancer>(r#""of_a_later_version""#).is_err());
    }

    #[test]
    fn a_weight_is_a_whole_number_in_bounds_or_a_mistake() {
        let of = |text: &str| weight(&[(WEIGHT_LABEL.to_owned(), text.to_owned())].into());
        assert_eq!((weight(&BTreeMap::new()), of("1"), of("1000")), (Ok(1), Ok(1), Ok(1000)));
        for bad in ["", "0", "1001", "-1", "+5", "1.5", "many"] {
            assert!(of(bad).unwrap_err().contains("from 1 to 1000"), "{bad}");
        }
    }
}
