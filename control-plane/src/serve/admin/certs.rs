//! Certificates over HTTP: what anchors what and until when, rotations of the root, and identities that are revoked.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use equerry_certs::Texts;
use equerry_policies::names::{AccountName, SpiffeId};
use http::StatusCode;

use super::documents::read_json;
use super::pieces::in_pieces;
use super::problem::PROBLEM_JSON;
use super::proxies::unix;
use super::shapes::{
    AdvanceRequest, AnchorReply, CertificateReport, DarkReply, LeafReply, Problem, RevocationAnswer, RevocationList,
    RevocationReply, RevocationRequest, RotationReply, RotationRequest, WaitingReply,
};
use super::views::store_refused;
use crate::access::{Actor, Permission, Place};
use crate::audit::By;
use crate::control::{ControlPlane, ProxyStatus, RotationStatus, Standing, TrustError};
use crate::registry::InstanceKey;
use crate::store::trust::LeafRow;

/// Longest reason for a revocation.
const MAX_REASON: usize = 500;

/// What anchors what, who holds which certificate until when, and when the mesh goes dark if nothing renews.
#[utoipa::path(get, path = "/api/v1/certificates", tag = "certificates", responses((status = 200, body = CertificateReport)))]
pub(super) async fn report(State(control): State<ControlPlane>, actor: Actor) -> Result<Response, Problem> {
    let (now, authority) = (SystemTime::now(), control.authority());
    let mut leaves = leaves(&control, now);
    leaves.retain(|leaf| actor.limits.hold(Place::Namespace(&leaf.id.namespace)));
    leaves.sort_unstable_by(|a, b| (a.until, &a.id, &a.instance).cmp(&(b.until, &b.id, &b.instance)));
    let mut live = leaves.iter().filter_map(|leaf| Some((leaf.until, leaf.instance.as_ref()?)));
    let first = live.next();
    let dark = first.map(|first| (first, live.next_back().unwrap_or(first))).map(|(first, last)| DarkReply {
        first_unix: first.0,
        first: first.1.to_string(),
        last_unix: last.0,
    });
    let mut rotation = told(control.rotation());
    if !actor.limits.is_empty() {
        // Who holds it up may be of namespaces that are none of theirs.
        rotation.waiting.clear();
    }
    let report = CertificateReport {
        trust_domain: authority.trust_domain().to_string(),
        now_unix: unix(now),
        lifetime_seconds: authority.lifetime().as_secs(),
        rotation,
        revoked: authority.trust().revoked.len(),
        leaves: Vec::new(),
        limited: !actor.limits.is_empty(),
        dark,
    };
    in_pieces(&report, "leaves", leaves.into_iter().map(leaf))
}

/// A certificate that is about.
struct Leaf {
    /// When it ends, in seconds since 1970.
    until: u64,
    id: SpiffeId,
    /// Whose proxy shows it.
    instance: Option<InstanceKey>,
    known: Known,
}

/// What is known of it beside its end.
enum Known {
    /// An older program shows it.
    Nothing,
    /// What the proxy says that shows it.
    Said(Arc<Standing>),
    /// What was written down when it was issued.
    Issued(LeafRow),
}

/// Every certificate that is about: those that proxies show, and those that nobody connected shows.
fn leaves(control: &ControlPlane, now: SystemTime) -> Vec<Leaf> {
    let shown = control.proxies().into_iter().filter(|proxy| proxy.connected).filter_map(|proxy| {
        let until = proxy.standing.as_ref().map(|standing| standing.until).or(proxy.certificate_not_after)?;
        let known = proxy.standing.map_or(Known::Nothing, Known::Said);
        Some(Leaf { until: unix(until), id: proxy.spiffe_id?, instance: Some(proxy.instance), known })
    });
    let at_large = control.leaves_at_large(now).into_iter();
    let at_large = at_large.map(|row| Leaf {
        until: unix(row.until),
        id: row.id.clone(),
        instance: None,
        known: Known::Issued(row),
    });
    shown.chain(at_large).collect()
}

fn leaf(Leaf { until, id, instance, known }: Leaf) -> LeafReply {
    let (serial, root, said) = match &known {
        Known::Nothing => (None, None, None),
        Known::Said(standing) => (Some(&standing.serial), Some(&standing.root), Some(standing)),
        Known::Issued(row) => (Some(&row.serial), Some(&row.root), None),
    };
    LeafReply {
        spiffe_id: id.to_string(),
        instance: instance.map(|key| key.to_string()),
        serial: serial.cloned(),
        root: root.filter(|root| !root.is_empty()).cloned(),
        not_after_unix: until,
        generation: said.map(|standing| standing.generation),
        doubt: said.and_then(|standing| standing.doubt.clone()),
    }
}

fn told(status: RotationStatus) -> RotationReply {
    let trust = status.trust;
    RotationReply {
        phase: trust.phase.as_str().to_owned(),
        began_unix: trust.began.map(unix),
        generation: trust.generation,
        anchors: trust
            .anchors
            .iter()
            .map(|anchor| AnchorReply {
                pin: anchor.pin.to_string(),
                signs: anchor.signs,
                coming: anchor.coming,
                brought: anchor.brought,
                root_not_after_unix: unix(anchor.root_until),
                issuing_not_after_unix: unix(anchor.issuing_until),
            })
            .collect(),
        waiting: status.waiting.into_iter().map(|one| WaitingReply { who: one.who, why: one.why }).collect(),
    }
}

/// When what the mesh stands on ends, for whoever watches it.
pub(super) fn ends(control: &ControlPlane, proxies: &[ProxyStatus]) -> Vec<(&'static str, u64)> {
    let trust = control.authority().trust();
    let mut ends = Vec::new();
    for anchor in &trust.anchors {
        if anchor.signs {
            ends.push(("root", unix(anchor.root_until)));
            ends.push(("issuing", unix(anchor.issuing_until)));
        }
        if anchor.coming {
            ends.push(("coming_root", unix(anchor.root_until)));
        }
    }
    let connected = proxies.iter().filter(|proxy| proxy.connected);
    let leaves = connected.filter_map(|proxy| {
        proxy.standing.as_ref().map(|standing| standing.until).or(proxy.certificate_not_after).map(unix)
    });
    let leaves: Vec<u64> = leaves.collect();
    ends.extend(leaves.iter().min().map(|first| ("first_leaf", *first)));
    ends.extend(leaves.iter().max().map(|last| ("last_leaf", *last)));
    ends
}

/// How far a rotation of the root is, and who holds up its next step.
#[utoipa::path(get, path = "/api/v1/certificates/rotation", tag = "certificates", responses((status = 200, body = RotationReply)))]
pub(super) async fn rotation(
    State(control): State<ControlPlane>,
    actor: Actor,
) -> Result<Json<RotationReply>, Problem> {
    actor.may(Permission::Read, Place::Mesh)?;
    Ok(Json(told(control.rotation())))
}

/// Bring a new root in: it is believed beside the old one, which still signs.
#[utoipa::path(post, path = "/api/v1/certificates/rotation", tag = "certificates", request_body = RotationRequest,
    responses((status = 201, body = RotationReply), (status = 400, body = Problem, content_type = PROBLEM_JSON, description = "What was brought cannot be used"),
        (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "A rotation is under way")))]
pub(super) async fn start(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<RotationReply>), Problem> {
    actor.may(Permission::RotateRoots, Place::Mesh)?;
    let RotationRequest { bring } = read_json(body)?;
    let brought = match &bring {
        None => None,
        Some(bring) => {
            let texts = Texts { root: &bring.root, issuer: &bring.issuer_cert, key: &bring.issuer_key };
            let domain = control.authority().trust_domain();
            let brought = equerry_certs::Authority::brought(domain, texts, SystemTime::now());
            Some(brought.map_err(|fault| Problem::new(StatusCode::BAD_REQUEST, "cannot_be_used", fault))?)
        }
    };
    let status = control.start_rotation(brought, By::token(&actor)).await.map_err(|error| refused(&error))?;
    Ok((StatusCode::CREATED, Json(told(status))))
}

/// Take the next step: the new root signs; then the old one is believed no more. Refused while somebody would be stranded.
#[utoipa::path(post, path = "/api/v1/certificates/rotation/advance", tag = "certificates", request_body = AdvanceRequest,
    responses((status = 200, body = RotationReply), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "`stranded`: somebody is not ready, or `out_of_step`: there is no rotation")))]
pub(super) async fn advance(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RotationReply>, Problem> {
    actor.may(Permission::RotateRoots, Place::Mesh)?;
    let AdvanceRequest { force } = read_json(body)?;
    let status = control.advance_rotation(force, By::token(&actor)).await.map_err(|error| refused(&error))?;
    Ok(Json(told(status)))
}

/// Give a rotation up whose new root has signed nothing yet.
#[utoipa::path(delete, path = "/api/v1/certificates/rotation", tag = "certificates",
    responses((status = 200, body = RotationReply), (status = 409, body = Problem, content_type = PROBLEM_JSON, description = "There is none, or its new root signs already")))]
pub(super) async fn cancel(State(control): State<ControlPlane>, actor: Actor) -> Result<Json<RotationReply>, Problem> {
    actor.may(Permission::RotateRoots, Place::Mesh)?;
    let status = control.cancel_rotation(By::token(&actor)).await.map_err(|error| refused(&error))?;
    Ok(Json(told(status)))
}

/// Identities that are believed no more.
#[utoipa::path(get, path = "/api/v1/certificates/revocations", tag = "certificates", responses((status = 200, body = RevocationList)))]
pub(super) async fn revocations(State(control): State<ControlPlane>, actor: Actor) -> Json<RevocationList> {
    let all = control.revocations().into_iter();
    let seen = all.filter(|one| actor.limits.hold(Place::Namespace(&one.id.namespace)));
    let items = seen.map(|one| RevocationReply {
        spiffe_id: one.id.to_string(),
        reason: one.reason,
        by: one.by,
        at_unix: unix(one.at),
    });
    Json(RevocationList { items: items.collect() })
}

/// Revoke an identity: no certificate is signed for it, and its connections end throughout the mesh.
#[utoipa::path(post, path = "/api/v1/certificates/revocations", tag = "certificates", request_body = RevocationRequest,
    responses((status = 200, body = RevocationAnswer), (status = 400, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn revoke(
    State(control): State<ControlPlane>,
    actor: Actor,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<RevocationAnswer>, Problem> {
    actor.has(Permission::RevokeIdentities)?;
    let RevocationRequest { identity, reason } = read_json(body)?;
    let id = identity_of(&control, &identity)?;
    actor.may(Permission::RevokeIdentities, Place::Namespace(&id.namespace))?;
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(Problem::bad_request(format_args!(
            "reason: expected at most {MAX_REASON} printable characters on one line"
        )));
    }
    let done = control.revoke_identity(id.clone(), reason, By::token(&actor)).await;
    let (generation, changed) = done.map_err(|error| refused(&error))?;
    Ok(Json(RevocationAnswer { spiffe_id: id.to_string(), generation, changed }))
}

/// Take a revocation back.
#[utoipa::path(delete, path = "/api/v1/certificates/revocations/{namespace}/{account}", tag = "certificates",
    params(("namespace" = String, Path,), ("account" = String, Path,)),
    responses((status = 200, body = RevocationAnswer), (status = 404, body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn restore(
    State(control): State<ControlPlane>,
    actor: Actor,
    Path((namespace, account)): Path<(String, String)>,
) -> Result<Json<RevocationAnswer>, Problem> {
    let id = identity_of(&control, &format!("{namespace}/{account}"))?;
    actor.may(Permission::RevokeIdentities, Place::Namespace(&id.namespace))?;
    match control.restore_identity(&id, By::token(&actor)).await.map_err(|error| refused(&error))? {
        Some(generation) => Ok(Json(RevocationAnswer { spiffe_id: id.to_string(), generation, changed: true })),
        None => Err(Problem::not_found(format_args!("revocation of {id}"))),
    }
}

/// A whole identity, or an account of this trust domain. The control plane's own cannot be revoked: nothing would work.
fn identity_of(control: &ControlPlane, text: &str) -> Result<SpiffeId, Problem> {
    let ours = control.authority().trust_domain();
    let id = if text.starts_with("spiffe:") {
        SpiffeId::parse(text).map_err(|bad| Problem::bad_request(format_args!("identity: {bad}")))?
    } else {
        let account = AccountName::parse(text).map_err(|bad| Problem::bad_request(format_args!("identity: {bad}")))?;
        SpiffeId::new(ours.clone(), account.namespace.clone(), account.name.clone())
    };
    if id.trust_domain != *ours {
        return Err(Problem::bad_request(format_args!(
            "identity: found one of trust domain {}, expected {ours}",
            id.trust_domain
        )));
    }
    if id == equerry_policies::names::control_plane_id(ours.clone()) {
        return Err(Problem::bad_request("identity: that is the control plane itself; stop it instead"));
    }
    Ok(id)
}

fn refused(error: &TrustError) -> Problem {
    match error {
        TrustError::Store(error) => store_refused(error),
        TrustError::Authority(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "authority", error),
        TrustError::OutOfStep(why) => Problem::new(StatusCode::CONFLICT, "out_of_step", why),
        TrustError::Stranded(_) => Problem::new(StatusCode::CONFLICT, "stranded", error),
    }
}
