//! The demo's policy files: built in or from a directory, with the issuer's public keys put in, and what the story must
//! know of them (weights, quota, penalty, claims), so that it still holds when somebody edits them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use equerry_policies::complaint::Complaint;
use equerry_policies::document::{self, Document, DocumentKey, Kind};
use equerry_policies::interpret::interpret;
use equerry_policies::names::TenantName;
use equerry_policies::policy::{Attribute, Condition, HttpRoute, JwtRule, Meaning, StringMatch, Tenant, TenantMatch};

use super::issuer::Token;

/// Files of the set: all of them hold together from the start.
const BUILT_IN: [(&str, &str); 6] = [
    ("1-mesh.yaml", include_str!("../../../../policies/examples/demo/1-mesh.yaml")),
    ("2-services.yaml", include_str!("../../../../policies/examples/demo/2-services.yaml")),
    ("3-access.yaml", include_str!("../../../../policies/examples/demo/3-access.yaml")),
    ("4-tokens.yaml", include_str!("../../../../policies/examples/demo/4-tokens.yaml")),
    ("5-tenants.yaml", include_str!("../../../../policies/examples/demo/5-tenants.yaml")),
    ("6-canary.yaml", include_str!("../../../../policies/examples/demo/6-canary.yaml")),
];
/// Files applied later in the story, each replacing documents of the set.
const BUILT_IN_STORY: [(&str, &str); 3] = [
    ("even-split.yaml", include_str!("../../../../policies/examples/demo-story/even-split.yaml")),
    ("retries.yaml", include_str!("../../../../policies/examples/demo-story/retries.yaml")),
    ("breaker.yaml", include_str!("../../../../policies/examples/demo-story/breaker.yaml")),
];

/// Policy files by name.
#[derive(Debug, Clone)]
pub struct Policies {
    set: BTreeMap<String, String>,
    story: BTreeMap<String, String>,
}

impl Policies {
    /// Those that came with this program.
    pub fn built_in() -> Self {
        let owned = |files: &[(&str, &str)]| {
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        Self { set: owned(&BUILT_IN), story: owned(&BUILT_IN_STORY) }
    }

    /// All `*.yaml` of a directory, and of the one beside it whose name ends in `-story`; what is not there is built in.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none.
    pub fn read(dir: &Path) -> Result<Self> {
        let set = read_yaml(dir)?;
        if set.is_empty() {
            bail!("{} holds no *.yaml", dir.display());
        }
        let mut story = Self::built_in().story;
        if story_beside(dir).is_dir() {
            story.extend(read_yaml(&story_beside(dir))?);
        }
        Ok(Self { set, story })
    }

    /// The same files with every `jwks` replaced by this key set. Comments and lines stay as they were written.
    ///
    /// # Errors
    /// When a file cannot be read, or its `jwks` is not written as one plain text.
    pub fn with_keys(mut self, key_set: &str) -> Result<Self> {
        for (file, text) in self.set.iter_mut().chain(self.story.iter_mut()) {
            for key in key_sets(&read_documents(file, text)?) {
                *text = text.replace(&key, key_set);
            }
            if let Some(left) = key_sets(&read_documents(file, text)?).into_iter().find(|key| key != key_set) {
                bail!(
                    "{file}: write `jwks` on one line between single quotes, so that the demo can put its own key set there (found {left})"
                );
            }
        }
        Ok(self)
    }

    /// Writes all files: the set into a new directory, the story's into the one beside it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let story = story_beside(dir);
        for new in [dir, &story] {
            std::fs::create_dir_all(new).with_context(|| format!("making {}", new.display()))?;
        }
        let set = self.set.iter().map(|(name, text)| (dir.join(name), text));
        for (path, text) in set.chain(self.story.iter().map(|(name, text)| (story.join(name), text))) {
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// What the set means.
    ///
    /// # Errors
    /// With every mistake in it.
    pub fn meaning(&self) -> Result<Meaning> {
        interpret(&self.documents()?).map_err(|all| complaints(&all))
    }

    /// What the set means once a file of the story has replaced its documents.
    ///
    /// # Errors
    /// With every mistake in it; when there is no such file.
    pub fn meaning_after(&self, story: &str) -> Result<Meaning> {
        let text = self.story.get(story).ok_or_else(|| anyhow!("there is no {story}"))?;
        let over = read_documents(story, text)?;
        let replaced: Vec<&DocumentKey> = over.iter().map(Document::key).collect();
        let mut documents = self.documents()?;
        documents.retain(|document| !replaced.contains(&document.key()));
        documents.extend(over.iter().cloned());
        interpret(&documents).map_err(|all| complaints(&all))
    }

    fn documents(&self) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        for (file, text) in &self.set {
            documents.extend(read_documents(file, text)?);
        }
        Ok(documents)
    }

    /// What the story needs to know.
    ///
    /// # Errors
    /// When the set has mistakes, or is not the demo's.
    pub fn facts(&self) -> Result<Facts> {
        let meaning = self.meaning()?;
        let tokens = named(&meaning.tokens, "shop/orders-tokens")
            .context("the story needs the RequestAuthentication shop/orders-tokens")?;
        let rule = tokens.rules.first().context("RequestAuthentication shop/orders-tokens has no rule")?.clone();
        let canary =
            weights(named(&meaning.routes, "shop/inventory").context("the story needs the HTTPRoute shop/inventory")?)?;
        let even = self.meaning_after("even-split.yaml")?;
        let even =
            weights(named(&even.routes, "shop/inventory").context("even-split.yaml has no HTTPRoute shop/inventory")?)?;
        let breaking = self.meaning_after("breaker.yaml")?;
        let breaker = named(&breaking.traffic, "shop/inventory")
            .and_then(|policy| policy.breaker)
            .context("breaker.yaml has no breaker")?;
        Ok(Facts {
            rule,
            canary,
            even,
            penalty: (breaker.penalty_min, breaker.penalty_max),
            failures: breaker.consecutive_failures,
            meaning,
        })
    }
}

/// What the story knows of the policy files.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What orders asks of a token.
    pub rule: JwtRule,
    /// Shares (0..1) of the Services the canary route sends to.
    pub canary: BTreeMap<String, f64>,
    /// The same once `even-split.yaml` is applied.
    pub even: BTreeMap<String, f64>,
    /// The breaker's first and longest penalty.
    pub penalty: (Duration, Duration),
    /// Failures in a row that open it.
    pub failures: u32,
    /// Everything the set means.
    pub meaning: Meaning,
}

impl Facts {
    /// A good token of nobody's tenant, with every claim that the policies ask for or tell the applications.
    pub fn token(&self) -> Token {
        let mut token = Token::new(&self.rule.issuer, self.rule.audiences.first().map(String::as_str), "ada");
        let tenant_claims: Vec<&[String]> =
            self.meaning.tenants.values().filter_map(|tenant| tenant_claim(tenant).map(|(path, _)| path)).collect();
        for told in &self.rule.claims_to_headers {
            let path = told.claim.as_slice();
            if token.text(path).is_none() && !tenant_claims.contains(&path) {
                token = token.claim(path, "told-to-orders");
            }
        }
        for condition in
            self.meaning.authorization.values().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.when)
        {
            let Condition::Text { of: Attribute::Claim(claim), values, .. } = condition else { continue };
            if let (None, Some(StringMatch::Exact(value))) = (token.text(claim), values.first()) {
                token = token.claim(claim, value);
            }
        }
        token
    }

    /// The claim that names a tenant: its path and value.
    ///
    /// # Errors
    /// When there is no such tenant, or no claim names it.
    pub fn tenant(&self, name: &str) -> Result<(&[String], &str)> {
        tenant_claim(self.tenant_named(name)?).with_context(|| format!("no claim names tenant {name}"))
    }

    /// A tenant's first quota: how many requests in how long.
    ///
    /// # Errors
    /// When there is no such tenant, or it has none.
    pub fn quota(&self, name: &str) -> Result<(u64, Duration)> {
        let quota = self.tenant_named(name)?.quotas.first().with_context(|| format!("tenant {name} has no quota"))?;
        Ok((quota.requests, quota.window))
    }

    fn tenant_named(&self, name: &str) -> Result<&Tenant> {
        let known = TenantName::parse(name).ok().and_then(|name| self.meaning.tenants.get(&name));
        known.with_context(|| {
            let names: Vec<&str> = self.meaning.tenants.keys().map(TenantName::as_str).collect();
            format!("the policies have no tenant {name:?}, only {}", names.join(", "))
        })
    }
}

fn tenant_claim(tenant: &Tenant) -> Option<(&[String], &str)> {
    tenant.matches.iter().find_map(|one| match one {
        TenantMatch::Claim { name, value } => Some((name.as_slice(), value.as_str())),
        TenantMatch::Header { .. } => None,
    })
}

fn named<'a, K: ToString + Ord, V>(all: &'a BTreeMap<K, V>, name: &str) -> Option<&'a V> {
    all.iter().find(|(key, _)| key.to_string() == name).map(|(_, value)| value)
}

/// Shares of the backends of a route's first rule, by Service name without namespace.
fn weights(route: &HttpRoute) -> Result<BTreeMap<String, f64>> {
    let rule = route.rules.first().with_context(|| format!("HTTPRoute {} has no rule", route.name))?;
    let total: u32 = rule.backends.iter().map(|backend| backend.weight).sum();
    if total == 0 {
        bail!("HTTPRoute {}: the weights of its first rule are all 0", route.name);
    }
    Ok(rule
        .backends
        .iter()
        .map(|backend| (backend.service.name.to_string(), f64::from(backend.weight) / f64::from(total)))
        .collect())
}

/// The texts of all inline key sets in some documents.
fn key_sets(documents: &[Document]) -> Vec<String> {
    let rules = |document: &Document| {
        document.to_json().pointer("/spec/jwtRules").and_then(|rules| rules.as_array().cloned()).unwrap_or_default()
    };
    let tokens = documents.iter().filter(|document| document.key().kind == Kind::RequestAuthentication);
    tokens.flat_map(rules).filter_map(|rule| rule.get("jwks")?.as_str().map(str::to_owned)).collect()
}

/// `DIR-story`: apart, so that applying `DIR` applies the set alone.
pub fn story_beside(dir: &Path) -> PathBuf {
    let mut name = dir.components().next_back().map(|last| last.as_os_str().to_owned()).unwrap_or_default();
    name.push("-story");
    dir.with_file_name(name)
}

fn read_documents(file: &str, text: &str) -> Result<Vec<Document>> {
    document::read(file, text).map_err(|all| complaints(&all))
}

fn complaints(all: &[Complaint]) -> anyhow::Error {
    anyhow!(
        "the demo's policy files have mistakes:\n{}",
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    )
}

fn read_yaml(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if let (true, Some(name)) = (is_yaml && path.is_file(), path.file_name().and_then(|name| name.to_str())) {
            files.insert(
                name.to_owned(),
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?,
            );
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::issuer::Issuer;

    #[test]
    fn the_built_in_files_mean_something_at_every_turn_of_the_story() {
        let policies = Policies::built_in();
        let facts = policies.facts().unwrap();
        assert_eq!(facts.canary, BTreeMap::from([("inventory-v1".to_owned(), 0.9), ("inventory-v2".to_owned(), 0.1)]));
        assert_eq!(facts.quota("acme").unwrap(), (200, Duration::from_secs(5)));
        assert_eq!(facts.tenant("acme").unwrap(), (["tenant".to_owned()].as_slice(), "acme"));
        for file in policies.story.keys() {
            policies.meaning_after(file).unwrap();
        }
    }

    #[test]
    fn the_demos_own_key_set_takes_the_place_of_the_written_one() {
        let issuer = Issuer::stranger().unwrap();
        let facts = Policies::built_in().with_keys(&issuer.key_set()).unwrap().facts().unwrap();
        let written: serde_json::Value = serde_json::from_str(&facts.rule.jwks).unwrap();
        let own: serde_json::Value = serde_json::from_str(&issuer.key_set()).unwrap();
        assert_eq!(written["keys"][0]["x"], own["keys"][0]["x"]);
    }

    #[test]
    fn a_token_carries_whatever_claims_the_policies_name() {
        let mut policies = Policies::built_in();
        for text in policies.set.values_mut() {
            *text = text
                .replace("{claim: sub, header: x-user}", "{claim: realm.name, header: x-user}")
                .replace("value: acme}", "value: acme-inc}");
        }
        let facts = policies.facts().unwrap();
        let token = facts.token().tenant(facts.tenant("acme").unwrap());
        assert_eq!(token.text(&facts.rule.claims_to_headers[0].claim), Some("told-to-orders"));
        assert_eq!(token.text(&["tenant".to_owned()]), Some("acme-inc"));
    }
}
