//! Asks endpoints without a sidecar whether they are well, while their Service is in use here (`TrafficPolicy.healthCheck`).
//!
//! One task for each endpoint asks; what the answers mean is told to the endpoint's state, which balancing looks at. Tasks
//! and verdicts outlive changes of configuration that do not change the question.

use std::collections::HashMap;
use std::sync::Arc;

use equerry_policies::names::{InstanceId, ServiceName};
use equerry_policies::policy::{AppProtocol, HealthCheck};
use equerry_policies::view::EndpointAddress;
use equerry_traffic::balance::EndpointState;
use equerry_traffic::health::{self, Turn};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::ask::Question;
use crate::live::{Backend, Endpoint, Live, LiveHandle};
use crate::observe::Observer;

/// So many questions are under way at once.
const AT_ONCE: usize = 64;
/// The word of these ejections in metrics.
const EJECTED: &str = "health_check";

/// An endpoint, by name.
type Key = (ServiceName, InstanceId);

/// Whoever asks.
pub(crate) struct Prober {
    live: LiveHandle,
    observe: Observer,
    asked: HashMap<Key, Asking>,
    places: Arc<Semaphore>,
    /// Grows with each task, so that an answer to an old question is known.
    number: u64,
}

/// One endpoint that is asked.
struct Asking {
    plan: Plan,
    number: u64,
    state: Arc<EndpointState>,
    task: JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is asked of it, and how often.
#[derive(Clone, PartialEq, Eq)]
struct Plan {
    question: Question,
    settings: HealthCheck,
}

/// What an endpoint answered.
struct Answer {
    of: Key,
    number: u64,
    says: Result<(), String>,
}

impl Prober {
    pub(crate) fn new(live: LiveHandle, observe: Observer) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Self { live, observe, asked: HashMap::new(), places, number: 0 }
    }

    /// Asks until the process ends.
    pub(crate) async fn run(mut self) {
        let mut publications = self.live.publications();
        let (tell, mut answers) = mpsc::channel(AT_ONCE);
        loop {
            publications.borrow_and_update();
            let live = self.live.load();
            self.follow(&live, &tell);
            drop(live);
            loop {
                tokio::select! {
                    changed = publications.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    // There is always a sender: our own.
                    answer = answers.recv() => if let Some(answer) = answer {
                        self.hear(answer);
                    },
                }
            }
        }
    }

    /// Begins with endpoints that are new or asked otherwise than before, and ends with those that are asked no more.
    fn follow(&mut self, live: &Live, tell: &mpsc::Sender<Answer>) {
        let mut before = std::mem::take(&mut self.asked);
        for destination in live.destinations.values() {
            let backend = &destination.backend;
            for (endpoint, plan) in backend.endpoints.iter().filter_map(|it| Some((it, plan(backend, it)?))) {
                let key = (backend.name.clone(), endpoint.instance.clone());
                let same = before.remove(&key).filter(|asking| {
                    asking.plan == plan && Arc::ptr_eq(&asking.state, &endpoint.state) && !asking.task.is_finished()
                });
                let asking = same.unwrap_or_else(|| self.begin(key.clone(), plan, endpoint, tell));
                self.asked.insert(key, asking);
            }
        }
        for asking in before.values() {
            asking.state.not_asked();
        }
        for destination in live.destinations.values() {
            count_the_unwell(&destination.backend);
        }
    }

    fn begin(&mut self, key: Key, plan: Plan, endpoint: &Endpoint, tell: &mpsc::Sender<Answer>) -> Asking {
        self.number += 1;
        let number = self.number;
        let (places, tell, asked) = (Arc::clone(&self.places), tell.clone(), plan.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok(place) = places.acquire().await else { return };
                let says = asked.question.put().await;
                drop(place);
                if tell.send(Answer { of: key.clone(), number, says }).await.is_err() {
                    return;
                }
                tokio::time::sleep(health::rest(&asked.settings, fastrand::f64())).await;
            }
        });
        Asking { plan, number, state: Arc::clone(&endpoint.state), task }
    }

    fn hear(&self, answer: Answer) {
        let Some(asking) = self.asked.get(&answer.of).filter(|asking| asking.number == answer.number) else { return };
        let now = tokio::time::Instant::now().into_std();
        let why = answer.says.as_ref().err().cloned().unwrap_or_default();
        let Some(turn) = asking.state.answered(answer.says, &asking.plan.settings, now) else { return };
        let (service, instance) = &answer.of;
        match turn {
            Turn::Well => tracing::info!(%service, %instance, "the endpoint answers when asked"),
            Turn::Unwell => {
                tracing::warn!(%service, %instance, why, "the endpoint is not well, and gets no requests");
                self.observe.ejected(EJECTED);
            }
        }
        if let Some(destination) = self.live.load().destinations.get(service) {
            count_the_unwell(&destination.backend);
        }
    }
}

/// What is asked of an endpoint; `None`: nothing, or its own sidecar asks.
fn plan(backend: &Backend, endpoint: &Endpoint) -> Option<Plan> {
    let settings = backend.traffic.health_check.as_ref()?;
    let EndpointAddress::Plain(ports) = &endpoint.address else { return None };
    if !endpoint.open.is_empty() {
        return None;
    }
    let (port, address) = ports.iter().find(|(of, _)| settings.port.is_none_or(|port| port == *of))?;
    let spoken = backend.ports.iter().find(|known| known.port == *port).map(|known| known.app_protocol);
    let question = Question {
        address: *address,
        ask: settings.ask.clone(),
        http2: matches!(spoken, Some(AppProtocol::Http2 | AppProtocol::Grpc)),
        patience: settings.timeout,
    };
    Some(Plan { question, settings: settings.clone() })
}

/// Where so many are unwell that the questions are not believed, all are used.
fn count_the_unwell(backend: &Backend) {
    let Some(settings) = &backend.traffic.health_check else { return };
    let unwell = backend.endpoints.iter().filter(|endpoint| endpoint.state.is_unwell()).count();
    let total = backend.endpoints.len() + backend.unwell.len();
    let panic = health::panics(unwell + backend.unwell.len(), total, settings.panic_percent) && unwell > 0;
    for endpoint in &backend.endpoints {
        endpoint.state.set_panic(panic);
    }
}
