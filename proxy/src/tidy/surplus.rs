//! How much of what is kept for the next was not needed lately.
//!
//! What is taken and put back at one end of a pile lies untouched below the lowest the pile has been: nobody missed that much.

use std::cell::Cell;

/// The lowest a pile has been since it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Surplus(Cell<usize>);

impl Surplus {
    /// Of a pile with nothing on it.
    pub(crate) const fn none() -> Self {
        Self(Cell::new(0))
    }

    /// One was taken; so many are left.
    pub(crate) fn taken(&self, left: usize) {
        if left < self.0.get() {
            self.0.set(left);
        }
    }

    /// Looks at a pile of so many: half of those that nobody has needed since the last look, beyond a `few`.
    pub(crate) fn half(&self, piled: usize, few: usize) -> usize {
        let unneeded = self.0.replace(piled).min(piled);
        let more = unneeded.saturating_sub(few).div_ceil(2);
        self.0.set(piled - more);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_nobody_needed_is_too_much_at_each_look_and_a_few_never_are() {
        let (surplus, mut piled) = (Surplus::none(), 100);
        let mut look = |taken: usize| {
            surplus.taken(piled - taken);
            let more = surplus.half(piled, 4);
            piled -= more;
            more
        };
        assert_eq!(look(0), 0, "just piled up");
        assert_eq!(look(0), 48);
        assert_eq!(look(32), 8, "32 of 52 were needed");
        assert_eq!(look(44), 0);
        assert_eq!((0..10).map(|_| look(0)).take_while(|more| *more > 0).collect::<Vec<_>>(), [20, 10, 5, 3, 1, 1]);
        assert_eq!(look(0), 0, "a few stay");
    }
}
