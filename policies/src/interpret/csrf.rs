//! `CsrfPolicy`.

use super::at::At;
use super::{World, target};
use crate::document::shape::Notes;
use crate::names::PolicyName;
use crate::policy::{CsrfPolicy, OriginPattern};

pub(super) fn csrf_policy(
    name: &PolicyName,
    root: &At<'_>,
    world: &World,
    notes: &mut Notes<'_>,
) -> Option<CsrfPolicy> {
    let spec = root.get("spec");
    let target = target::target(spec.as_ref(), &name.namespace, world, notes);
    let origins = spec.map(|spec| spec.texts("allowedOrigins")).unwrap_or_default();
    Some(CsrfPolicy {
        name: name.clone(),
        target: target?,
        allowed_origins: origins.iter().filter_map(|text| OriginPattern::parse(text)).collect(),
        origin: root.origin(notes),
    })
}
