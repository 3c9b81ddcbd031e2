//! The process: what starts in which order, and how it ends.
//!
//! Settings, state directory and listeners first, because their mistakes are the operator's and are told at once; then
//! an identity; then the workers, on whatever configuration was last good; then the conversation with the control plane.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use equerry_policies::compile::FetchedKeys;
use equerry_policies::names::{HostName, ServiceName, SpiffeId};
use equerry_traffic::outside::OwnDoors;
use equerry_traffic::retry::Hops;
use sd_notify::NotifyState;
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::accept::room::Room;
use crate::accept::{self, Welcome, WorkerHandle};
use crate::admin::{self, Side, Window};
use crate::config::{self, BadSettings, Command, CommandLine, Given, Settings, Sources, Written};
use crate::drain::Drain;
use crate::exchange::facts;
use crate::inbound::Inbound;
use crate::keys::{Fetcher, Keys};
use crate::live::last_good::LastGood;
use crate::live::state_dir::{StateDir, StateDirError};
use crate::live::{self, IdentityHandle, Link, Live, LiveHandle, NoIdentity, Quotas, Status};
use crate::log::Levels;
use crate::observe::trace::{Exporter, Exports, Span, Tracer};
use crate::observe::{Direction, Observer, ObserverOptions, SERIES_CAP};
use crate::outbound::{Outbound, tcp_door};
use crate::probe;
use crate::reload::Reload;
use crate::tidy;
use crate::upstream::Outsiders;
use crate::wait;

/// Connections the kernel holds for us while the acceptor is busy.
const BACKLOG: i32 = 4096;
/// A caller that went silent is asked for a sign of life after this, and then this often.
const SIGN_OF_LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// How long a draining proxy still takes connections at least: callers learn of its leave through the control plane.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the access log may take to write its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What every worker is given.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The configuration in force.
    pub live: LiveHandle,
    /// This workload's identity.
    pub identity: IdentityHandle,
    /// Told of everything that happens.
    pub observe: Observer,
    /// Tenants' quotas, as slices held by this process.
    pub quotas: Arc<Quotas>,
    /// Those outside the mesh that callers name themselves, and the DNS.
    pub outsiders: Arc<Outsiders>,
    /// Keys that issuers publish.
    pub keys: Keys,
    /// In which traces retries were made lately.
    pub hops: Arc<Hops>,
    /// Whether the process is leaving.
    pub drain: Drain,
    /// What the operator said.
    pub settings: Arc<Settings>,
}

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Settings(#[from] BadSettings),
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    NoIdentity(#[from] NoIdentity),
    #[error("{what} {address}: {error}; choose another address with --{what}")]
    Listen { what: &'static str, address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The whole program; `args` with the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match config::read(args) {
        Ok(line) => line,
        Err(said) => {
            // Help goes to standard output with 0, mistakes to standard error with 2; a closed pipe is nobody's fault.
            let _ = said.print();
            return ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2));
        }
    };
    let CommandLine { command, sources, written } = line;
    match command {
        Command::Wait(asked) => wait::run(&asked),
        Command::Run(given) => match sidecar(*given, sources, written) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tell(&error);
                ExitCode::FAILURE
            }
        },
    }
}

/// Says why the process ends, in one line for people whatever the log's form is.
fn tell(error: &Fatal) {
    let _ = writeln!(std::io::stderr(), "equerry-proxy: {error}");
}

fn sidecar(given: Given, sources: Sources, line: Written) -> Result<(), Fatal> {
    let only_printed = given.only_printed();
    let settings = Arc::new(Settings { line, ..given.complete_from(sources)? });
    if only_printed {
        return Ok(std::io::stdout().lock().write_all(settings.print().as_bytes())?);
    }
    if let Some(traces) = &settings.traces {
        traces.check()?;
    }
    let levels = Levels::start(&settings.log);
    if settings.exit_with_stdin {
        end_with_stdin();
    }
    let state_dir = StateDir::open(&settings.state_dir)?;
    let last_good = LastGood::open(&state_dir)?;
    let listeners = Listeners::bind(&settings)?;
    let observe = Observer::new(ObserverOptions { access_log: settings.access_log.clone(), series_cap: SERIES_CAP })?;
    let (observe, spans) = match &settings.traces {
        Some(traces) => {
            let (tracer, spans) = Tracer::new(traces.sampling, traces.forms);
            (observe.with_tracer(tracer), Some(spans))
        }
        None => (observe, None),
    };
    let control = Builder::new_current_thread().enable_all().build()?;
    let last_good = Arc::new(Mutex::new(last_good));
    let ended =
        control.block_on(Control { settings, listeners, observe: observe.clone(), spans, last_good, levels }.run());
    // Blocking calls of this runtime are short saves; nothing else may hold the process back.
    control.shutdown_timeout(LAST_LINES);
    observe.flush(LAST_LINES);
    drop(state_dir);
    ended
}

/// Everything that is bound before anything starts.
struct Listeners {
    outbound: std::net::TcpListener,
    /// Those of `--tcp`.
    tcp: Vec<std::net::TcpListener>,
    inbound: std::net::TcpListener,
    admin: std::net::TcpListener,
    telemetry: std::net::TcpListener,
}

impl Listeners {
    fn bind(settings: &Settings) -> Result<Self, Fatal> {
        Ok(Self {
            outbound: listen("outbound", settings.outbound)?,
            tcp: settings.tcp.iter().map(|port| listen("tcp", tcp_door(port))).collect::<Result<_, _>>()?,
            inbound: listen("inbound", settings.inbound)?,
            admin: listen("admin", settings.admin)?,
            telemetry: listen("telemetry", settings.telemetry)?,
        })
    }

    fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        let Self { outbound, tcp, inbound, admin, telemetry } = self;
        [outbound, inbound, admin, telemetry].into_iter().chain(tcp).map(std::net::TcpListener::local_addr).collect()
    }
}

/// Where this process itself would be met: a listener on any address is met at the advertised one too.
fn own_doors(listeners: &[SocketAddr], advertised: SocketAddr) -> OwnDoors {
    let any = listeners.iter().filter(|at| at.ip().is_unspecified());
    let faced = any.map(|at| SocketAddr::new(advertised.ip(), at.port()));
    OwnDoors::new(listeners.iter().copied().chain(faced).chain([advertised]))
}

fn listen(what: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, Fatal> {
    use socket2::{Domain, Socket, TcpKeepalive, Type};
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Taken over by every connection that is accepted: one whose other end is gone without a word ends too.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SIGN_OF_LIFE.0).with_interval(SIGN_OF_LIFE.1))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|error| Fatal::Listen { what, address, error })
}

/// The control thread.
struct Control {
    settings: Arc<Settings>,
    listeners: Listeners,
    observe: Observer,
    /// Those that are to be exported.
    spans: Option<mpsc::Receiver<Span>>,
    last_good: Arc<Mutex<LastGood>>,
    levels: Levels,
}

impl Control {
    async fn run(self) -> Result<(), Fatal> {
        let Self { settings, listeners, observe, spans, last_good, levels } = self;
        let (status, drain, stop) = (Status::default(), Drain::new(), Arc::new(Notify::new()));
        let addresses = listeners.addresses()?;
        let window = Window {
            observe: observe.clone(),
            status: status.clone(),
            shared: Arc::new(OnceLock::new()),
            stop: Arc::clone(&stop),
            levels: levels.clone(),
        };
        tokio::spawn(admin::serve(
            tokio::net::TcpListener::from_std(listeners.telemetry)?,
            Side::Telemetry,
            window.clone(),
        ));
        tokio::spawn(admin::serve(tokio::net::TcpListener::from_std(listeners.admin)?, Side::Admin, window.clone()));
        let reload = Reload { settings: Arc::clone(&settings), levels, observe: observe.clone() };
        listen_to_signals(Arc::clone(&stop), observe.clone(), reload)?;
        tokio::spawn(tidy::keep());

        let identity = IdentityHandle::with_grace(settings.drain_timeout);
        let keeper = live::Keeper {
            control_plane: settings.control_plane.clone(),
            token: settings.join_token.clone(),
            last_good: Arc::clone(&last_good),
            identity: identity.clone(),
            status: status.clone(),
            observe: observe.clone(),
            joining: Default::default(),
        };
        tokio::select! {
            joined = keeper.first() => joined?,
            () = stop.notified() => return Ok(()),
        }
        let Some(own) = identity.latest().map(|identity| identity.id.clone()) else { return Ok(()) };
        tracing::info!(%own, instance = %settings.instance, "this sidecar has its identity");
        let exports = spans.and_then(|spans| export(spans, &settings, &own, &observe));

        let inbound = listeners.inbound.local_addr()?;
        let advertised = settings.advertised(inbound);
        let doors = own_doors(&addresses, advertised);
        let nothing_held = live::Swap::new(own.clone(), doors.clone());
        let (swap, quotas) = from_last_good(nothing_held, &own, &settings, &last_good);
        let (live, wants) = LiveHandle::new(Live::nothing(own));
        let shared = Shared {
            live: live.clone(),
            identity: identity.clone(),
            observe: observe.clone(),
            quotas: Arc::clone(&quotas),
            outsiders: Arc::new(Outsiders::new(settings.dns.clone(), doors.clone())),
            keys: keys(&settings, doors, &observe, &last_good),
            hops: Arc::default(),
            drain: drain.clone(),
            settings: Arc::clone(&settings),
        };
        let link = Link::new(settings.control_plane.clone(), identity.clone());
        let conversation =
            Conversation { keeper, link, swap, wants, shared: shared.clone(), status: status.clone(), last_good };
        let leave = conversation.start(advertised);
        let _ = window.shared.set(shared.clone());
        let outward = std::iter::once(listeners.outbound).chain(listeners.tcp).collect();
        start_workers(&shared, outward, listeners.inbound)?;
        status.started(live, identity, drain.clone());
        tokio::spawn(say_ready(status.clone(), settings.outbound, inbound));

        stop.notified().await;
        finish_work(&drain, &observe, leave, settings.drain_timeout).await;
        if let Some(exports) = exports {
            exports.finish(LAST_LINES).await;
        }
        Ok(())
    }
}

/// Lets what is under way come to its end, within `grace`.
async fn finish_work(drain: &Drain, observe: &Observer, leave: JoinHandle<()>, grace: Duration) {
    tell_manager(NotifyState::Stopping);
    tracing::info!(connections = drain.working(), "draining");
    drain.begin();
    let (left, ()) = tokio::join!(drain.all_gone(grace), async {
        // Callers are told by the control plane: give that a moment, but never more than the grace period.
        let leaving = async { tokio::join!(leave, tokio::time::sleep(LEAVE)) };
        let _ = tokio::time::timeout(grace, leaving).await;
    });
    let left = left && drain.all_gone(grace.min(LEAVE)).await;
    if left {
        tracing::info!("drained");
    } else {
        tracing::warn!(connections = drain.working(), "the grace period is over; what is still open is cut off");
        observe.cut_off();
        drain.cut_off();
        // Each has its line in the access log.
        drain.all_gone(LAST_LINES).await;
    }
}

/// Starts to send spans, under the name of this workload.
fn export(spans: mpsc::Receiver<Span>, settings: &Settings, own: &SpiffeId, observe: &Observer) -> Option<Exports> {
    let traces = settings.traces.as_ref()?;
    let about = [
        ("service.name", own.account.as_str()),
        ("service.namespace", own.namespace.as_str()),
        ("service.instance.id", settings.instance.as_str()),
    ];
    tracing::info!(endpoint = %traces.to.endpoint, sampling = traces.sampling, "spans are sent");
    if traces.to.tells_all() {
        tracing::warn!(endpoint = %traces.to.endpoint, "otlp-headers go to another machine as plain text: write https://");
    }
    Some(Exporter::new(traces.to.clone(), spans, observe.spans(), &about).start())
}

/// The keys that issuers publish: at first those that were good last.
fn keys(settings: &Settings, doors: OwnDoors, observe: &Observer, last_good: &Arc<Mutex<LastGood>>) -> Keys {
    let fetcher = Fetcher::new(settings.dns.clone(), settings.jwks_allow.clone(), doors);
    Keys::new(fetcher, observe.clone(), Some(Arc::clone(last_good)))
}

/// What this proxy starts from: the last good configuration, when it is there, whole, and of this identity.
fn from_last_good(
    mut swap: live::Swap,
    own: &SpiffeId,
    settings: &Settings,
    last_good: &Mutex<LastGood>,
) -> (live::Swap, Arc<Quotas>) {
    let quotas = Arc::new(Quotas::new(settings.instance.clone()));
    let saved = last_good.lock().unwrap_or_else(PoisonError::into_inner).config();
    match saved {
        Ok(Some(saved)) if saved.own == *own => {
            tracing::info!(
                epoch = saved.epoch,
                resources = saved.resources.len(),
                "starting from the last good configuration"
            );
            quotas.restore(&saved.shares);
            for complaint in swap.restore(saved) {
                tracing::warn!(
                    kind = complaint.r#type,
                    name = complaint.name,
                    error = complaint.message,
                    "left out of the last good configuration"
                );
            }
        }
        Ok(Some(saved)) => {
            tracing::warn!(was = %saved.own, "the last good configuration is of another identity and is not used");
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, "there is no last good configuration; not ready until the control plane answers");
        }
    }
    (swap, quotas)
}

/// All that is said to the control plane, and heard from it.
struct Conversation {
    keeper: live::Keeper,
    link: Link,
    swap: live::Swap,
    wants: UnboundedReceiver<ServiceName>,
    shared: Shared,
    status: Status,
    last_good: Arc<Mutex<LastGood>>,
}

impl Conversation {
    /// Starts it; the task returned ends once the lease is given back.
    fn start(self, advertised: SocketAddr) -> JoinHandle<()> {
        let Self { keeper, link, swap, wants, shared, status, last_good } = self;
        let Shared { live, identity, observe, quotas, outsiders, keys, drain, settings, .. } = shared;
        let verdict = live::health::unknown();
        let lease = live::Lease::new(&settings, advertised);
        let leave = tokio::spawn(lease.hold(link.clone(), verdict.subscribe(), status.clone(), drain.clone()));
        tokio::spawn(probe::ask_own(Arc::clone(&settings), verdict));
        tokio::spawn(probe::Prober::new(live.clone(), observe.clone()).run());
        let (trust, told) = mpsc::unbounded_channel();
        tokio::spawn(keeper.keep(link.clone(), told));
        tokio::spawn(live::slices::run(Arc::clone(&quotas), link.clone()));
        tokio::spawn(live::calls::run(settings.instance.clone(), observe.clone(), link.clone()));
        let who = live::Who { instance: settings.instance.clone(), version: env!("CARGO_PKG_VERSION") };
        let (want_names, wanted) = watch::channel(BTreeSet::<HostName>::new());
        let (tell_names, found) = watch::channel(live::Found::new());
        tokio::spawn(outsiders.resolver().clone().follow(wanted, tell_names));
        let (want_keys, wanted) = watch::channel(BTreeSet::new());
        let (tell_keys, published) = watch::channel(FetchedKeys::new());
        tokio::spawn(keys.follow(wanted, tell_keys));
        let subscriber = live::Subscriber::new(live::Parts {
            who,
            link,
            swap,
            live,
            wants,
            want_names,
            found,
            want_keys,
            keys: published,
            quotas,
            observe,
            status,
            last_good,
            drain,
            identity,
            trust,
        });
        tokio::spawn(subscriber.run());
        leave
    }
}

/// Starts the data threads; the first one also accepts.
fn start_workers(
    shared: &Shared,
    outbound: Vec<std::net::TcpListener>,
    inbound: std::net::TcpListener,
) -> Result<(), Fatal> {
    let (handles, inboxes): (Vec<WorkerHandle>, Vec<accept::Inbox>) =
        (0..shared.settings.workers).map(|_| accept::worker()).unzip();
    let most = accept::room::connections(shared.settings.max_connections);
    tracing::info!(connections = most, workers = shared.settings.workers, "room for connections");
    let mut listeners = Some((outbound, inbound, handles));
    for (n, inbox) in inboxes.into_iter().enumerate() {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let shared = shared.clone();
        let listeners = listeners.take();
        std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
            // It stays on its thread, and with it whatever runs on it.
            let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => {
                    let _ = tell.send(Ok(()));
                    runtime
                }
                Err(error) => return drop(tell.send(Err(error))),
            };
            runtime.block_on(async move {
                tokio::task::spawn_local(tidy::worker(facts::put_down));
                if let Some((outbound, inbound, handles)) = listeners {
                    let acceptor = Acceptor {
                        workers: handles.into(),
                        room: Rc::new(Room::new(most)),
                        observe: shared.observe.clone(),
                    };
                    for listener in outbound {
                        acceptor.accept_on(listener, Direction::Outbound);
                    }
                    acceptor.accept_on(inbound, Direction::Inbound);
                }
                let drain = shared.drain.clone();
                let (outbound, inbound) = (Rc::new(Outbound::new(shared.clone())), Rc::new(Inbound::new(shared)));
                let serve = move |direction, welcome, stream, peer| -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
                    let (outbound, inbound) = (Rc::clone(&outbound), Rc::clone(&inbound));
                    match (direction, welcome) {
                        (Direction::Outbound, Welcome::Served) => {
                            Box::pin(async move { outbound.serve(stream, peer).await })
                        }
                        (Direction::Inbound, Welcome::Served) => {
                            Box::pin(async move { inbound.serve(stream, peer).await })
                        }
                        (Direction::Outbound, Welcome::TurnedAway) => {
                            Box::pin(async move { outbound.turn_away(stream, peer).await })
                        }
                        (Direction::Inbound, Welcome::TurnedAway) => {
                            Box::pin(async move { inbound.turn_away(stream, peer).await })
                        }
                    }
                };
                tokio::select! {
                    () = accept::work(inbox, serve) => {}
                    () = drain.wait_cut_off() => {}
                }
            });
            // What was still open ends with the runtime.
        })?;
        told.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))?;
    }
    Ok(())
}

/// What all listeners share.
struct Acceptor {
    workers: Rc<[WorkerHandle]>,
    room: Rc<Room>,
    observe: Observer,
}

impl Acceptor {
    fn accept_on(&self, listener: std::net::TcpListener, direction: Direction) {
        let (workers, room, observe) = (Rc::clone(&self.workers), Rc::clone(&self.room), self.observe.clone());
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::task::spawn_local(accept::run(listener, direction, workers, room, observe));
            }
            Err(error) => tracing::error!(%error, direction = direction.as_str(), "this listener cannot be served"),
        }
    }
}

/// One line when everything stands.
async fn say_ready(status: Status, outbound: SocketAddr, inbound: SocketAddr) {
    while !status.is_ready() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::info!(%outbound, %inbound, "ready");
    tell_manager(NotifyState::Ready);
}

/// TERM and INT stop, a second one at once; USR1 opens the access log again, HUP reads settings again too.
fn listen_to_signals(stop: Arc<Notify>, observe: Observer, reload: Reload) -> std::io::Result<()> {
    let mut hup = signal(SignalKind::hangup())?;
    let (mut term, mut int, mut usr1) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::user_defined1())?);
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = usr1.recv() => {
                    observe.reopen_access_log();
                    continue;
                }
                _ = hup.recv() => {
                    reload.again();
                    continue;
                }
            }
            if std::mem::replace(&mut asked, true) {
                tracing::warn!("told to stop again: ending at once");
                observe.flush(LAST_LINES);
                std::process::exit(1);
            }
            stop.notify_one();
        }
    });
    Ok(())
}

/// Ends the process when its standard input does: a supervisor that dies takes its sidecars along.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let mut rest = [0; 256];
        while std::io::stdin().read(&mut rest).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    });
}

/// Tells the service manager, where one listens; one that does not hear is told of in the log, and nothing else.
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
