//! Whether the application beside this sidecar is well, asked on loopback. The verdict travels with the lease, so that callers
//! need not ask.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use equerry_policies::policy::Ask;
use tokio::sync::watch;

use super::ask::Question;
use crate::config::{AppPort, Settings};
use crate::live::health::Health;

/// Between two questions to an application whose verdict stands.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between two questions to one that has never been healthy, or whose verdict is in doubt.
const SOON: Duration = Duration::from_millis(250);
/// A question that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many failures in a row make a healthy application unhealthy; one success makes it healthy.
const FAILURES: u32 = 2;

/// Asks until nobody listens any more. Without any port there is nobody to ask: that counts as healthy.
pub(crate) async fn ask_own(settings: std::sync::Arc<Settings>, verdict: watch::Sender<Health>) {
    match question(settings.health_port, &settings.app_ports, &settings.health) {
        Some(question) => put(&question, &verdict).await,
        None => drop(verdict.send_replace(Health::well())),
    }
}

/// What is asked, and where: on the port that is named, else on the first of the application.
fn question(port: Option<u16>, app_ports: &[AppPort], ask: &Ask) -> Option<Question> {
    let port = port.or_else(|| app_ports.first().map(|port| port.local))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Some(Question { address, ask: ask.clone(), http2: false, patience: PATIENCE })
}

async fn put(question: &Question, verdict: &watch::Sender<Health>) {
    let mut failures = FAILURES;
    while !verdict.is_closed() {
        let rest = match question.put().await {
            Ok(()) => {
                failures = 0;
                verdict.send_if_modified(|now| change(now, Health::well()));
                INTERVAL
            }
            Err(why) => {
                failures = failures.saturating_add(1);
                if failures >= FAILURES {
                    verdict.send_if_modified(|now| change(now, Health::not_yet(why)));
                }
                SOON
            }
        };
        tokio::time::sleep(rest).await;
    }
}

/// Said when the verdict turns, not with each reason for the same one.
fn change(now: &mut Health, next: Health) -> bool {
    match (now.healthy, next.healthy) {
        (false, true) => tracing::info!("the application is well: it may get traffic"),
        (true, false) => {
            tracing::warn!(why = next.detail, "the application is not well: callers are told to go elsewhere");
        }
        _ => {}
    }
    let changed = *now != next;
    *now = next;
    changed
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn ports(local: u16) -> Vec<AppPort> {
        vec![AppPort { port: 80, local }]
    }

    #[test]
    fn the_port_that_is_named_is_asked_else_the_first_of_the_application() {
        let asked = |port, ports: &[AppPort]| question(port, ports, &Ask::Tcp {}).map(|asked| asked.address.port());
        assert_eq!(asked(None, &ports(8080)), Some(8080));
        assert_eq!(asked(Some(9000), &ports(8080)), Some(9000));
        assert_eq!((asked(Some(9000), &[]), asked(None, &[])), (Some(9000), None));
    }

    #[tokio::test]
    async fn accepting_a_connection_is_enough_and_a_closed_port_is_named() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        for (port, healthy) in [(open.local_addr().unwrap().port(), true), (closed.port(), false)] {
            let verdict = crate::live::health::unknown();
            let mut seen = verdict.subscribe();
            let question = question(None, &ports(port), &Ask::Tcp {}).unwrap();
            let asking = tokio::spawn(async move { put(&question, &verdict).await });
            seen.wait_for(|health| health.healthy == healthy && (healthy || health.detail.contains(&port.to_string())))
                .await
                .unwrap();
            asking.abort();
        }
    }
}
