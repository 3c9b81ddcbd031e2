//! The books against sidecars as they behave: they spend only what they were told, report totals, and may be cut off.

use std::collections::VecDeque;

use equerry_policies::names::{AccountName, InstanceId, Namespace};
use equerry_policies::policy::{OnControlPlaneLoss, Origin, TenantMatch};

use super::*;

const WINDOW_MS: u64 = 5_000;
const START_MS: u64 = 1_800_000_000_000;

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

fn tenant(requests: u64) -> Tenant {
    Tenant {
        name: TenantName::parse("acme").unwrap(),
        matches: vec![TenantMatch::Header {
            name: "x-tenant".into(),
            value: "acme".into(),
            trusted_from: vec![AccountName::parse("shop/frontend").unwrap()],
        }],
        quotas: vec![Quota {
            id: "acme/0".into(),
            services: vec![ServiceName::parse("shop/inventory").unwrap()],
            requests,
            window: Duration::from_millis(WINDOW_MS),
        }],
        on_control_plane_loss: OnControlPlaneLoss::LastShare,
        origin: Origin::default(),
    }
}

fn key(index: usize) -> InstanceKey {
    InstanceKey {
        namespace: Namespace::parse("shop").unwrap(),
        id: InstanceId::parse(&format!("inventory-{index}")).unwrap(),
    }
}

fn members(count: usize) -> Vec<(InstanceKey, Arc<[ServiceName]>)> {
    let services: Arc<[ServiceName]> = Arc::new([ServiceName::parse("shop/inventory").unwrap()]);
    (0..count).map(|index| (key(index), Arc::clone(&services))).collect()
}

/// A sidecar's slice, as small as it can be.
#[derive(Debug, Default)]
struct Sidecar {
    window: u64,
    told: HashMap<u64, Told>,
    spent: u64,
    returned: u64,
    refused: bool,
}

impl Sidecar {
    fn turn(&mut self, window: u64) {
        if self.window != window {
            *self = Self { window, told: std::mem::take(&mut self.told), ..Self::default() };
            self.told.retain(|number, _| *number >= window);
            self.give_back();
        }
    }

    fn granted(&self) -> u64 {
        self.told.get(&self.window).map_or(0, |told| told.granted)
    }

    fn left(&self) -> u64 {
        self.granted() - self.returned - self.spent
    }

    fn give_back(&mut self) {
        let asked = self.told.get(&self.window).map_or(0, |told| told.give_back);
        self.returned += asked.saturating_sub(self.returned).min(self.left());
    }

    fn hear(&mut self, telling: &Telling) {
        let told = self.told.entry(telling.window).or_default();
        if telling.told.granted > told.granted {
            self.refused = false;
        }
        *told = Told { granted: telling.told.granted.max(told.granted), ..telling.told };
        self.give_back();
    }

    fn admit(&mut self) -> bool {
        let admitted = self.left() > 0;
        self.spent += u64::from(admitted);
        self.refused |= !admitted;
        admitted
    }

    fn report(&self) -> Report {
        let held = self.granted() - self.returned;
        let wants_more = self.refused || self.spent * 2 >= held;
        Report {
            window: self.window,
            granted: self.granted(),
            spent: self.spent,
            returned: self.returned,
            spent_offline: 0,
            wants_more,
        }
    }
}

/// A control plane, its disk, and sidecars whose messages take a while.
struct World {
    rng: fastrand::Rng,
    books: Books,
    disk: HashMap<(u64, String), GrantRow>,
    requests: u64,
    sidecars: Vec<Sidecar>,
    heard: Vec<Heard>,
    reports: VecDeque<(u64, usize, Report)>,
    tellings: VecDeque<(u64, usize, Telling)>,
    now_ms: u64,
    admitted: HashMap<u64, u64>,
}

impl World {
    fn new(seed: u64, requests: u64, count: usize) -> Self {
        let tenants = [tenant(requests)];
        let mut books = Books::default();
        books.set_tenants(tenants.iter(), at(START_MS));
        books.set_members(&members(count));
        Self {
            rng: fastrand::Rng::with_seed(seed),
            books,
            disk: HashMap::new(),
            requests,
            sidecars: (0..count).map(|_| Sidecar::default()).collect(),
            heard: vec![Heard::new(); count],
            reports: VecDeque::new(),
            tellings: VecDeque::new(),
            now_ms: START_MS,
            admitted: HashMap::new(),
        }
    }

    /// One millisecond; `request` names the sidecar that gets one.
    fn step(&mut self, request: Option<usize>, write: bool) {
        self.now_ms += 1;
        let number = self.now_ms / WINDOW_MS;
        self.sidecars.iter_mut().for_each(|sidecar| sidecar.turn(number));
        if let Some(index) = request {
            *self.admitted.entry(number).or_default() += u64::from(self.sidecars[index].admit());
            self.send(index);
        } else if self.now_ms.is_multiple_of(100) {
            (0..self.sidecars.len()).for_each(|index| self.send(index));
        }
        while self.reports.front().is_some_and(|(due, ..)| *due <= self.now_ms) {
            if let Some((_, index, report)) = self.reports.pop_front() {
                self.books.report(&key(index), "acme/0", &report, at(self.now_ms)).unwrap();
            }
        }
        self.books.settle(at(self.now_ms));
        if write {
            self.write();
        }
        for index in 0..self.sidecars.len() {
            let delay = self.rng.u64(0..5);
            let told = self.books.tell(&key(index), &mut self.heard[index], at(self.now_ms));
            self.tellings.extend(told.into_iter().map(|telling| (self.now_ms + delay, index, telling)));
        }
        while self.tellings.front().is_some_and(|(due, ..)| *due <= self.now_ms) {
            if let Some((_, index, telling)) = self.tellings.pop_front() {
                let returned = self.sidecars[index].returned;
                self.sidecars[index].hear(&telling);
                if self.sidecars[index].returned > returned {
                    self.send(index);
                }
            }
        }
        let admitted = self.admitted.get(&number).copied().unwrap_or_default();
        assert!(admitted <= self.requests, "{admitted} of {} admitted", self.requests);
    }

    fn send(&mut self, index: usize) {
        let due = self.now_ms + self.rng.u64(0..5);
        self.reports.push_back((due, index, self.sidecars[index].report()));
    }

    fn write(&mut self) {
        let rows = self.books.promised();
        for row in &rows {
            self.disk.insert((row.window, row.instance.clone()), row.clone());
        }
        self.books.confirm(&rows);
    }

    /// The control plane dies and comes back with what is on disk; every stream is opened again.
    fn crash(&mut self) {
        let tenants = [tenant(self.requests)];
        self.books = Books::restore(tenants.iter(), self.disk.values().cloned().collect(), at(self.now_ms));
        self.books.set_members(&members(self.sidecars.len()));
        self.heard.iter_mut().for_each(HashMap::clear);
        self.reports.clear();
        self.tellings.clear();
    }
}

#[test]
fn the_whole_quota_is_spent_at_nine_to_one_and_never_more() {
    let few = (10..16).map(|seed| (seed, 3, 2));
    for (seed, requests, count) in [(1, 100, 2), (2, 1_000, 2), (3, 100, 10), (5, 1_000, 30)].into_iter().chain(few) {
        let mut world = World::new(seed, requests, count);
        // The first window begins with nothing granted; the second is the measure. Demand is twice the quota or more.
        for _ in 0..2 * WINDOW_MS {
            let hot = world.rng.u64(0..10) < 9;
            let index = if hot { 0 } else { world.rng.usize(1..count) };
            let due = world.rng.u64(0..WINDOW_MS) < (2 * requests).max(200);
            world.step(due.then_some(index), true);
        }
        let admitted = world.admitted[&(START_MS / WINDOW_MS + 1)];
        assert!(
            admitted * 10 >= requests * 9,
            "seed {seed}: only {admitted} of {requests} were admitted over {count} sidecars"
        );
    }
}

#[test]
fn nothing_is_told_before_it_is_on_disk_and_a_crash_grants_nothing_twice() {
    for seed in 0..12 {
        let mut world = World::new(seed, 60, 3);
        for step in 0..3 * WINDOW_MS {
            let index = world.rng.usize(0..3);
            let due = world.rng.u64(0..10) == 0;
            let write = world.rng.bool();
            world.step(due.then_some(index), write);
            if step % 1_500 == 1_499 && world.rng.bool() {
                world.crash();
            }
        }
        let told = world.admitted.values().sum::<u64>();
        assert!(told > 60, "seed {seed}: crashes must not stop the mesh: {told} admitted in three windows");
    }
}

#[test]
fn first_slices_are_there_before_the_window_begins() {
    let mut world = World::new(7, 100, 2);
    world.now_ms = START_MS + WINDOW_MS - 300;
    world.step(None, true);
    let next = START_MS / WINDOW_MS + 1;
    for index in 0..2 {
        let told = world.books.tell(&key(index), &mut Heard::new(), at(world.now_ms));
        let ahead = told.iter().find(|telling| telling.window == next).unwrap();
        assert_eq!(ahead.told.granted, 25, "a quarter each: quota / 2n");
    }
}

#[test]
fn what_was_spent_while_disconnected_counts() {
    let mut world = World::new(8, 100, 2);
    let window = START_MS / WINDOW_MS;
    world.step(None, true);
    let offline = Report { window, granted: 0, spent: 90, returned: 0, spent_offline: 90, wants_more: false };
    world.books.report(&key(0), "acme/0", &offline, at(world.now_ms)).unwrap();
    let hungry = Report { window, granted: 25, spent: 25, returned: 0, spent_offline: 0, wants_more: true };
    world.books.report(&key(1), "acme/0", &hungry, at(world.now_ms)).unwrap();
    let told = world.books.tell(&key(1), &mut Heard::new(), at(world.now_ms));
    assert_eq!(told[0].told.granted, 25, "nothing is left to grant");
    let usage = world.books.usage(&TenantName::parse("acme").unwrap(), at(world.now_ms));
    assert_eq!(usage.quotas[0].spent, 115);
}

#[test]
fn a_first_slice_granted_before_offline_spending_was_heard_of_is_asked_back() {
    let mut world = World::new(8, 60, 1);
    let window = START_MS / WINDOW_MS;
    world.step(None, true);
    let offline = Report { window, granted: 0, spent: 60, returned: 0, spent_offline: 60, wants_more: true };
    world.books.report(&key(0), "acme/0", &offline, at(world.now_ms)).unwrap();
    let told = world.books.tell(&key(0), &mut Heard::new(), at(world.now_ms));
    assert_eq!((told[0].told.granted, told[0].told.give_back), (30, 30), "all 60 are spent already");
    let returned = Report { granted: 30, returned: 30, ..offline };
    world.books.report(&key(0), "acme/0", &returned, at(world.now_ms)).unwrap();
    let told = world.books.tell(&key(0), &mut Heard::new(), at(world.now_ms));
    assert_eq!(told[0].told.granted, 30, "and nothing more is granted in this window");
}

#[test]
fn after_a_start_nothing_new_is_granted_until_everybody_has_reported() {
    let mut world = World::new(9, 100, 2);
    world.step(None, true);
    world.crash();
    let window = START_MS / WINDOW_MS;
    let hungry = Report { window, granted: 25, spent: 25, returned: 0, spent_offline: 0, wants_more: true };
    world.books.report(&key(0), "acme/0", &hungry, at(world.now_ms)).unwrap();
    assert!(world.books.promised().is_empty(), "the other may have spent while nobody kept the books");
    let quiet = Report { window, granted: 25, spent: 3, returned: 0, spent_offline: 0, wants_more: false };
    world.books.report(&key(1), "acme/0", &quiet, at(world.now_ms)).unwrap();
    assert_eq!(world.books.promised().len(), 1);
}

#[test]
fn a_changed_quota_keeps_its_book_and_a_changed_window_opens_a_new_one() {
    let mut world = World::new(10, 100, 2);
    world.step(None, true);
    let usage = |books: &Books, now| books.usage(&TenantName::parse("acme").unwrap(), at(now)).quotas.remove(0);
    world.books.set_tenants([tenant(40)].iter(), at(world.now_ms));
    assert_eq!((usage(&world.books, world.now_ms).granted, usage(&world.books, world.now_ms).requests), (50, 40));
    let mut longer = tenant(40);
    longer.quotas[0].window = Duration::from_secs(60);
    world.books.set_tenants([longer].iter(), at(world.now_ms));
    assert_eq!(usage(&world.books, world.now_ms).granted, 0);
    world.books.set_tenants([].iter(), at(world.now_ms));
    assert!(world.books.usage(&TenantName::parse("acme").unwrap(), at(world.now_ms)).quotas.is_empty());
}

#[test]
fn a_report_of_somebody_who_is_not_counted_is_refused() {
    let mut world = World::new(11, 100, 2);
    let refused = world.books.report(&key(5), "acme/0", &Report::default(), at(START_MS)).unwrap_err();
    assert!(matches!(refused, NotCounted::NotHere { .. }), "{refused}");
    let refused = world.books.report(&key(0), "nobody/0", &Report::default(), at(START_MS)).unwrap_err();
    assert!(matches!(refused, NotCounted::NoQuota(_)), "{refused}");
}
