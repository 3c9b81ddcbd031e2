//! The configuration stream against a control plane that says exactly what each test makes it say.

use std::net::SocketAddr;

use equerry_policies::names::SpiffeId;
use equerry_policies::policy::{
    AppProtocol, HttpRoute, Mesh, MtlsMode, Origin, PathMatch, RouteMatch, RouteRule, ServicePort, TrafficPolicy,
};
use equerry_policies::view::{DestinationView, EndpointAddress, EndpointView, EndpointsView, WorkloadView};
use equerry_traffic::outside::OwnDoors;
use equerry_wire::Resource;
use equerry_wire::proto::config_server::{Config, ConfigServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status as Refused, Streaming};

use super::super::state_dir::StateDir;
use super::super::{Live, NotThere};
use super::*;
use crate::observe::{AccessLogTarget, ObserverOptions, SERIES_CAP};

/// One stream, seen from the control plane.
struct Talk {
    heard: Streaming<proto::FromProxy>,
    say: UnboundedSender<Result<proto::ToProxy, Refused>>,
}

struct Scripted(UnboundedSender<Talk>);

#[tonic::async_trait]
impl Config for Scripted {
    type SubscribeStream = UnboundedReceiverStream<Result<proto::ToProxy, Refused>>;
    async fn subscribe(
        &self,
        request: Request<Streaming<proto::FromProxy>>,
    ) -> Result<Response<Self::SubscribeStream>, Refused> {
        let (say, said) = unbounded_channel();
        let _ = self.0.send(Talk { heard: request.into_inner(), say });
        Ok(Response::new(UnboundedReceiverStream::new(said)))
    }
}

impl Talk {
    async fn hear(&mut self) -> Message {
        let next = tokio::time::timeout(Duration::from_secs(10), self.heard.message());
        next.await.expect("something is said in time").unwrap().expect("the stream stands").message.unwrap()
    }

    async fn interest(&mut self) -> Vec<String> {
        match self.hear().await {
            Message::Interest(interest) => {
                interest.subscribe.iter().map(|name| format!("{} {}", name.r#type, name.name)).collect()
            }
            other => panic!("expected an interest, heard {other:?}"),
        }
    }

    /// Hears hello and the first interest.
    async fn greeting(&mut self) -> proto::Hello {
        let Message::Hello(hello) = self.hear().await else { panic!("hello is said first") };
        assert!(self.interest().await.contains(&"workload self".to_owned()));
        hello
    }

    fn say(&self, epoch: u64, nonce: u64, resources: &[Resource]) {
        let resources = resources.iter().map(|resource| resource.encode().unwrap()).collect();
        self.say.send(Ok(proto::ToProxy { to_epoch: epoch, nonce, resources, ..Default::default() })).unwrap();
    }
}

/// A control plane, a state directory, and a subscriber that runs.
struct World {
    talks: UnboundedReceiver<Talk>,
    live: LiveHandle,
    observe: Observer,
    drain: Drain,
    address: SocketAddr,
    dir: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
    subscriber: tokio::task::JoinHandle<()>,
}

fn own() -> SpiffeId {
    SpiffeId::parse("spiffe://equerry.local/ns/shop/sa/frontend").unwrap()
}

fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

fn observer() -> Observer {
    Observer::new(ObserverOptions { access_log: AccessLogTarget::Off, series_cap: SERIES_CAP }).unwrap()
}

/// A subscriber that goes on from whatever `dir` holds.
fn subscriber(
    dir: &std::path::Path,
    address: SocketAddr,
    observe: &Observer,
    drain: &Drain,
) -> (LiveHandle, Subscriber) {
    let last_good = LastGood::open(&StateDir::open(dir).unwrap()).unwrap();
    let mut swap = Swap::new(own(), OwnDoors::default());
    if let Some(saved) = last_good.config().unwrap() {
        assert_eq!(swap.restore(saved), []);
    }
    let (live, wants) = LiveHandle::new(Live::nothing(own()));
    let instance = InstanceId::parse("frontend-1").unwrap();
    let subscriber = Subscriber::new(Parts {
        who: Who { instance: instance.clone(), version: "test" },
        link: Link::plain(address),
        swap,
        live: live.clone(),
        wants,
        want_names: watch::channel(BTreeSet::new()).0,
        found: watch::channel(Found::new()).1,
        want_keys: watch::channel(BTreeSet::new()).0,
        keys: watch::channel(FetchedKeys::new()).1,
        quotas: Arc::new(Quotas::new(instance)),
        observe: observe.clone(),
        status: Status::default(),
        last_good: Arc::new(Mutex::new(last_good)),
        drain: drain.clone(),
        identity: IdentityHandle::default(),
        trust: unbounded_channel().0,
    });
    (live, subscriber)
}

impl World {
    async fn begin() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (talking, talks) = unbounded_channel();
        let server = tokio::spawn(async move {
            let service = ConfigServer::new(Scripted(talking));
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        let (observe, drain) = (observer(), Drain::new());
        let (live, subscriber) = subscriber(dir.path(), address, &observe, &drain);
        let subscriber = tokio::spawn(subscriber.run());
        Self { talks, live, observe, drain, address, dir, server, subscriber }
    }

    async fn talk(&mut self) -> Talk {
        tokio::time::timeout(Duration::from_secs(10), self.talks.recv())
            .await
            .expect("a stream is made in time")
            .unwrap()
    }
}

fn workload() -> Resource {
    Resource::Workload(Box::new(WorkloadView {
        mesh: Mesh::default(),
        services: Vec::new(),
        peer: MtlsMode::Strict,
        peer_ports: Vec::new(),
        plain_only: false,
        plain_only_ports: Vec::new(),
        tokens: Vec::new(),
        authorization: Vec::new(),
        csrf: vec![],
        trusted_hops: vec![],
        tenants: Vec::new(),
    }))
}

/// A workload on which nothing is written, for whoever needs one.
pub(crate) fn compiled_workload() -> Arc<equerry_policies::compile::CompiledWorkload> {
    match workload() {
        Resource::Workload(view) => Arc::new(equerry_policies::compile::workload(&view).unwrap()),
        other => panic!("expected a workload, found {other:?}"),
    }
}

fn route(to: &[&str], path: PathMatch) -> HttpRoute {
    HttpRoute {
        name: equerry_policies::names::PolicyName::parse("shop/route").unwrap(),
        kind: equerry_policies::policy::RouteKind::Http,
        parents: vec![(service("shop/orders"), None)],
        rules: vec![RouteRule {
            name: None,
            matches: vec![RouteMatch { path, headers: Vec::new(), query: Vec::new(), method: None }],
            filters: vec![],
            nowhere: Vec::new(),
            backends: to
                .iter()
                .map(|name| equerry_policies::policy::Backend {
                    service: service(name),
                    port: Some(80),
                    weight: 1,
                    filters: vec![],
                })
                .collect(),
            request_timeout: None,
            try_timeout: None,
            retry: None,
            origin: Origin::default(),
        }],
        origin: Origin::default(),
    }
}

fn destination(name: &str, routes: Vec<HttpRoute>) -> Resource {
    let mut backends: Vec<ServiceName> =
        routes.iter().flat_map(|r| &r.rules).flat_map(|r| &r.backends).map(|b| b.service.clone()).collect();
    backends.push(service(name));
    backends.sort();
    backends.dedup();
    Resource::Destination(Box::new(DestinationView {
        service: service(name),
        ports: vec![ServicePort {
            name: None,
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http,
            undeclared: false,
        }],
        accounts: vec![equerry_policies::names::AccountName::parse("shop/orders").unwrap()],
        external: None,
        routes,
        tcp_routes: vec![],
        faults: vec![],
        traffic: TrafficPolicy::default(),
        backends,
        origin: Origin::default(),
    }))
}

fn endpoints(name: &str, ports: &[u16]) -> Resource {
    let endpoints = ports.iter().map(|port| EndpointView {
        instance: InstanceId::parse(&format!("i{port}")).unwrap(),
        address: EndpointAddress::Mesh(([127, 0, 0, 1], *port).into()),
        weight: 1,
        open: Vec::new(),
    });
    Resource::Endpoints(Box::new(EndpointsView {
        service: service(name),
        endpoints: endpoints.collect(),
        unwell: Vec::new(),
    }))
}

fn prefix() -> PathMatch {
    PathMatch::Prefix("/".to_owned())
}

#[tokio::test]
async fn an_update_is_in_force_when_it_is_acknowledged() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    let hello = talk.greeting().await;
    assert_eq!((hello.instance_id.as_str(), hello.epoch, hello.held.len()), ("frontend-1", 0, 0));
    assert!(world.live.load().workload.is_none(), "nothing is known: deny");

    talk.say(3, 77, &[workload()]);
    assert_eq!(talk.hear().await, Message::Ack(proto::Ack { nonce: 77 }));
    let live = world.live.load();
    assert!(live.workload.is_some() && live.epoch == 3);
    assert!(world.observe.render().contains("equerry_config_epoch 3"));
}

#[tokio::test]
async fn the_first_request_for_a_name_asks_and_is_served_when_everything_behind_it_is_here() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    let wanting = tokio::spawn({
        let live = world.live.clone();
        async move { live.want(&service("shop/orders")).await }
    });
    assert_eq!(talk.interest().await, ["destination shop/orders", "endpoints shop/orders"]);
    talk.say(1, 1, &[destination("shop/orders", vec![route(&["shop/v1"], prefix())]), endpoints("shop/orders", &[1])]);
    assert_eq!(talk.interest().await, ["destination shop/v1", "endpoints shop/v1"]);
    assert!(!wanting.is_finished(), "its backend is not here yet");
    talk.say(1, 2, &[destination("shop/v1", Vec::new()), endpoints("shop/v1", &[2])]);
    let live = wanting.await.unwrap().unwrap();
    assert_eq!(live.destinations[&service("shop/v1")].backend.endpoints.len(), 1);
}

#[tokio::test]
async fn an_unknown_name_is_refused_with_the_nearest_and_never_while_the_control_plane_is_away() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    let live = world.live.clone();
    let wanting = tokio::spawn(async move { live.want(&service("shop/order")).await });
    talk.interest().await;
    let unknown =
        proto::Unknown { r#type: "destination".into(), name: "shop/order".into(), nearest: "shop/orders".into() };
    talk.say.send(Ok(proto::ToProxy { nonce: 1, unknown: vec![unknown], ..Default::default() })).unwrap();
    assert_eq!(wanting.await.unwrap().unwrap_err(), NotThere::Unknown { nearest: Some("shop/orders".to_owned()) });

    world.server.abort();
    drop(talk);
    world.talks.close();
    assert_eq!(world.live.want(&service("shop/nobody")).await.unwrap_err(), NotThere::Unavailable);
    assert_eq!(world.live.want(&service("shop/order")).await.unwrap_err(), NotThere::Unavailable);
}

#[tokio::test]
async fn names_that_do_not_exist_are_not_collected_for_ever() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    let (mut watched, mut most) = (0, 0);
    for number in 0..2 * MOST_UNKNOWN {
        let (live, name) = (world.live.clone(), service(&format!("shop/n{number}")));
        let wanting = tokio::spawn(async move { live.want(&name).await });
        let asked = loop {
            let Message::Interest(interest) = talk.hear().await else { continue };
            watched = watched + interest.subscribe.len() - interest.unsubscribe.len();
            if !interest.subscribe.is_empty() {
                break interest.subscribe;
            }
        };
        most = most.max(watched);
        let unknown = asked.into_iter().map(|name| proto::Unknown {
            r#type: name.r#type,
            name: name.name,
            nearest: String::new(),
        });
        talk.say
            .send(Ok(proto::ToProxy { nonce: number as u64 + 1, unknown: unknown.collect(), ..Default::default() }))
            .unwrap();
        assert_eq!(wanting.await.unwrap().unwrap_err(), NotThere::Unknown { nearest: None }, "{number}");
    }
    assert!(world.live.load().unknown.len() <= MOST_UNKNOWN);
    assert!(most <= 2 * (MOST_UNKNOWN + 2), "a destination and its endpoints each, {most} watched");
}

#[tokio::test]
async fn what_does_not_compile_keeps_its_last_good_version_and_is_named_while_the_rest_is_taken() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    talk.say(1, 1, &[workload(), destination("shop/orders", Vec::new()), endpoints("shop/orders", &[1])]);
    while !matches!(talk.hear().await, Message::Ack(_)) {}

    let broken = route(&["shop/orders"], PathMatch::Regex("(".to_owned()));
    talk.say(2, 2, &[destination("shop/orders", vec![broken]), endpoints("shop/orders", &[1, 2])]);
    let nack = loop {
        match talk.hear().await {
            Message::Nack(nack) => break nack,
            Message::Ack(_) => panic!("a broken route was acknowledged"),
            _ => {}
        }
    };
    assert_eq!((nack.nonce, nack.complaints.len()), (2, 1));
    assert_eq!((nack.complaints[0].r#type.as_str(), nack.complaints[0].name.as_str()), ("destination", "shop/orders"));
    let live = world.live.load();
    assert_eq!(
        live.destinations[&service("shop/orders")].backend.endpoints.len(),
        2,
        "the rest of the update is in force"
    );
    assert!(live.workload.is_some() && live.epoch == 2);
    assert!(world.observe.render().contains("equerry_config_nacks_total 1"));
}

#[tokio::test]
async fn a_workload_policy_that_cannot_be_understood_denies_when_there_is_none_from_before() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    let body = b"{\"not\": \"a workload\"}".to_vec();
    let broken = proto::Resource {
        r#type: "workload".into(),
        name: "self".into(),
        version: equerry_wire::version_of(&body),
        body,
    };
    talk.say
        .send(Ok(proto::ToProxy { to_epoch: 1, nonce: 5, resources: vec![broken.clone()], ..Default::default() }))
        .unwrap();
    assert!(matches!(talk.hear().await, Message::Nack(nack) if nack.nonce == 5));
    assert!(world.live.load().workload.is_none());

    talk.say(2, 6, &[workload()]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    talk.say.send(Ok(proto::ToProxy { to_epoch: 3, nonce: 7, resources: vec![broken], ..Default::default() })).unwrap();
    assert!(matches!(talk.hear().await, Message::Nack(_)));
    assert!(world.live.load().workload.is_some(), "the last good one stays in force");
}

#[tokio::test]
async fn a_route_moves_to_a_new_backend_only_when_that_backend_is_here() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    let wanting = tokio::spawn({
        let live = world.live.clone();
        async move { live.want(&service("shop/orders")).await }
    });
    talk.interest().await;
    talk.say(1, 1, &[workload(), destination("shop/orders", Vec::new()), endpoints("shop/orders", &[1])]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    let before = wanting.await.unwrap().unwrap();

    talk.say(2, 2, &[destination("shop/orders", vec![route(&["shop/v2"], prefix())])]);
    assert_eq!(talk.interest().await, ["destination shop/v2", "endpoints shop/v2"]);
    let held_back = world.live.load();
    let compiled = |live: &Live| Arc::clone(&live.destinations[&service("shop/orders")].compiled);
    assert!(Arc::ptr_eq(&compiled(&before), &compiled(&held_back)), "the old route stays in force");

    talk.say(2, 3, &[destination("shop/v2", Vec::new()), endpoints("shop/v2", &[2])]);
    assert_eq!(talk.hear().await, Message::Ack(proto::Ack { nonce: 2 }));
    assert_eq!(talk.hear().await, Message::Ack(proto::Ack { nonce: 3 }));
    assert!(!Arc::ptr_eq(&compiled(&before), &compiled(&world.live.load())));
}

#[tokio::test]
async fn a_broken_stream_is_made_again_and_says_what_is_held() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    talk.say(4, 1, &[workload()]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    talk.say.send(Err(Refused::unavailable("the control plane restarts"))).unwrap();
    drop(talk);

    let mut again = world.talk().await;
    let hello = again.greeting().await;
    assert_eq!(hello.epoch, 4);
    assert_eq!(
        hello.held,
        [proto::Held { r#type: "workload".into(), name: "self".into(), version: workload().encode().unwrap().version }]
    );
    assert!(world.live.load().workload.is_some(), "everything stayed in force meanwhile");
}

#[tokio::test]
async fn what_outlives_a_change_is_the_same_object_afterwards() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    talk.say(1, 1, &[destination("shop/orders", Vec::new()), endpoints("shop/orders", &[1])]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    let before = Arc::clone(&world.live.load().destinations[&service("shop/orders")]);
    talk.say(
        2,
        2,
        &[destination("shop/orders", vec![route(&["shop/orders"], prefix())]), endpoints("shop/orders", &[1, 2])],
    );
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    let after = Arc::clone(&world.live.load().destinations[&service("shop/orders")]);
    assert!(Arc::ptr_eq(&before.budget, &after.budget));
    assert!(Arc::ptr_eq(&before.backend.limits, &after.backend.limits));
    assert!(Arc::ptr_eq(&before.backend.endpoints[0].state, &after.backend.endpoints[0].state));
    assert_eq!(after.backend.endpoints.len(), 2);
}

#[tokio::test]
async fn a_cold_start_without_a_control_plane_serves_what_was_last_good() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    talk.say(9, 1, &[workload(), destination("shop/orders", Vec::new()), endpoints("shop/orders", &[1])]);
    while !matches!(talk.hear().await, Message::Ack(_)) {}
    world.drain.begin();
    let sealed = world.dir.path().join("config.sealed");
    let saved = async {
        while !sealed.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), saved).await.unwrap();
    world.server.abort();
    world.subscriber.abort();
    let _ = (&mut world.server).await;
    let _ = (&mut world.subscriber).await;

    let (live, cold) = subscriber(world.dir.path(), world.address, &world.observe, &Drain::new());
    assert!(live.load().workload.is_some() && live.load().epoch == 9);
    let found = live.want(&service("shop/orders")).await.unwrap();
    assert_eq!(found.destinations[&service("shop/orders")].backend.endpoints.len(), 1);
    drop(cold);
}

#[tokio::test]
async fn a_process_that_leaves_waits_for_its_last_save() {
    let mut world = World::begin().await;
    let mut talk = world.talk().await;
    talk.greeting().await;
    talk.say(1, 1, &[workload()]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    talk.say(2, 2, &[workload()]);
    assert!(matches!(talk.hear().await, Message::Ack(_)));
    world.server.abort();
    world.drain.begin();
    assert!(world.drain.all_gone(Duration::from_secs(10)).await);
    world.subscriber.abort();
    let _ = (&mut world.subscriber).await;
    let (live, _cold) = subscriber(world.dir.path(), world.address, &world.observe, &Drain::new());
    assert_eq!(live.load().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_nobody_calls_any_more_is_let_go_and_one_in_use_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (live, mut subscriber) = subscriber(dir.path(), ([127, 0, 0, 1], 1).into(), &observer(), &Drain::new());
    let (to_control_plane, mut heard) = unbounded_channel();
    let mut session = Session { to_control_plane, subscribed: BTreeSet::new(), unanswered: VecDeque::new() };
    subscriber.name(service("shop/used"));
    subscriber.name(service("shop/idle"));
    subscriber.interest(&mut session);
    let resources = ["shop/used", "shop/idle"]
        .map(|name| [destination(name, Vec::new()), endpoints(name, &[1])])
        .into_iter()
        .flatten();
    let resources = resources.map(|resource| resource.encode().unwrap()).collect();
    subscriber.take(proto::ToProxy { to_epoch: 1, nonce: 1, resources, ..Default::default() }, &mut session);
    while heard.try_recv().is_ok() {}

    tokio::time::advance(IDLE).await;
    assert!(live.load().destination(&service("shop/used")).is_some());
    subscriber.let_go(&mut session);
    let Some(Message::Interest(interest)) = heard.try_recv().unwrap().message else { panic!("an interest is told") };
    let gone: Vec<String> = interest.unsubscribe.iter().map(|name| format!("{} {}", name.r#type, name.name)).collect();
    assert_eq!(gone, ["destination shop/idle", "endpoints shop/idle"]);
    assert!(live.load().destination(&service("shop/idle")).is_none());
    assert!(live.load().destination(&service("shop/used")).is_some());
}

#[tokio::test]
async fn names_that_services_stand_for_are_told_to_the_dns_and_its_answers_are_in_force_without_a_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let (live, mut subscriber) = subscriber(dir.path(), ([127, 0, 0, 1], 1).into(), &observer(), &Drain::new());
    let (tell, found) = watch::channel(Found::new());
    subscriber.found = found;
    let mut wanted = subscriber.want_names.subscribe();
    let Resource::Destination(mut view) = destination("shop/payments", Vec::new()) else { unreachable!() };
    let name = HostName::parse("pay.example.com").unwrap();
    view.external = Some(name.clone());
    let (to_control_plane, _heard) = unbounded_channel();
    let mut session = Session { to_control_plane, subscribed: BTreeSet::new(), unanswered: VecDeque::new() };
    let resources = [Resource::Destination(view), endpoints("shop/payments", &[])].map(|one| one.encode().unwrap());
    let update = proto::ToProxy { to_epoch: 1, nonce: 1, resources: resources.into(), ..Default::default() };
    subscriber.take(update, &mut session);
    assert_eq!(*wanted.borrow_and_update(), BTreeSet::from([name.clone()]));

    let running = tokio::spawn(subscriber.run());
    let payments = service("shop/payments");
    let wanting = tokio::spawn({
        let (live, payments) = (live.clone(), payments.clone());
        async move { live.want(&payments).await }
    });
    for address in [[192, 0, 2, 1], [192, 0, 2, 2]] {
        tell.send(Found::from([(name.clone(), Arc::from([address.into()]))])).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let shown = format!("dns-{}", std::net::Ipv4Addr::from(address));
        while live.load().destination(&payments).is_none_or(|it| it.backend.endpoints[0].instance.as_str() != shown) {
            assert!(Instant::now() < deadline, "{shown} is not in force");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(wanting.await.unwrap().is_ok(), "who waited was served");
    running.abort();
}
