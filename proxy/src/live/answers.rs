//! How large the answers of a Service are on average, so that its next request can take the protocol that moves them for less.
//!
//! What a protocol costs grows with the size of an answer, so the average decides even where small and large ones mix: what is
//! saved on many small answers is lost on a few large ones, and the other way round. No single answer decides.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Of each answer, a sixteenth goes into the average.
const SHARE: i64 = 16;
/// An answer counts for no more than this, or a single one would decide for hundreds.
const MOST: u64 = 1 << 20;
/// Answers are large from this average on, and until it falls below half of it.
const LARGE: u32 = 128 << 10;

/// The average of one backend; kept across changes, shared by all workers.
#[derive(Debug, Default)]
pub struct AnswerSizes {
    /// Bytes; the lowest bit says whether they are large.
    average: AtomicU32,
}

impl AnswerSizes {
    /// An answer has so many bytes.
    pub fn note(&self, bytes: u64) {
        let before = self.average.load(Relaxed);
        let average = i64::from(before >> 1);
        let average = average + (bytes.min(MOST) as i64 - average) / SHARE;
        let limit = if before & 1 == 1 { LARGE / 2 } else { LARGE };
        let after = (average as u32) << 1 | u32::from(average >= i64::from(limit));
        // Mostly answers are alike, and nothing is written that other workers would have to read anew. What another one
        // wrote meanwhile is one answer lost of many.
        if after != before {
            self.average.store(after, Relaxed);
        }
    }

    /// Whether answers are large.
    pub fn are_large(&self) -> bool {
        self.average.load(Relaxed) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many answers of a size.
    fn after(sizes: &AnswerSizes, count: u32, bytes: u64) -> bool {
        (0..count).for_each(|_| sizes.note(bytes));
        sizes.are_large()
    }

    #[test]
    fn a_few_large_answers_turn_it_and_many_small_ones_turn_it_back() {
        let sizes = AnswerSizes::default();
        assert!(!after(&sizes, 1000, 1024), "small ones");
        assert!(!after(&sizes, 1, u64::MAX), "no single answer decides");
        assert!(after(&sizes, 2, 10 << 20));
        assert!(after(&sizes, 100, 10 << 20));
        assert!(after(&sizes, 10, 1024), "nor do a few");
        assert!(!after(&sizes, 40, 1024));
        assert!(!after(&sizes, 100, 100 << 10), "between the two it stays as it was");
        assert!(after(&sizes, 5, 1 << 20) && after(&sizes, 100, 100 << 10));
    }

    #[test]
    fn a_large_answer_among_hundreds_of_small_ones_changes_nothing() {
        let sizes = AnswerSizes::default();
        assert!((0..50).all(|_| !after(&sizes, 1, 10 << 20) && !after(&sizes, 99, 2048)));
    }
}
