//! The driver: calls made many at a time or at a steady pace, every answer kept.

use std::time::Duration;

use anyhow::Result;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::web::Answer;

/// Calls in flight at once, where many are made.
pub const AT_ONCE: usize = 8;

/// Makes `count` calls, several at a time, and gives every outcome.
pub async fn many<C, F>(count: usize, call: C) -> Vec<Result<Answer>>
where
    C: Fn(usize) -> F,
    F: Future<Output = Result<Answer>>,
{
    stream::iter(0..count).map(call).buffer_unordered(AT_ONCE).collect().await
}

/// Makes calls at a steady pace until `end`, however long each takes, and gives every outcome.
pub async fn steady<C, F>(per_second: f64, end: impl Future<Output = ()>, call: C) -> Vec<Result<Answer>>
where
    C: Fn(usize) -> F,
    F: Future<Output = Result<Answer>>,
{
    in_bursts(per_second, 1, end, call).await
}

/// The same, `burst` calls at a time.
pub async fn in_bursts<C, F>(per_second: f64, burst: u32, end: impl Future<Output = ()>, call: C) -> Vec<Result<Answer>>
where
    C: Fn(usize) -> F,
    F: Future<Output = Result<Answer>>,
{
    let start = Instant::now();
    let pause = Duration::from_secs_f64(f64::from(burst) / per_second);
    let mut in_flight = stream::FuturesUnordered::new();
    let mut outcomes = Vec::new();
    let mut end = std::pin::pin!(end);
    for number in 0_u32.. {
        let next = sleep_until(start + pause * number);
        let mut next = std::pin::pin!(next);
        let due = loop {
            tokio::select! {
                biased;
                () = &mut end => break false,
                () = &mut next => break true,
                Some(outcome) = in_flight.next(), if !in_flight.is_empty() => outcomes.push(outcome),
            }
        };
        if !due {
            break;
        }
        in_flight.extend((0..burst).map(|one| call((number * burst + one) as usize)));
    }
    while let Some(outcome) = in_flight.next().await {
        outcomes.push(outcome);
    }
    outcomes
}

/// How many answers had this status.
pub fn with_status(outcomes: &[Result<Answer>], status: u16) -> usize {
    outcomes.iter().filter(|outcome| outcome.as_ref().is_ok_and(|answer| answer.status == status)).count()
}

/// The first outcome that was not a 200, in words.
pub fn first_failure(outcomes: &[Result<Answer>]) -> Option<String> {
    outcomes.iter().find_map(|outcome| match outcome {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some(answer.shown()),
        Err(error) => Some(format!("{error:#}")),
    })
}
