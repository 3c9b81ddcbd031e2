//! Maglev's table: every member fills places by weight in an order of its own, in turns, until the table is full; a request
//! goes to the member at its hash's place. One look-up, shares within a percent or so, and few requests move when a member
//! comes or goes (Eisenbud et al., NSDI 2016; weights as in Envoy).

use super::Member;
use super::hash::mix;

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    places: Box<[u32]>,
}

impl Table {
    /// With `size` places, a prime number; of more members than places some have none.
    pub(super) fn new(members: &[Member], size: u32) -> Self {
        const FREE: u32 = u32::MAX;
        let size = u64::from(size.max(2));
        // In the order of their ids, so that the list's order, which differs between sidecars, means nothing.
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_unstable_by_key(|index| members[*index].id);
        let mut fillers: Vec<Filler> = order.iter().map(|index| Filler::new(&members[*index], *index, size)).collect();
        let heaviest = members.iter().map(|member| u64::from(member.weight)).max().unwrap_or(1);
        let mut places = vec![FREE; size as usize];
        let mut free = if members.is_empty() { 0 } else { size };
        for round in 1_u64.. {
            for filler in &mut fillers {
                // The heaviest fills in every round, one of half its weight in every second.
                if free == 0 {
                    return Self { places: places.into_boxed_slice() };
                }
                if round * filler.weight < filler.due {
                    continue;
                }
                filler.due += heaviest;
                let place = filler.next_free(size, |place| places[place as usize] == FREE);
                places[place as usize] = filler.member;
                free -= 1;
            }
            if fillers.is_empty() {
                break;
            }
        }
        Self { places: Box::default() }
    }

    /// Whose a hash is.
    pub(super) fn at(&self, hash: u64) -> Option<usize> {
        let size = self.places.len() as u64;
        self.places.get(usize::try_from(hash.checked_rem(size)?).ok()?).map(|member| *member as usize)
    }

    #[cfg(test)]
    pub(super) fn shares(&self, members: usize) -> Vec<f64> {
        let mut shares = vec![0.0; members];
        self.places.iter().for_each(|member| shares[*member as usize] += 1.0 / self.places.len() as f64);
        shares
    }
}

/// One member while the table is filled: it tries `offset`, `offset + skip`, and so on, which leads to every place because
/// the table's size is a prime number.
struct Filler {
    member: u32,
    weight: u64,
    due: u64,
    place: u64,
    skip: u64,
}

impl Filler {
    fn new(member: &Member, index: usize, size: u64) -> Self {
        let (offset, skip) = (mix(member.id, 1) % size, mix(member.id, 2) % (size - 1) + 1);
        Self { member: index as u32, weight: u64::from(member.weight), due: 0, place: offset, skip }
    }

    /// The next place of its own order that is free. There must be one.
    fn next_free(&mut self, size: u64, free: impl Fn(u64) -> bool) -> u64 {
        loop {
            let place = self.place;
            self.place = (self.place + self.skip) % size;
            if free(place) {
                return place;
            }
        }
    }
}
