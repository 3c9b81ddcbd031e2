//! The task of a connection: moves its bytes, tells the streams what came, and ends it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::arrive::{Arrived, News};
use super::bad::{Bad, Code};
use super::conn::{Role, State};
use super::frame::{self, PREFACE};
use crate::codec::Seldom;
use crate::codec::link::Link;

/// Reads in one turn: others of this thread have a turn in between.
const READS: usize = 16;
/// Requests, and time, that are enough for one turn, for the same reason: a read may hold hundreds of requests, or fields that
/// take long to decompress.
const REQUESTS: usize = 32;
const TURN: Duration = Duration::from_millis(1);
/// A peer of whom nothing was heard for so long is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long that sign may take.
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// What is asked then, and when we leave.
const ALIVE: [u8; 8] = *b"alive?..";
const LEAVING: [u8; 8] = *b"leaving.";
/// How long a peer that was told that we leave may take to say so, before we take it for told.
const LEAVING_PATIENCE: Duration = Duration::from_secs(1);
/// How long a peer is listened to after the end, so that it reads what we said last.
const LINGER: Duration = Duration::from_millis(500);

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the rest of what it has begun: its preface and settings, a header block.
    pub(super) head: Duration,
    /// For the next stream; `None`: as long as it likes.
    pub(super) idle: Option<Duration>,
}

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The preface is waited for.
    Beginning,
    /// Frames pass.
    Open,
    /// What waits is sent, then nothing.
    Closing,
    /// The peer reads what we said.
    Lingering,
    Over,
}

/// What moves a connection.
pub(super) struct Driver {
    phase: Phase,
    patience: Patience,
    began: Instant,
    /// When something came last.
    heard: Instant,
    /// When we asked for a sign of life.
    asked: Option<Instant>,
    /// When we told the peer that we leave, until it knows.
    warned: Option<Instant>,
    /// Since when there is no stream.
    idle_since: Option<Instant>,
    /// When the last byte was sent.
    ended: Option<Instant>,
    /// The system has not taken everything.
    flushing: bool,
    alarm: Seldom<Pin<Box<Sleep>>>,
    news: News,
}

impl Driver {
    pub(super) fn new(role: Role, patience: Patience) -> Self {
        let began = Instant::now();
        Self {
            phase: if role == Role::Serving { Phase::Beginning } else { Phase::Open },
            patience,
            began,
            heard: began,
            asked: None,
            warned: None,
            idle_since: Some(began),
            ended: None,
            flushing: false,
            alarm: Seldom::new(Box::pin(tokio::time::sleep(patience.head))),
            news: News::default(),
        }
    }

    /// Requests that have come since this was asked last.
    pub(super) fn arrived(&mut self) -> impl Iterator<Item = Arrived> + '_ {
        self.news.arrived.drain(..)
    }

    /// Tells the peer to begin nothing more; what it has begun is finished. Those of its requests that cross the word on
    /// the way are still served: only when it has answered does it hear which was the last.
    pub(super) fn leave(&mut self, conn: &mut State) {
        if self.warned.is_none() && !conn.leaving && conn.end.is_none() {
            self.warned = Some(Instant::now());
            conn.say(|out, _| {
                frame::put_go_away(out, frame::LARGEST_STREAM, Code::NO_ERROR, "");
                frame::put_ping(out, false, LEAVING);
            });
        }
    }

    fn has_left(&mut self, conn: &mut State) {
        self.warned = None;
        if !std::mem::replace(&mut conn.leaving, true) {
            let last = conn.last_id;
            conn.say(|out, _| frame::put_go_away(out, last, Code::NO_ERROR, ""));
        }
    }

    /// Moves what can be moved. Ready when the connection is over.
    pub(super) fn poll(&mut self, conn: &mut State, cx: &mut Context<'_>) -> Poll<()> {
        conn.driven_by(cx);
        if matches!(self.phase, Phase::Beginning | Phase::Open) {
            if let Err(bad) = self.listen(conn, cx) {
                self.fail(conn, bad);
            }
            self.finish(conn);
        }
        loop {
            match self.send(conn, cx) {
                Ok(true) if self.phase == Phase::Closing => self.phase = Phase::Lingering,
                Ok(_) => {}
                Err(error) => {
                    // What was said before it broke is heard all the same.
                    if matches!(self.phase, Phase::Beginning | Phase::Open) {
                        let _ = self.listen(conn, cx);
                    }
                    self.lost(conn, &error);
                }
            }
            self.watch_the_clock(conn, cx);
            // What the clock made us say goes out too.
            if conn.link.is_flushed() || self.flushing || self.phase == Phase::Over {
                break;
            }
        }
        conn.offer_room();
        if self.phase == Phase::Lingering {
            self.linger(conn, cx);
        }
        if self.phase == Phase::Over {
            conn.ended(None, "the connection is closed");
            conn.link = Link::closed();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads what there is.
    fn listen(&mut self, conn: &mut State, cx: &mut Context<'_>) -> Result<(), Bad> {
        let mut began = None;
        for _ in 0..READS {
            match conn.link.poll_flow(None, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => {
                    let word = (conn.streams.active() > 0).then_some("closed");
                    conn.ended(word, "the peer closed the connection");
                    self.phase = Phase::Over;
                    return Ok(());
                }
                Poll::Ready(Err(error)) => {
                    self.lost(conn, &error);
                    return Ok(());
                }
                Poll::Ready(Ok(_)) => {}
            }
            self.heard = Instant::now();
            self.asked = None;
            if self.phase == Phase::Beginning {
                let said = &conn.link.inbox;
                let length = said.len().min(PREFACE.len());
                if said[..length] != PREFACE[..length] {
                    return Err(Bad::protocol("it does not begin as HTTP/2 does"));
                }
                if length < PREFACE.len() {
                    continue;
                }
                let _ = conn.link.inbox.split_to(PREFACE.len());
                self.phase = Phase::Open;
            }
            conn.take_frames(&mut self.news, self.heard.into_std())?;
            if self.news.pong.take() == Some(LEAVING) && self.warned.is_some() {
                self.has_left(conn);
            }
            if conn.is_overwhelmed() {
                return Err(Bad::connection(Code::ENHANCE_YOUR_CALM, "more is asked for than is listened to"));
            }
            // The clock was read when this came.
            let turn = self.heard - *began.get_or_insert(self.heard);
            if self.news.arrived.len() >= REQUESTS || turn > TURN {
                break;
            }
        }
        conn.wake_driver();
        Ok(())
    }

    /// Says what is wrong, and ends.
    fn fail(&mut self, conn: &mut State, bad: Bad) {
        let last = conn.last_id;
        conn.ended(Some(word(bad.code())), &bad.to_string());
        conn.say(|out, _| frame::put_go_away(out, last, bad.code(), bad.why()));
        self.phase = Phase::Closing;
    }

    fn lost(&mut self, conn: &mut State, error: &io::Error) {
        let word = (conn.streams.active() > 0).then_some("closed");
        conn.ended(word, &error.to_string());
        self.phase = Phase::Over;
    }

    /// Ends when nothing is left to do.
    fn finish(&mut self, conn: &mut State) {
        if self.phase != Phase::Open || conn.streams.active() > 0 {
            return;
        }
        if conn.role == Role::Serving && conn.leaving {
            conn.ended(None, "everything was answered");
            self.phase = Phase::Closing;
        } else if conn.role == Role::Calling && (conn.disowned || conn.peer_leaving) {
            conn.leaving = true;
            conn.say(|out, _| frame::put_go_away(out, 0, Code::NO_ERROR, ""));
            conn.ended(None, "the connection is not needed any more");
            self.phase = Phase::Closing;
        }
    }

    /// Writes what waits; whether all was.
    fn send(&mut self, conn: &mut State, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.flushing || !conn.link.is_flushed() {
            let sent = conn.link.poll_send(cx);
            conn.written = conn.added - conn.link.waiting() as u64;
            self.flushing = sent.is_pending();
            if let Poll::Ready(sent) = sent {
                sent?;
            }
        }
        Ok(!self.flushing)
    }

    /// Says that nothing more will be sent, and waits until the peer has nothing more to send.
    fn linger(&mut self, conn: &mut State, cx: &mut Context<'_>) {
        self.ended.get_or_insert_with(Instant::now);
        if matches!(conn.link.poll_end(cx), Poll::Ready(Err(_))) {
            self.phase = Phase::Over;
        }
        for _ in 0..READS {
            conn.link.inbox.clear();
            match conn.link.poll_flow(None, cx) {
                Poll::Pending => return self.watch_the_clock(conn, cx),
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.phase = Phase::Over;
                    return;
                }
                Poll::Ready(Ok(_)) => {}
            }
        }
        conn.wake_driver();
    }

    /// The next moment at which something has lasted too long.
    fn due(&self) -> Instant {
        let head = self.patience.head;
        let dues = [
            Some(self.asked.map_or(self.heard + PING_EVERY, |asked| asked + PING_PATIENCE)),
            (!self.news.introduced).then(|| self.began + head),
            self.news.begun.as_ref().map(|begun| Instant::from_std(begun.since) + head),
            self.warned.map(|warned| warned + LEAVING_PATIENCE),
            self.idle_since.zip(self.patience.idle).map(|(since, idle)| since + idle),
            self.ended.map(|ended| ended + LINGER),
        ];
        dues.into_iter().flatten().min().unwrap_or(self.began)
    }

    fn watch_the_clock(&mut self, conn: &mut State, cx: &mut Context<'_>) {
        match (conn.streams.active() == 0, self.idle_since) {
            (true, None) => self.idle_since = Some(Instant::now()),
            (false, Some(_)) => self.idle_since = None,
            _ => {}
        }
        loop {
            let due = self.due();
            // It is moved on only when it has passed, not with everything that is heard.
            if self.alarm.future().deadline() > due {
                self.alarm.change().as_mut().reset(due);
            }
            if !self.alarm.is_over(cx) {
                return;
            }
            let now = Instant::now();
            if now >= due {
                self.too_late(conn, now);
                if self.phase == Phase::Over {
                    return;
                }
            }
            let due = self.due().max(now + Duration::from_millis(1));
            self.alarm.change().as_mut().reset(due);
        }
    }

    /// Something has lasted too long.
    fn too_late(&mut self, conn: &mut State, now: Instant) {
        let has_passed =
            |since: Option<Instant>, patience: Duration| since.is_some_and(|since| now >= since + patience);
        let begun = self.news.begun.as_ref().map(|begun| Instant::from_std(begun.since));
        let unread = if self.news.introduced { begun } else { Some(self.began) };
        if has_passed(self.ended, LINGER) || has_passed(self.asked, PING_PATIENCE) {
            conn.ended(Some("ping_timeout"), "the peer gives no sign of life");
            self.phase = Phase::Over;
        } else if has_passed(unread, self.patience.head) && self.phase != Phase::Closing {
            conn.ended(Some("head_timeout"), "what the peer began to say took too long");
            self.phase = Phase::Over;
        } else if has_passed(self.warned, LEAVING_PATIENCE) {
            self.has_left(conn);
            self.finish(conn);
        } else if self.patience.idle.is_some_and(|idle| has_passed(self.idle_since, idle)) {
            self.idle_since = None;
            self.leave(conn);
        } else if self.asked.is_none() && now >= self.heard + PING_EVERY {
            self.asked = Some(now);
            conn.say(|out, _| frame::put_ping(out, false, ALIVE));
        }
    }
}

/// The code of a connection error, for metrics.
fn word(code: Code) -> &'static str {
    match code {
        Code::FLOW_CONTROL_ERROR => "flow_control",
        Code::COMPRESSION_ERROR => "compression",
        Code::ENHANCE_YOUR_CALM => "flood",
        Code::FRAME_SIZE_ERROR => "frame_size",
        _ => "http2",
    }
}
