//! Who crawls and who only pauses, by a clock of the tests' own.
#![expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]

use super::super::CRAWL;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Waits for somebody who moves so many bytes each time after so long; after how many times they are found to crawl.
fn found(each: Duration, bytes: u64, times: u32) -> Option<u32> {
    let (mut pace, began) = (Pace::default(), Instant::now());
    pace.waits(0, CRAWL, began).unwrap();
    (1..=times).find(|time| pace.waits(bytes, CRAWL, began + each * *time).is_err())
}

#[test]
fn whoever_takes_a_little_again_and_again_is_found_however_long_it_pauses() {
    assert_eq!(found(SECOND, 1, 1_000), Some(30));
    assert_eq!(found(SECOND, 63, 1_000), Some(30));
    assert_eq!(found(Duration::from_millis(10), 0, 100_000), None, "who takes nothing is another timer's");
    assert_eq!(found(299 * SECOND, 1, 10), Some(2));
    assert_eq!(found(299 * SECOND, 16 * 1024, 10), Some(2), "whose pauses are long has to take the more");
}

#[test]
fn whoever_goes_fast_enough_is_waited_for_without_end() {
    assert_eq!(found(SECOND, 64, 10_000), None);
    assert_eq!(found(10 * SECOND, 640, 10_000), None);
    assert_eq!(found(299 * SECOND, 32 * 1024, 1_000), None, "a reader that pauses and takes much at once");
}

#[test]
fn a_pause_is_no_crawl_when_much_follows_in_small_pieces() {
    let (mut pace, began) = (Pace::default(), Instant::now());
    pace.waits(0, CRAWL, began).unwrap();
    let resumed = began + 290 * SECOND;
    for piece in 0..1_000_u32 {
        pace.waits(1_460, CRAWL, resumed + piece * Duration::from_millis(20)).unwrap();
    }
}

#[test]
fn time_in_which_something_else_is_waited_for_does_not_count() {
    let (mut pace, mut now) = (Pace::default(), Instant::now());
    // An event each minute, each of which waits a moment for its reader.
    for _ in 0..10_000 {
        pace.waits(10, CRAWL, now).unwrap();
        now += Duration::from_millis(1);
        pace.rests(CRAWL, now);
        assert!(!pace.is_waiting());
        now += 60 * SECOND;
    }
}

#[test]
fn a_crawl_is_told_in_bytes_and_time() {
    let (mut pace, began) = (Pace::default(), Instant::now());
    pace.waits(0, CRAWL, began).unwrap();
    let slow = (1..).find_map(|second| pace.waits(2, CRAWL, began + SECOND * second).err());
    assert_eq!(slow, Some(Crawled { bytes: 60, after: CRAWL }));
}
