//! `equerry certs rotate`: the root is replaced in three steps, each taken only when nobody is stranded by it.

use std::path::Path;
use std::time::{Duration, Instant};

use equerry_control_plane::serve::admin::shapes::{AdvanceRequest, BringRequest, RotationReply, RotationRequest};
use http::{Method, StatusCode};

use super::{BringArgs, Step, WaitArgs, short};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::get::plain;
use crate::out;

const ROTATION: &str = "/api/v1/certificates/rotation";
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn run(step: &Step, client: &mut Client) -> Result<(), Failure> {
    match step {
        Step::Start { bring, wait } => {
            let request = RotationRequest { bring: brought(bring)? };
            let reply: RotationReply = client.json(Method::POST, ROTATION, Some(&request)).await?;
            tell(&settled(reply, wait, client).await?);
        }
        Step::Advance { force, wait } => {
            let reply = advance(*force, wait, client).await?;
            tell(&settled(reply, wait, client).await?);
        }
        Step::Status { output } => {
            let reply: RotationReply = client.get(ROTATION).await?;
            if !plain(output.output, &reply) {
                tell(&reply);
            }
        }
        Step::Cancel => {
            client.json::<RotationReply>(Method::DELETE, ROTATION, None::<&()>).await?;
            out::data("the rotation is given up; the root that signs is the one that did before");
        }
    }
    Ok(())
}

fn brought(bring: &BringArgs) -> Result<Option<BringRequest>, Failure> {
    let (Some(root), Some(issuer), Some(key)) = (&bring.root, &bring.issuer_cert, &bring.issuer_key) else {
        return Ok(None);
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| Failure::usage(format_args!("{}: {error}", path.display())))
    };
    Ok(Some(BringRequest { root: read(root)?, issuer_cert: read(issuer)?, issuer_key: read(key)? }))
}

/// Takes the next step; with `--wait` as soon as nobody is stranded by it.
async fn advance(force: bool, wait: &WaitArgs, client: &mut Client) -> Result<RotationReply, Failure> {
    let began = Instant::now();
    loop {
        let path = format!("{ROTATION}/advance");
        let answer = client.ask(Method::POST, &path, Some(&AdvanceRequest { force })).await?;
        if answer.status.is_success() {
            return answer.read();
        }
        let stranded = answer.status == StatusCode::CONFLICT && !force;
        if !stranded {
            return Err(answer.failure());
        }
        let status: RotationReply = client.get(ROTATION).await?;
        if status.waiting.is_empty() && status.phase == "steady" {
            return Err(answer.failure());
        }
        if !wait.wait || began.elapsed() >= wait.timeout {
            return Err(stranding(&status, wait.wait));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// With `--wait`, how far it is when nobody holds up the next step any more.
async fn settled(mut reply: RotationReply, wait: &WaitArgs, client: &mut Client) -> Result<RotationReply, Failure> {
    let began = Instant::now();
    while wait.wait && !reply.waiting.is_empty() {
        if began.elapsed() >= wait.timeout {
            return Err(stranding(&reply, true));
        }
        tokio::time::sleep(LOOK).await;
        reply = client.get(ROTATION).await?;
    }
    Ok(reply)
}

fn stranding(status: &RotationReply, waited: bool) -> Failure {
    let mut message = format!("the next step would strand {}:", status.waiting.len());
    for one in &status.waiting {
        message.push_str(&format!("\n  {}: {}", one.who, one.why));
    }
    let code = if waited { Code::Timeout } else { Code::Refused };
    Failure::refused(message)
        .with_code(code)
        .hint("`equerry certs rotate status` shows who is left; --wait waits for them, --force leaves them behind")
}

fn tell(status: &RotationReply) {
    let pin = |coming| status.anchors.iter().find(|anchor| anchor.coming == coming).map_or("?", |one| short(&one.pin));
    out::data(match status.phase.as_str() {
        "trusting" => format!(
            "roots {} (signs) and {} (comes in) are believed; next step: {} signs",
            pin(false),
            pin(true),
            pin(true)
        ),
        "issuing" => format!(
            "roots {} (signs) and {} (goes out) are believed; next step: {} is believed no more",
            pin(true),
            pin(false),
            pin(false)
        ),
        _ => format!("one root is believed, {}; no rotation is under way", pin(false)),
    });
    if status.phase != "steady" {
        out::data(
            "the control plane's ca.pem holds both: hand it out anew to whoever uses a copy of it before the last step",
        );
        if status.waiting.is_empty() {
            out::data(format_args!(
                "{}: nobody would be stranded; `equerry certs rotate advance`",
                out::styled(out::GOOD, "ready")
            ));
        } else {
            out::data(format_args!("{}:", out::styled(out::NOTE, "waiting for")));
            for one in &status.waiting {
                out::data(format_args!("  {}: {}", one.who, one.why));
            }
        }
    }
}
