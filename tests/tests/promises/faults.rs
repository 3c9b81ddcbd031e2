//! What an application can do to its callers, and what they see of it: a table of faults and calls, each under load, with one
//! faulty instance of two.
//!
//! A call that may be repeated never fails, unless its answer has begun. A call that may not is made once at most, and what
//! fails says why. A breaker opens and closes again, and afterwards everything works.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use equerry::demo::driver;
use equerry_tests::faulty::{Arrivals, Fault, Faulty};
use equerry_tests::nginx::{self, Nginx};
use equerry_tests::storm::{Kind, Outcome, Storm, Told};
use equerry_tests::{Mesh, eventually, peers};
use rustix::process::Signal;

use crate::{PAIR, program};

/// Calls of each kind that meet a fault.
const CALLS: usize = 48;
/// The call before which the fault begins: those before it are answered well, and leave connections behind.
const BEGINS: usize = 8;

/// May be repeated by its method.
const GET: Kind = Kind { name: "GET", method: "GET", path: "/", soon: "/soon", body: 0 };
/// May be repeated by its method, and has a body.
const PUT: Kind = Kind { name: "PUT", method: "PUT", path: "/", soon: "/soon", body: 2048 };
/// May not be repeated.
const POST: Kind = Kind { name: "POST", method: "POST", path: "/", soon: "/soon", body: 2048 };
/// May be repeated, because its rule names the method.
const NAMED: Kind = Kind { name: "named-POST", method: "POST", path: "/named", soon: "/soon/named", body: 2048 };
/// May not be repeated, and is larger than anything that is held.
const UPLOAD: Kind = Kind { name: "upload", method: "POST", path: "/", soon: "/soon", body: 1 << 20 };

/// What the callers of one kind may see.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expect {
    /// The application's own answer, always.
    Whole,
    /// That, or a refusal with one of these reasons.
    Or(&'static [&'static str]),
    /// That, or an answer that visibly broke off, or a refusal with one of these reasons where it broke off before it began.
    Cut(&'static [&'static str]),
}
use Expect::{Cut, Or, Whole};

impl Expect {
    fn allows(self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (_, Outcome::Whole(_)) | (Cut(_), Outcome::Cut) => true,
            (Or(expected) | Cut(expected), Outcome::Refused(reason)) => expected.contains(&reason.as_str()),
            _ => false,
        }
    }
}

/// What one instance of two suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Its application does this.
    App(Fault),
    /// Its sidecar stands still, and so does everything that was sent to it.
    Frozen,
    /// Its sidecar is killed.
    Killed,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(fault) => fault.fmt(f),
            Self::Frozen => f.pad("its sidecar frozen"),
            Self::Killed => f.pad("its sidecar killed"),
        }
    }
}

/// A fault, what each kind of call may see of it, and whether it opens a breaker.
struct Row {
    trouble: Trouble,
    get: Expect,
    put: Expect,
    named: Expect,
    post: Expect,
    upload: Expect,
    opens: bool,
}

const fn row(fault: Fault, sees: [Expect; 5], opens: bool) -> Row {
    all(Trouble::App(fault), sees, opens)
}

const fn all(trouble: Trouble, [get, put, named, post, upload]: [Expect; 5], opens: bool) -> Row {
    Row { trouble, get, put, named, post, upload, opens }
}

const RESET: Expect = Or(&["upstream_reset"]);
/// What nobody took is tried once more elsewhere, unless its body is on its way already.
const GONE: Expect = Or(&["upstream_reset", "connect_failed"]);
const LATE: Expect = Or(&["try_timeout"]);
const BROKEN: Expect = Cut(&["upstream_reset"]);

/// The promise. An answer that has begun cannot be taken back, so that there nobody is spared a broken one.
const MATRIX: [Row; 16] = [
    //  the application                GET    PUT    named   POST   upload   opens a breaker
    row(Fault::Killed, [Whole, Whole, Whole, RESET, GONE], true),
    row(Fault::Frozen, [Whole, Whole, Whole, LATE, LATE], true),
    row(Fault::Slow, [Whole, Whole, Whole, LATE, LATE], true),
    row(Fault::Resets, [Whole, Whole, Whole, RESET, RESET], true),
    row(Fault::ResetsMidBody, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], true),
    row(Fault::ClosesIdle, [Whole, Whole, Whole, RESET, GONE], false),
    row(Fault::SaysGoodbye, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::SaysMore, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::SaysLess, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], true),
    row(Fault::BreaksChunks, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], true),
    row(Fault::AnswersEarly, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::RefusesEarly, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::Garbage, [Whole, Whole, Whole, RESET, RESET], true),
    row(Fault::HeaderBomb, [Whole, Whole, Whole, RESET, RESET], true),
    all(Trouble::Frozen, [Whole, Whole, Whole, LATE, LATE], true),
    all(Trouble::Killed, [Whole, Whole, Whole, GONE, GONE], true),
];

/// What shares a connection may be in the middle of its answer when another's end closes it.
const BEGUN: Expect = Cut(&[]);
/// And an upload may not have begun where its connection ends.
const CUT_OR_GONE: Expect = Cut(&["upstream_reset", "connect_failed"]);

/// The same of an application that speaks HTTP/2. What it refused it has not begun, as it says itself: any call goes
/// elsewhere that is not on its way already.
const HTTP2: [Row; 16] = [
    //  the application                GET    PUT    named   POST   upload   opens a breaker
    row(Fault::Killed, [BEGUN, BEGUN, BEGUN, BROKEN, CUT_OR_GONE], true),
    row(Fault::Frozen, [Whole, Whole, Whole, LATE, LATE], true),
    row(Fault::Slow, [Whole, Whole, Whole, LATE, LATE], true),
    row(Fault::Resets, [Whole, Whole, Whole, RESET, RESET], true),
    row(Fault::ResetsMidBody, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], true),
    row(Fault::Refuses, [Whole, Whole, Whole, Whole, GONE], true),
    row(Fault::GoesAway, [BROKEN, BROKEN, BROKEN, BROKEN, CUT_OR_GONE], true),
    row(Fault::SaysGoodbye, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::ClosesIdle, [BEGUN, BEGUN, BEGUN, BROKEN, CUT_OR_GONE], false),
    row(Fault::SaysMore, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], false),
    row(Fault::SaysLess, [BROKEN, BROKEN, BROKEN, BROKEN, BROKEN], true),
    row(Fault::AnswersEarly, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::RefusesEarly, [Whole, Whole, Whole, Whole, Whole], false),
    row(Fault::BreaksChunks, [BROKEN, BROKEN, BROKEN, BROKEN, CUT_OR_GONE], true),
    row(Fault::Garbage, [BROKEN, BROKEN, BROKEN, BROKEN, CUT_OR_GONE], true),
    // No connection can be read on that has broken off in its headers: it takes those along that had not begun.
    row(Fault::HeaderBomb, [Whole, Whole, Whole, RESET, GONE], true),
];

/// Two names for the same two instances: by the first every second call meets the faulty one, behind the second it is soon left
/// alone.
const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: exposed, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: shop, annotations: {equerry.dev/accounts: inventory}}
spec: {selector: {app: inventory}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: exposed, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: exposed}]
  rules:
  - matches: [{path: {type: Exact, value: /named}, method: POST}]
    backendRefs: [{name: exposed, port: 80}]
    retry: {codes: [502, 503, 504], attempts: 3, backoff: 5ms}
  - matches: [{path: {type: Exact, value: /soon/named}, method: POST}]
    backendRefs: [{name: exposed, port: 80}]
    timeouts: {request: 10s, backendRequest: 500ms}
    retry: {codes: [502, 503, 504], attempts: 3, backoff: 5ms}
  - matches: [{path: {type: PathPrefix, value: /soon}}]
    backendRefs: [{name: exposed, port: 80}]
    timeouts: {request: 10s, backendRequest: 500ms}
    retry: {codes: [502, 503, 504], attempts: 3, backoff: 5ms}
  - backendRefs: [{name: exposed, port: 80}]
    retry: {codes: [502, 503, 504], attempts: 3, backoff: 5ms}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: guarded, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: guarded}]
  rules:
  - backendRefs: [{name: guarded, port: 80}]
    timeouts: {request: 10s, backendRequest: 500ms}
    retry: {codes: [502, 503, 504], attempts: 3, backoff: 5ms}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: exposed, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: exposed}]
  loadBalancer: {type: round_robin}
  retryBudget: {percent: 100, minPerSecond: 100}
---
apiVersion: equerry.dev/v1
kind: TrafficPolicy
metadata: {name: guarded, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: guarded}]
  loadBalancer: {type: round_robin}
  retryBudget: {percent: 100, minPerSecond: 100}
  breaker: {consecutiveFailures: 5, penalty: {min: 100ms, max: 200ms}}
";

/// A mesh with two instances of one application, the second of which can be made to fail.
struct Ground {
    mesh: Mesh,
    arrivals: Arrivals,
    _well: Faulty,
    faulty: Faulty,
}

impl Ground {
    async fn lay(documents: &str) -> Result<Self> {
        let mesh = Mesh::found(program(), &PAIR, documents).await?;
        let arrivals = Arrivals::default();
        let start = async |name| -> Result<Faulty> {
            let home = mesh.town.home(name)?;
            home.app.release();
            Ok(Faulty::start(home.resident.name, home.app.number(), arrivals.clone()).await?)
        };
        let (well, faulty) = (start("inventory-v1").await?, start("inventory-v2").await?);
        mesh.start_sidecars(&[]).await?;
        let ground = Self { arrivals, _well: well, faulty, mesh };
        ground.all_is_well().await.context("before any fault")?;
        Ok(ground)
    }

    async fn storm(&self) -> Result<Storm<'_>> {
        let orders = self.mesh.town.home("orders")?;
        Storm::through(&orders.outbound.address(), orders.through_sidecar()).await
    }

    /// Both instances answer, by both names and versions, and no breaker is open.
    async fn all_is_well(&self) -> Result<()> {
        let storm = self.storm().await?;
        eventually(Duration::from_secs(10), "everything to be well", async || {
            for service in ["exposed", "guarded"] {
                let mut by = Vec::new();
                for number in 0..8 {
                    let told = storm.call(service, GET, number % 2 == 0).await;
                    ensure!(told.outcome == Outcome::Whole(200), "{} to {service}: {}", told.call, told.outcome);
                    by.extend(told.by);
                }
                for name in ["inventory-v1", "inventory-v2"] {
                    ensure!(by.iter().any(|by| by == name), "{service} is answered by {by:?} only");
                }
            }
            Ok((self.breaker().await? == 0.0).then_some(()))
        })
        .await
    }

    /// The state of the breaker of the faulty instance: 0 is closed.
    async fn breaker(&self) -> Result<f64> {
        let scrape = self.mesh.town.home("orders")?.scrape().await?;
        Ok(scrape.sum("equerry_breaker_state", &[("destination", "shop/guarded"), ("instance", "inventory-v2")]))
    }

    async fn begin(&self, trouble: Trouble) -> Result<()> {
        let home = self.mesh.town.home("inventory-v2")?;
        match trouble {
            Trouble::App(fault) => self.faulty.suffer(fault).await?,
            Trouble::Frozen => self.mesh.town.signal_sidecar(home, Signal::STOP).await,
            Trouble::Killed => self.mesh.town.signal_sidecar(home, Signal::KILL).await,
        }
        Ok(())
    }

    async fn end(&self, trouble: Trouble) -> Result<()> {
        let home = self.mesh.town.home("inventory-v2")?;
        match trouble {
            Trouble::App(_) => self.faulty.suffer(Fault::None).await?,
            Trouble::Frozen => self.mesh.town.signal_sidecar(home, Signal::CONT).await,
            Trouble::Killed => {
                self.mesh.town.start_sidecar(home).await?;
                self.mesh.town.wait_ready(home).await?;
            }
        }
        Ok(())
    }

    /// The fault begins while calls of all kinds are made, and ends after them. Gives what was seen, as a line of the table.
    async fn suffer(&self, row: &Row) -> Result<String> {
        let storm = self.storm().await?;
        let begins = async |number: usize| {
            if number == BEGINS {
                // What cannot begin is seen below: then nothing opens the breaker.
                let _ = self.begin(row.trouble).await;
            }
        };
        // A limit on time is set only where it is what a call is to meet: the machine of a test may be slow.
        let soon = matches!(row.trouble, Trouble::App(Fault::Frozen | Fault::Slow) | Trouble::Frozen);
        let calls = |kind: Kind| storm.calls("exposed", if soon { kind.soon() } else { kind }, CALLS, begins);
        let (get, put, named, post, upload) =
            tokio::join!(calls(GET), calls(PUT), calls(NAMED), calls(POST), calls(UPLOAD));
        let mut line = format!("{:28}", row.trouble);
        let seen = [
            (GET, row.get, get),
            (PUT, row.put, put),
            (NAMED, row.named, named),
            (POST, row.post, post),
            (UPLOAD, row.upload, upload),
        ];
        for (kind, expect, told) in &seen {
            write!(line, "{:36}", self.hold(row.trouble, *kind, *expect, told)?)?;
        }
        if row.opens {
            eventually(Duration::from_secs(3), "the breaker to open", async || {
                for told in storm.calls("guarded", GET, 8, async |_| ()).await {
                    ensure!(row.get.allows(&told.outcome), "{} of guarded: {}", told.call, told.outcome);
                }
                Ok((self.breaker().await? > 0.0).then_some(()))
            })
            .await?;
        }
        self.end(row.trouble).await?;
        self.all_is_well().await.context("after the fault")?;
        Ok(line)
    }

    /// Every call ended as it may, and none arrived more often than it may. Gives the counts in words.
    fn hold(&self, fault: Trouble, kind: Kind, expect: Expect, told: &[Told]) -> Result<String> {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        // A rule lets its calls be repeated three times.
        let most = if kind.name == POST.name || kind.name == UPLOAD.name { 1 } else { 4 };
        for Told { call, outcome, .. } in told {
            let arrived = self.arrivals.of(call);
            if !expect.allows(outcome) || arrived > most {
                let logged = self.logged(call);
                bail!("{fault}: {call} arrived {arrived} times and ended with {outcome}, not {expect:?}\n{logged}");
            }
            *counts.entry(outcome.to_string()).or_default() += 1;
        }
        let words: Vec<String> = counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        Ok(words.join(", "))
    }

    /// What the sidecars have written about a call.
    fn logged(&self, call: &str) -> String {
        let id = format!("\"{call}\"");
        let logs = self.mesh.town.homes.iter().filter_map(|home| std::fs::read_to_string(home.access_log()).ok());
        let mut lines: Vec<String> = logs
            .flat_map(|log| log.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines.sort();
        lines.join("\n")
    }

    /// Nobody has panicked.
    fn sidecars_are_sound(&self) -> Result<()> {
        for home in &self.mesh.town.homes {
            let log = self.mesh.town.sidecar_log(home);
            ensure!(!log.contains("panicked"), "{}'s sidecar: {log}", home.resident.name);
        }
        Ok(())
    }
}

/// The rows' faults one after the other.
async fn suffer_all(rows: &[Row], documents: &str) -> Result<()> {
    let ground = Ground::lay(documents).await?;
    let mut table = String::new();
    for row in rows {
        let began = Instant::now();
        let line = ground.suffer(row).await.with_context(|| format!("an instance: {}", row.trouble))?;
        writeln!(table, "{line}{:.1?}", began.elapsed())?;
        ensure!(began.elapsed() < Duration::from_secs(10), "{} took {:?}", row.trouble, began.elapsed());
    }
    eprintln!(
        "{:28}{:36}{:36}{:36}{:36}{:36}\n{table}",
        "the application", "GET", "PUT", "named POST", "POST", "upload"
    );
    ground.sidecars_are_sound()
}

#[tokio::test]
async fn what_may_be_repeated_never_fails_and_what_may_not_is_made_once() -> Result<()> {
    suffer_all(&MATRIX, DOCUMENTS).await
}

#[tokio::test]
async fn nor_does_it_when_the_application_speaks_http2() -> Result<()> {
    let documents = DOCUMENTS.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: kubernetes.io/h2c}");
    suffer_all(&HTTP2, &documents).await
}

/// What callers by gRPC see of an application that speaks it: where a rule lets their calls be repeated, and where none does. A call
/// whose message is on its way cannot be taken back.
const GRPC: [(Fault, Expect, Expect); 9] = [
    //                     may be repeated, may not
    (Fault::Killed, BEGUN, BROKEN),
    (Fault::Resets, Whole, RESET),
    (Fault::ResetsMidBody, BROKEN, BROKEN),
    (Fault::Refuses, Whole, Whole),
    (Fault::GoesAway, BROKEN, BROKEN),
    (Fault::SaysGoodbye, Whole, Whole),
    // The message is there, the status is not: nobody may take that for success.
    (Fault::SaysLess, BROKEN, BROKEN),
    (Fault::Garbage, BROKEN, BROKEN),
    // The status alone says that it failed, after a head that said 200.
    (Fault::RefusesEarly, Whole, Or(&["unavailable"])),
];

#[tokio::test]
async fn a_call_by_grpc_that_may_be_repeated_never_fails_either() -> Result<()> {
    let documents = DOCUMENTS.replace("targetPort: 8080}", "targetPort: 8080, appProtocol: grpc}");
    let ground = Ground::lay(&documents).await?;
    let mut table = String::new();
    for (fault, named, plain) in GRPC {
        let trouble = Trouble::App(fault);
        let storm = ground.storm().await?;
        let begins = async |number: usize| {
            if number == BEGINS {
                // What cannot begin is seen below: then everything is well.
                let _ = ground.begin(trouble).await;
            }
        };
        let calls = |path| storm.grpc_calls("exposed", path, CALLS, begins);
        let (of_named, of_plain) = tokio::join!(calls("/named"), calls("/"));
        let held = ground.hold(trouble, NAMED, named, &of_named)?;
        writeln!(table, "{trouble:28}{held:36}{}", ground.hold(trouble, POST, plain, &of_plain)?)?;
        // Who is killed between two calls costs none.
        if plain != Whole && fault != Fault::Killed {
            let failed = of_plain.iter().any(|told| told.outcome != Outcome::Whole(200));
            ensure!(failed, "{trouble}: nobody has met it");
        }
        ground.end(trouble).await?;
        ground.all_is_well().await.with_context(|| format!("after {trouble}"))?;
    }
    eprintln!("{:28}{:36}POST\n{table}", "the gRPC application", "named POST");
    ground.sidecars_are_sound()
}

#[tokio::test]
async fn an_nginx_that_is_stopped_or_killed_under_load_costs_no_get() -> Result<()> {
    if !peers::installed("nginx", nginx::INSTALL)? {
        return Ok(());
    }
    let mesh = Mesh::found(program(), &PAIR, DOCUMENTS).await?;
    let start = |name: &str| -> Result<Nginx> {
        let home = mesh.town.home(name)?;
        home.app.release();
        let nginx = Nginx::start(name, home.app.number())?;
        nginx.file("soon", b"welcome")?;
        Ok(nginx)
    };
    let (_well, stopped) = (start("inventory-v1")?, start("inventory-v2")?);
    mesh.start_sidecars(&[]).await?;
    let caller = mesh.town.home("orders")?.through_sidecar();
    let both = async || {
        eventually(Duration::from_secs(15), "both to answer", async || {
            let mut by = Vec::new();
            for answer in driver::many(8, |_| caller.get("guarded", "/soon", &[])).await {
                by.push(answer?.header("x-app").to_owned());
            }
            by.sort();
            by.dedup();
            Ok((by == ["inventory-v1", "inventory-v2"]).then_some(()))
        })
        .await
    };
    both().await?;
    for signal in [Signal::STOP, Signal::CONT, Signal::KILL] {
        let outcomes = driver::many(200, |number| {
            if number == 50 {
                // It runs until it is killed.
                let _ = stopped.signal(signal);
            }
            caller.get("guarded", "/soon", &[])
        })
        .await;
        let failure = driver::first_failure(&outcomes);
        ensure!(outcomes.len() == 200 && failure.is_none(), "{signal:?}: {failure:?}");
        if signal == Signal::CONT {
            both().await?;
        }
    }
    Ok(())
}
