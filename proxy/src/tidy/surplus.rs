//! How much of what is kept for the next was not needed lately.
//!
//! What is taken and put back at one end of a pile lies untouched below the lowest the pile has been: nobody missed that much.

use std::cell::Cell;

/// So many at once are put down whole.
const HANDFUL: usize = 16;

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

    /// Whether anybody took one of a pile of so many since it was last looked at.
    pub(crate) fn was_needed(&self, piled: usize) -> bool {
        self.0.get() < piled
    }

    /// Looks at a pile of so many: three quarters of those that nobody has needed since the last look, beyond a `few`, or all,
    /// where that is no more than a handful. A load of hundreds is put down within four looks.
    pub(crate) fn too_many(&self, piled: usize, few: usize) -> usize {
        let unneeded = self.0.replace(piled).min(piled);
        let beyond = unneeded.saturating_sub(few);
        let more = if beyond <= HANDFUL { beyond } else { beyond - beyond / 4 };
        self.0.set(piled - more);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_what_nobody_needed_is_too_much_at_each_look_and_a_few_never_are() {
        let (surplus, mut piled) = (Surplus::none(), 100);
        let mut look = |taken: usize| {
            surplus.taken(piled - taken);
            let more = surplus.too_many(piled, 4);
            piled -= more;
            more
        };
        assert_eq!(look(0), 0, "just piled up");
        assert_eq!(look(0), 72);
        assert_eq!(look(14), 10, "14 of 28 were needed");
        assert_eq!(look(18), 0);
        assert_eq!(look(0), 14, "a handful, which goes at once");
        assert_eq!(look(0), 0, "a few stay");
        piled = 500;
        surplus.too_many(piled, 4);
        let mut look = || {
            let more = surplus.too_many(piled, 4);
            piled -= more;
            more
        };
        assert_eq!((0..9).map(|_| look()).take_while(|more| *more > 0).collect::<Vec<_>>(), [372, 93, 24, 7]);
    }
}
