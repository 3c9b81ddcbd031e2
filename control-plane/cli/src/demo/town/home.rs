//! Where one resident of a town lives: its ports, clients for each, and what its sidecar and application say when asked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{ASK_AGAIN, Resident};
use crate::demo::ports::HeldPort;
use crate::demo::scrape::Scrape;
use crate::demo::web::Caller;

/// A resident's ports, and clients for them.
#[derive(Debug)]
pub struct Home {
    /// Who lives there.
    pub resident: Resident,
    /// The application.
    pub app: HeldPort,
    /// The application's own controls, outside the mesh.
    pub controls: HeldPort,
    /// The sidecar's outbound listener.
    pub outbound: HeldPort,
    /// The sidecar's inbound listener.
    pub inbound: HeldPort,
    /// The sidecar's admin port.
    pub admin: HeldPort,
    /// The sidecar's telemetry port.
    pub telemetry: HeldPort,
    callers: Callers,
    pub(super) dir: PathBuf,
}

#[derive(Debug)]
struct Callers {
    app: Caller,
    controls: Caller,
    outbound: Caller,
    telemetry: Caller,
}

impl Home {
    pub(super) fn plan(resident: Resident, dir: PathBuf) -> Result<Self> {
        let take = || HeldPort::take().context("choosing a port");
        let (app, controls, outbound, telemetry) = (take()?, take()?, take()?, take()?);
        let callers = Callers {
            app: Caller::local(app.number()),
            controls: Caller::local(controls.number()),
            outbound: Caller::local(outbound.number()),
            telemetry: Caller::local(telemetry.number()),
        };
        Ok(Self { resident, app, controls, outbound, inbound: take()?, admin: take()?, telemetry, callers, dir })
    }

    /// Calls the application as a browser on this machine would, outside the mesh.
    pub fn front_door(&self) -> &Caller {
        &self.callers.app
    }

    /// Calls into the mesh as this resident's application does: through its sidecar.
    pub fn through_sidecar(&self) -> &Caller {
        &self.callers.outbound
    }

    /// The sidecar's `/metrics` and health.
    pub fn telemetry(&self) -> &Caller {
        &self.callers.telemetry
    }

    /// The application's controls: how often it was called, and making it fail.
    pub fn controls(&self) -> &Caller {
        &self.callers.controls
    }

    /// What its sidecar counted so far.
    ///
    /// # Errors
    /// When its telemetry does not answer.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::of(&self.callers.telemetry).await.with_context(|| format!("scraping {}'s sidecar", self.resident.name))
    }

    /// The sidecar's access log.
    pub fn access_log(&self) -> PathBuf {
        self.dir.join("access.log")
    }

    /// The sidecar's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Makes the application fail a share (0..1) of the calls it gets; of one method only, if one is named.
    ///
    /// # Errors
    /// When the application does not answer.
    pub async fn fail(&self, share: f64, method: Option<&str>) -> Result<()> {
        let only = method.map(|method| format!("&method={method}")).unwrap_or_default();
        let answer = self.controls().call("POST", "localhost", &format!("/fail?rate={share}{only}"), &[]).await?;
        if answer.status != 200 {
            bail!("{}'s controls answered {}", self.resident.name, answer.shown());
        }
        Ok(())
    }

    /// When the application was called, in milliseconds of Unix time, since it was last asked to forget.
    ///
    /// # Errors
    /// When the application does not answer.
    pub async fn arrivals(&self) -> Result<Vec<u64>> {
        let answer = self.controls().get("localhost", "/calls", &[]).await?;
        serde_json::from_value(answer.json()["arrivals_ms"].clone())
            .with_context(|| format!("{}'s controls answered {}", self.resident.name, answer.shown()))
    }

    /// Makes the application forget the calls it counted.
    ///
    /// # Errors
    /// When the application does not answer.
    pub async fn forget(&self) -> Result<()> {
        self.controls().call("POST", "localhost", "/forget", &[]).await.map(drop)
    }

    /// What its sidecar logged of one request that came in; waits a moment for the line, since logs are written off the
    /// request path. (The calls that its application makes on behalf of the request carry the same id, going out.)
    ///
    /// # Errors
    /// When there is no such line.
    pub async fn logged_inbound(&self, request_id: &str) -> Result<serde_json::Value> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let text = tokio::fs::read_to_string(self.access_log()).await.unwrap_or_default();
            let lines = text.lines().rev().filter(|line| line.contains(request_id));
            let line = lines
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .find(|line| line["request_id"] == request_id && line["direction"] == "inbound");
            if let Some(line) = line {
                return Ok(line);
            }
            if Instant::now() > deadline {
                bail!("{}'s access log has no inbound line for request {request_id}", self.resident.name);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}
