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

impl Found {
    /// Adds what a later run of the same scenario found in its rounds to the tables, and judges them again.
    pub(crate) fn join(&mut self, later: Self) {
        for (table, later) in self.tables.iter_mut().zip(later.tables) {
            table.join(later);
        }
        let judged = |bar: Bar| match &bar.between {
            Some(Between { load, ours, theirs }) => {
                self.tables.iter().find(|table| table.load == *load)?.bar(ours, theirs, bar.limit)
            }
            None => Some(bar),
        };
        self.bars = std::mem::take(&mut self.bars).into_iter().filter_map(judged).collect();
    }
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
    /// What it compares, when that is rows of a table.
    #[serde(skip)]
    pub(crate) between: Option<Between>,
}

/// One of ours beside the best of theirs, under one load.
#[derive(Debug)]
pub(crate) struct Between {
    load: String,
    ours: &'static str,
    theirs: Vec<&'static str>,
}

impl Bar {
    /// Whether it is reached.
    pub(crate) fn passed(&self) -> bool {
        self.ratio <= self.limit
    }
}

impl Table {
    /// Adds later rounds of the same targets.
    fn join(&mut self, later: Self) {
        for one in later.rows {
            if let Some(row) = self.rows.iter_mut().find(|row| row.name == one.name) {
                let rounds = std::mem::take(&mut row.rounds).into_iter().chain(one.rounds).collect();
                *row = Row::of(row.name, row.side, rounds);
            }
        }
    }

    /// Whether `ours` takes at most `limit` times the processor time of the best of `theirs`; nothing when none was there.
    pub(crate) fn bar(&self, ours: &'static str, theirs: &[&'static str], limit: f64) -> Option<Bar> {
        let row = |name: &str| self.rows.iter().find(|row| row.name == name);
        let ours_row = row(ours)?;
        let rows = theirs.iter().filter_map(|name| row(name));
        let best = rows.min_by(|one, other| one.median.cpu_micros.total_cmp(&other.median.cpu_micros))?;
        let ratio = ratio(&cpu_of_rounds(ours_row), &cpu_of_rounds(best))?;
        let between = Between { load: self.load.clone(), ours, theirs: theirs.to_vec() };
        let says = format!("{}: {ours} ≤ {limit} × {}", self.load, best.name);
        Some(Bar { says, ratio, limit, between: Some(between) })
    }
}

fn cpu_of_rounds(row: &Row) -> Vec<f64> {
    row.rounds.iter().map(|round| round.cpu_micros).collect()
}

/// Ours divided by theirs: the median over the rounds of the ratio within each, so that what slows the whole machine for a
/// while slows both sides of it; nothing when there were no rounds.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let mut each: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    each.sort_by(f64::total_cmp);
    each.get(each.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::load::Sample;
    use super::super::measure::Side;
    use super::*;

    /// What one round of `ours` and two peers found.
    fn found(ours: f64, nginx: f64, haproxy: f64) -> Found {
        let row = |name, side, cpu_micros| Row::of(name, side, vec![Sample { cpu_micros, ..Sample::default() }]);
        let rows =
            vec![row("ours", Side::Ours, ours), row("nginx", Side::Peer, nginx), row("HAProxy", Side::Peer, haproxy)];
        let table = Table { load: "64 connections".to_owned(), rows };
        let figure = Bar { says: "memory".to_owned(), ratio: 3.0, limit: 2.0, between: None };
        let bars = table.bar("ours", &["nginx", "HAProxy"], 1.2).into_iter().chain([figure]).collect();
        Found { tables: vec![table], bars, ..Found::default() }
    }

    #[test]
    fn later_rounds_join_the_first_and_are_judged_with_it() {
        let mut all = found(10.0, 9.0, 8.0);
        assert_eq!(all.bars[0].ratio, 1.25);
        all.join(found(10.0, 5.0, 10.0));
        all.join(found(12.0, 6.0, 10.0));
        let rounds: Vec<usize> = all.tables[0].rows.iter().map(|row| row.rounds.len()).collect();
        assert_eq!(rounds, [3, 3, 3]);
        assert_eq!(all.tables[0].rows[0].median.cpu_micros, 10.0);
        assert_eq!((all.bars[0].ratio, all.bars[0].passed()), (2.0, false), "nginx is the better one now");
        assert!(all.bars[0].says.ends_with("nginx"), "{}", all.bars[0].says);
        assert_eq!(all.bars[1].ratio, 3.0, "what compares no rows stays");
    }

    #[test]
    fn a_ratio_is_the_median_of_those_within_each_round() {
        // The machine was slow in the second round, for both; and in the middle of the third, for ours alone.
        assert_eq!(ratio(&[10.0, 20.0, 30.0], &[8.0, 16.0, 8.0]), Some(1.25));
        assert_eq!(ratio(&[10.0, 12.0], &[10.0, 10.0]), Some(1.0));
        assert_eq!(ratio(&[], &[1.0]), None);
    }
}
