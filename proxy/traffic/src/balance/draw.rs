//! A random member by weight in constant time, whatever the weights: Vose's alias method.

/// How one of several is drawn.
#[derive(Debug)]
pub(super) enum Draw {
    /// All weigh the same: so many.
    Even(u32),
    /// A column for each member.
    ByWeight(Box<[Column]>),
}

/// Half of a coin: stays with the column's own member, or goes to the other one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// The chance to stay, of 2^32.
    stay: u32,
    other: u32,
}

impl Draw {
    /// For members of these weights, each above 0.
    pub(super) fn new(weights: &[u32]) -> Self {
        let count = u32::try_from(weights.len()).unwrap_or(u32::MAX);
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Even(count);
        }
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        // What each has, in units of which a full column holds `total`: exact, no rounding until the end.
        let mut has: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) * u64::from(count)).collect();
        let mut columns = vec![Column { stay: u32::MAX, other: 0 }; weights.len()];
        let (mut poor, mut rich): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|index| has[*index] < total);
        while let (Some(short), Some(long)) = (poor.pop(), rich.last().copied()) {
            let stay = (u128::from(has[short]) << 32) / u128::from(total);
            columns[short] = Column { stay: u32::try_from(stay).unwrap_or(u32::MAX), other: long as u32 };
            has[long] -= total - has[short];
            if has[long] < total {
                rich.pop();
                poor.push(long);
            }
        }
        Self::ByWeight(columns.into_boxed_slice())
    }

    /// One of them. There must be one.
    pub(super) fn one(&self, rng: &mut fastrand::Rng) -> usize {
        let random = rng.u64(..);
        match self {
            Self::Even(count) => scaled(random, *count),
            Self::ByWeight(columns) => {
                let index = scaled(random, columns.len() as u32);
                let column = columns[index];
                if (random as u32) < column.stay { index } else { column.other as usize }
            }
        }
    }
}

/// The upper half of a random number, brought into 0..count.
pub(super) fn scaled(random: u64, count: u32) -> usize {
    (((random >> 32) * u64::from(count)) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_drawn_as_often_as_it_weighs() {
        for weights in [&[1, 1, 1][..], &[1, 2, 3, 4], &[1000, 1], &[7], &[5, 5, 90, 1, 300]] {
            let (draw, mut rng) = (Draw::new(weights), fastrand::Rng::with_seed(5));
            let mut drawn = vec![0_u32; weights.len()];
            (0..200_000).for_each(|_| drawn[draw.one(&mut rng)] += 1);
            let total: u32 = weights.iter().sum();
            for (drawn, weight) in drawn.iter().zip(weights) {
                let (seen, due) = (f64::from(*drawn) / 200_000.0, f64::from(*weight) / f64::from(total));
                // Four standard deviations.
                let error = 4.0 * (due * (1.0 - due) / 200_000.0).sqrt();
                assert!((seen - due).abs() <= error, "{weights:?}: {seen} of {due}");
            }
        }
    }
}
