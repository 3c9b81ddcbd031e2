//! From a listening socket to a connection in the hands of one worker.
//!
//! One acceptor serves both listeners and hands each connection to the worker that holds the fewest; there the
//! connection stays until it ends. How many there may be is [`room`]'s to say: one too many is told so where it can be told,
//! and closed. What a connection speaks is found out in [`detect`] and [`tls`].

pub(crate) mod detect;
pub(crate) mod room;
pub(crate) mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use room::{Place, Room};

use crate::observe::{Direction, Observer};

/// After an error that accepting again at once would only repeat (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection on its way to a worker.
#[derive(Debug)]
struct Handed {
    stream: Stream,
    peer: SocketAddr,
    direction: Direction,
    welcome: Welcome,
    load: Load,
}

/// What a connection may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// To be served.
    Served,
    /// To be told that there is no room.
    TurnedAway,
}

/// A socket is registered with one worker's event loop: it stays there, or travels bare.
#[derive(Debug)]
enum Stream {
    Here(TcpStream),
    Elsewhere(std::net::TcpStream),
}

/// One connection's share in its worker's load, and its place in the process; given back when dropped.
#[derive(Debug)]
struct Load {
    worker: Arc<AtomicUsize>,
    _place: Place,
}

impl Load {
    fn on(worker: &WorkerHandle, place: Place) -> Self {
        worker.connections.fetch_add(1, Ordering::Relaxed);
        Self { worker: Arc::clone(&worker.connections), _place: place }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.worker.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where connections for one worker are put.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    connections: Arc<AtomicUsize>,
    inbox: mpsc::UnboundedSender<Handed>,
}

/// Where one worker takes its connections from.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<Handed>);

/// A worker's two ends: connections are put into the first and taken from the second.
pub fn worker() -> (WorkerHandle, Inbox) {
    let (inbox, connections) = mpsc::unbounded_channel();
    (WorkerHandle { connections: Arc::new(AtomicUsize::new(0)), inbox }, Inbox(connections))
}

/// Accepts on `listener` for as long as the future is polled, handing each connection for which there is `room` to the
/// least loaded of `workers`. Runs on the first of them.
pub async fn run(
    listener: TcpListener,
    direction: Direction,
    workers: Rc<[WorkerHandle]>,
    room: Rc<Room>,
    observe: Observer,
) {
    let mut paused = false;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !is_about_one_connection(&error) {
                    observe.accept_paused(direction);
                    if !std::mem::replace(&mut paused, true) {
                        tracing::warn!(%error, direction = direction.as_str(), "cannot accept connections; trying again");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        if std::mem::take(&mut paused) {
            tracing::info!(direction = direction.as_str(), "accepting connections again");
        }
        let (welcome, place) = match room.take(direction, peer.ip()) {
            Ok(place) => (Welcome::Served, place),
            Err(full) => {
                observe.connection_refused(direction, full.as_str());
                let Some(place) = room.turn_away() else { continue };
                (Welcome::TurnedAway, place)
            }
        };
        // An answer of a few hundred bytes must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        hand_over(stream, peer, direction, welcome, place, &workers);
    }
}

/// Errors of `accept` that are the fault of the one connection that was to be accepted (accept(2), "Error handling").
fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn hand_over(
    stream: TcpStream,
    peer: SocketAddr,
    direction: Direction,
    welcome: Welcome,
    place: Place,
    workers: &[WorkerHandle],
) {
    // Ties go to the first, which is this thread: the socket then needs no second registration.
    let Some((index, worker)) =
        workers.iter().enumerate().min_by_key(|(_, worker)| worker.connections.load(Ordering::Relaxed))
    else {
        return;
    };
    let stream = if index == 0 {
        Stream::Here(stream)
    } else {
        match stream.into_std() {
            Ok(bare) => Stream::Elsewhere(bare),
            Err(error) => {
                tracing::debug!(%error, "a connection was lost on its way to a worker");
                return;
            }
        }
    };
    let load = Load::on(worker, place);
    // A worker that has ended closes its inbox; the connection is then dropped, and so closed.
    let _ = worker.inbox.send(Handed { stream, peer, direction, welcome, load });
}

/// Serves what is put into `inbox` with `serve`, on the current thread, until all handles are gone.
pub async fn work<F>(mut inbox: Inbox, serve: impl Fn(Direction, Welcome, TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + 'static,
{
    while let Some(Handed { stream, peer, direction, welcome, load }) = inbox.0.recv().await {
        let stream = match stream {
            Stream::Here(stream) => Ok(stream),
            Stream::Elsewhere(bare) => TcpStream::from_std(bare),
        };
        match stream {
            Ok(stream) => {
                let connection = serve(direction, welcome, stream, peer);
                tokio::task::spawn_local(async move {
                    connection.await;
                    drop(load);
                });
            }
            Err(error) => tracing::debug!(%error, "a connection was lost on its way to a worker"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};

    fn unheard() -> Observer {
        Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap()
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_when_all_are_told_the_next_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (worker, mut inbox) = worker();
        let (room, observe) = (Rc::new(Room::new(2)), unheard());
        let refused = || {
            let line = "equerry_connections_refused_total{direction=\"outbound\",reason=\"process_full\"}";
            observe.render().lines().filter(|found| found.starts_with(line)).collect::<String>()
        };
        let clients = async {
            let mut held = Vec::new();
            for number in 0..2 + room::TURNED_AWAY_AT_ONCE {
                let client = TcpStream::connect(address).await.unwrap();
                let handed = inbox.0.recv().await.unwrap();
                assert_eq!(handed.welcome == Welcome::Served, number < 2, "{number}");
                held.push((client, handed));
            }
            let mut closed = TcpStream::connect(address).await.unwrap();
            assert!(matches!(tokio::io::AsyncReadExt::read(&mut closed, &mut [0; 8]).await, Ok(0) | Err(_)));
            assert!(refused().ends_with(&format!(" {}", room::TURNED_AWAY_AT_ONCE + 1)), "{}", refused());
            held.clear();
            let _client = TcpStream::connect(address).await.unwrap();
            assert_eq!(inbox.0.recv().await.unwrap().welcome, Welcome::Served);
        };
        let workers: Rc<[WorkerHandle]> = Rc::from([worker]);
        tokio::select! {
            () = run(listener, Direction::Outbound, workers, room, observe.clone()) => unreachable!("the acceptor never ends"),
            () = clients => {}
        }
    }

    #[tokio::test]
    async fn a_connection_goes_to_the_worker_with_the_fewest() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (first, mut first_inbox) = worker();
        let (second, mut second_inbox) = worker();
        let workers: Rc<[WorkerHandle]> = Rc::from([first.clone(), second.clone()]);
        let (room, observe) = (Rc::new(Room::new(100)), unheard());
        let clients = async {
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(TcpStream::connect(address).await.unwrap());
            }
            let mut held = Vec::new();
            held.push(first_inbox.0.recv().await.unwrap());
            held.push(second_inbox.0.recv().await.unwrap());
            held.push(first_inbox.0.recv().await.unwrap());
            assert!(matches!(held[0].stream, Stream::Here(_)) && matches!(held[1].stream, Stream::Elsewhere(_)));
            assert_eq!((first.connections.load(Ordering::Relaxed), second.connections.load(Ordering::Relaxed)), (2, 1));
            drop(held);
            assert_eq!((first.connections.load(Ordering::Relaxed), second.connections.load(Ordering::Relaxed)), (0, 0));
        };
        tokio::select! {
            () = run(listener, Direction::Outbound, workers, room, observe) => unreachable!("the acceptor never ends"),
            () = clients => {}
        }
    }

    #[tokio::test]
    async fn a_panic_in_one_connection_ends_that_connection_and_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (handle, inbox) = worker();
        let workers: Rc<[WorkerHandle]> = Rc::from([handle.clone()]);
        let (room, observe) = (Rc::new(Room::new(100)), unheard());
        let serve = |_, _, mut stream: TcpStream, _| async move {
            let mut said = [0; 5];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut said).await.unwrap();
            assert_ne!(&said, b"panic", "what must never happen, and did");
            tokio::io::AsyncWriteExt::write_all(&mut stream, &said).await.unwrap();
        };
        let speak = async |word: &[u8; 5]| {
            let mut client = TcpStream::connect(address).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut client, word).await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer).await;
            answer
        };
        let clients = async {
            let mut neighbour = TcpStream::connect(address).await.unwrap();
            assert!(speak(b"panic").await.is_empty());
            assert_eq!(speak(b"hello").await, b"hello");
            tokio::io::AsyncWriteExt::write_all(&mut neighbour, b"still").await.unwrap();
            let mut answer = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut neighbour, &mut answer).await.unwrap();
            assert_eq!(answer, b"still", "who was there before goes on");
            while handle.connections.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::task::LocalSet::new()
            .run_until(async {
                tokio::select! {
                    () = run(listener, Direction::Inbound, workers, room, observe) => unreachable!("the acceptor never ends"),
                    () = work(inbox, serve) => unreachable!("there is a worker handle"),
                    () = clients => {}
                }
            })
            .await;
    }
}
