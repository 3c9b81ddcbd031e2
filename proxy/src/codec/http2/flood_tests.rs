//! What is borne of each kind, and for how long.

use std::time::Duration;

use bytes::Bytes;

use super::super::frame::Settings;
use super::*;

/// How many of `frame` are borne one after another.
fn borne(flood: &mut Flood, frame: &Frame, now: Instant) -> Result<u32, &'static str> {
    for count in 0..1_000_000 {
        if let Err(bad) = flood.frame(frame, now) {
            assert_eq!(bad, Bad::connection(Code::ENHANCE_YOUR_CALM, bad.why()));
            return if count == 0 { Err(bad.why()) } else { Ok(count) };
        }
    }
    panic!("a million {frame:?} were borne");
}

fn data(length: usize, end: bool) -> Frame {
    Frame::Data { stream: 1, data: Bytes::from(vec![0; length]), padded: 0, end }
}

fn headers(length: usize) -> Frame {
    Frame::Headers { stream: 1, block: Bytes::from(vec![0; length]), end_headers: false, end: false }
}

#[test]
fn each_kind_has_a_bound_that_comes_back_with_time() {
    let start = Instant::now();
    for (frame, bound) in [
        (Frame::Reset { stream: 1, code: Code::CANCEL }, &RESETS),
        (Frame::Ping { ack: false, data: [0; 8] }, &PINGS),
        (Frame::Settings(Settings::default()), &SETTINGS),
        (Frame::SettingsAck, &SETTINGS),
        (Frame::GoAway { last: 0, code: Code::NO_ERROR, debug: Bytes::new() }, &SETTINGS),
        (data(0, false), &EMPTY),
        (data(TINY - 1, false), &TINIES),
        (Frame::Priority { stream: 1 }, &PRIORITIES),
        (Frame::WindowUpdate { stream: 0, increment: 1 }, &WINDOW_UPDATES),
        (Frame::Unknown, &UNKNOWN),
    ] {
        let mut flood = Flood::new(start);
        assert_eq!(borne(&mut flood, &frame, start), Ok(bound.burst), "{frame:?}");
        assert_eq!(borne(&mut flood, &frame, start), Err(bound.why));
        let second = start + Duration::from_secs(1);
        assert_eq!(borne(&mut flood, &frame, second), Ok(bound.per_second), "{frame:?}");
        let day = start + Duration::from_secs(86_400);
        assert_eq!(borne(&mut flood, &frame, day), Ok(bound.burst), "{frame:?}");
    }
}

#[test]
fn time_that_passes_in_small_steps_passes_too() {
    let start = Instant::now();
    let mut flood = Flood::new(start);
    let ping = Frame::Ping { ack: false, data: [0; 8] };
    borne(&mut flood, &ping, start).unwrap();
    let steps = (1..=100).filter(|step| flood.frame(&ping, start + Duration::from_millis(*step)).is_ok());
    assert_eq!(steps.count(), 10);
}

#[test]
fn who_moves_much_may_also_ping_and_open_windows_much() {
    let now = Instant::now();
    let mut flood = Flood::new(now);
    for _ in 0..100_000 {
        flood.frame(&data(1_000, false), now).unwrap();
        flood.frame(&Frame::Ping { ack: false, data: [0; 8] }, now).unwrap();
    }
    for _ in 0..100_000 {
        flood.sent_data(1);
        for _ in 0..10 {
            flood.frame(&Frame::WindowUpdate { stream: 1, increment: 1 }, now).unwrap();
        }
    }
}

#[test]
fn half_of_all_exchanges_may_be_given_up() {
    let now = Instant::now();
    let mut flood = Flood::new(now);
    for _ in 0..100_000 {
        flood.ended();
        flood.provoked(now).unwrap();
    }
    let more = (0..).take_while(|_| flood.provoked(now).is_ok()).count();
    assert!(more <= 2 * RESETS.burst as usize, "{more} resets were borne");
}

#[test]
fn data_of_some_size_and_the_last_of_any_size_has_no_bound() {
    let now = Instant::now();
    let mut flood = Flood::new(now);
    for _ in 0..200_000 {
        flood.frame(&data(TINY, false), now).unwrap();
        flood.frame(&data(0, true), now).unwrap();
    }
}

#[test]
fn a_header_block_ends_within_its_bounds() {
    let now = Instant::now();
    let more = |length| Frame::Continuation { stream: 1, block: Bytes::from(vec![0; length]), end_headers: false };
    let mut flood = Flood::new(now);
    for _ in 0..3 {
        flood.frame(&headers(0), now).unwrap();
        assert_eq!(borne(&mut flood, &more(0), now), Ok(BLOCK_FRAMES - 1), "empty ones count");
    }
    flood.frame(&headers(16_384), now).unwrap();
    assert_eq!(borne(&mut flood, &more(16_384), now), Ok(7));
}
