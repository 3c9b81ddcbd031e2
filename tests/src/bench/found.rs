//! What a scenario finds: tables of targets, figures, series over time, and how we stand against what was asked.

use serde::Serialize;

use super::measure::Row;

/// What a scenario found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Found {
    /// One table for each kind of load.
    pub(crate) tables: Vec<Table>,
    /// How we stand against what was asked.
    pub(crate) bars: Vec<Bar>,
    /// What no table holds.
    pub(crate) figures: Vec<Figure>,
    /// What changed with time.
    pub(crate) series: Vec<Series>,
}

/// A figure of its own.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    /// Whose it is.
    pub(crate) of: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// The value.
    pub(crate) value: f64,
    /// What it is in.
    pub(crate) unit: &'static str,
}

/// What one target came to, again and again.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    /// Whose it is.
    pub(crate) of: &'static str,
    /// What the values are.
    pub(crate) what: &'static str,
    /// Seconds since the load began, and the value then.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The targets under one kind of load.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// The load.
    pub(crate) load: String,
    /// One row for each target.
    pub(crate) rows: Vec<Row>,
}

/// What was asked for, most often a ratio of processor time, and what it is.
#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    /// In words.
    pub(crate) says: String,
    /// What it is: ours divided by theirs, or a figure.
    pub(crate) ratio: f64,
    /// At most this.
    pub(crate) limit: f64,
}

impl Bar {
    /// Whether it is reached.
    pub(crate) fn passed(&self) -> bool {
        self.ratio <= self.limit
    }
}

impl Table {
    /// Whether `ours` takes at most `limit` times the processor time of the best of `theirs`; nothing when none was there.
    pub(crate) fn bar(&self, ours: &str, theirs: &[&str], limit: f64) -> Option<Bar> {
        let cpu = |name: &str| self.rows.iter().find(|row| row.name == name).map(|row| row.median.cpu_micros);
        let ours_took = cpu(ours)?;
        let (best, took) =
            theirs.iter().filter_map(|name| Some((*name, cpu(name)?))).min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(Bar { says: format!("{}: {ours} ≤ {limit} × {best}", self.load), ratio: ours_took / took, limit })
    }
}
