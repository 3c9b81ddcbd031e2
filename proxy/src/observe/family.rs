//! A family of series that cannot grow without bound: past its cap, new label values are counted as `__overflow__`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::proto::MetricFamily;

/// The label value of everything past the cap.
pub(super) const OVERFLOW: &str = "__overflow__";

/// A family of series, made by label values.
pub(super) trait Family {
    /// One series.
    type Series;
    /// The series of these label values, made when it was not there.
    fn series(&self, labels: &[&str]) -> Self::Series;
    /// Ends a series.
    fn end(&self, labels: &[&str]);
    /// Ends all.
    fn clear(&self);
}

impl<B: MetricVecBuilder> Family for MetricVec<B> {
    type Series = B::M;

    fn series(&self, labels: &[&str]) -> B::M {
        self.with_label_values(labels)
    }

    fn end(&self, labels: &[&str]) {
        // The only error is that there is no such series; then it has ended already.
        let _ = self.remove_label_values(labels);
    }

    fn clear(&self) {
        self.reset();
    }
}

/// A family with a cap.
#[derive(Debug)]
pub(super) struct Capped<F> {
    family: F,
    known: Mutex<HashSet<Labels>>,
    cap: usize,
}

/// Label values, in the family's order.
type Labels = Box<[Box<str>]>;

impl<F: Family> Capped<F> {
    pub(super) fn new(family: F, cap: usize) -> Self {
        Self { family, known: Mutex::default(), cap }
    }

    /// The series of these label values, or the overflow member. Takes a lock: callers on the request path keep the handle.
    pub(super) fn get(&self, labels: &[&str]) -> F::Series {
        self.admit(labels).unwrap_or_else(|| self.overflow(labels.len()))
    }

    /// The series of these label values while there is room for it.
    pub(super) fn admit(&self, labels: &[&str]) -> Option<F::Series> {
        let key = owned(labels);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&key) {
            if known.len() >= self.cap {
                return None;
            }
            known.insert(key);
        }
        Some(self.family.series(labels))
    }

    /// The member that counts everything past the cap.
    pub(super) fn overflow(&self, labels: usize) -> F::Series {
        self.family.series(&vec![OVERFLOW; labels])
    }

    /// Ends all series: what is there now is told anew.
    pub(super) fn clear(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        self.family.clear();
    }

    /// What all series say now.
    pub(super) fn read(&self) -> Vec<MetricFamily>
    where
        F: Collector,
    {
        self.family.collect()
    }

    /// Ends the series of these label values, making room for another.
    pub(super) fn remove(&self, labels: &[&str]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.remove(&owned(labels)) {
            self.family.end(labels);
        }
    }
}

fn owned(labels: &[&str]) -> Labels {
    labels.iter().map(|label| Box::from(*label)).collect()
}
