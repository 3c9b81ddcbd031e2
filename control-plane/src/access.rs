//! Who may do what over the admin API: a role for each token, and, when it is limited, where it holds.
//!
//! Pure: a denial names the permission that is missing and how to get it, and the caller writes it down.

use std::fmt;

use equerry_policies::names::{Namespace, TenantName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a token is good for; each role may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks, and changes nothing.
    Viewer,
    /// Changes documents, registers instances, lets workloads in.
    Operator,
    /// Everything, the tokens of others included.
    Admin,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Read documents, and what the control plane knows.
    Read,
    /// Create, change and delete documents.
    WriteDocuments,
    /// Register instances, and take them out.
    RegisterInstances,
    /// Make, list and revoke join tokens.
    AdmitWorkloads,
    /// Make, list and revoke tokens of this API.
    AdmitPeople,
    /// Look at single calls: who asked for which path, and what became of it.
    ReadCalls,
    /// Read the audit log.
    ReadAudit,
    /// Change for a while what the control plane logs of itself.
    ChangeLog,
    /// Revoke identities, and take that back.
    RevokeIdentities,
    /// Change whom the whole mesh believes.
    RotateRoots,
}

/// Where something is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// In the mesh as a whole.
    Mesh,
    /// In one namespace.
    Namespace(&'a Namespace),
    /// For one tenant.
    Tenant(&'a TenantName),
}

/// Where a token holds. With nothing named it holds everywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Only in these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub namespaces: Vec<Namespace>,
    /// Only for these tenants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub tenants: Vec<TenantName>,
}

/// Who asks: the bearer of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The token's public id.
    pub id: String,
    /// Whom it was made for.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// Where.
    pub limits: Limits,
}

/// Something was asked for that the token is not good for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The role is not enough.
    #[error(
        "permission {permission} is missing: token {name:?} has role {role}, and it takes {needed}; \
         an admin makes one with `equerry token create admin --role {needed}`"
    )]
    Role {
        /// What was asked for.
        permission: Permission,
        /// Whose token it is.
        name: String,
        /// What it has.
        role: Role,
        /// What it takes.
        needed: Role,
    },
    /// The token does not hold there.
    #[error("permission {permission} is missing for {place}: token {name:?} is limited to {limits}")]
    Elsewhere {
        /// What was asked for.
        permission: Permission,
        /// Where.
        place: String,
        /// Whose token it is.
        name: String,
        /// Where it holds.
        limits: Limits,
    },
}

impl Permission {
    /// The least role that has it.
    pub fn needs(self) -> Role {
        match self {
            Self::Read => Role::Viewer,
            Self::WriteDocuments
            | Self::RegisterInstances
            | Self::AdmitWorkloads
            | Self::RevokeIdentities
            | Self::ReadCalls => Role::Operator,
            Self::AdmitPeople | Self::ReadAudit | Self::ChangeLog | Self::RotateRoots => Role::Admin,
        }
    }
}

impl Limits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.tenants.is_empty()
    }

    /// Whether they leave a place in.
    pub fn hold(&self, place: Place<'_>) -> bool {
        self.is_empty()
            || match place {
                Place::Mesh => false,
                Place::Namespace(namespace) => self.namespaces.contains(namespace),
                Place::Tenant(tenant) => self.tenants.contains(tenant),
            }
    }
}

impl Actor {
    /// Whether this may be done somewhere: asked before what was sent is read, so that whoever may not is told that and nothing else.
    ///
    /// # Errors
    /// What is missing.
    pub fn has(&self, permission: Permission) -> Result<(), Denied> {
        let needed = permission.needs();
        if self.role < needed {
            return Err(Denied::Role { permission, name: self.name.clone(), role: self.role, needed });
        }
        Ok(())
    }

    /// Whether this may be done there.
    ///
    /// # Errors
    /// What is missing.
    pub fn may(&self, permission: Permission, place: Place<'_>) -> Result<(), Denied> {
        self.has(permission)?;
        if !self.limits.hold(place) {
            let (name, limits) = (self.name.clone(), self.limits.clone());
            return Err(Denied::Elsewhere { permission, place: place.to_string(), name, limits });
        }
        Ok(())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err(format!("found {text:?}, expected viewer, operator or admin")),
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::WriteDocuments => "documents:write",
            Self::RegisterInstances => "instances:write",
            Self::AdmitWorkloads => "join-tokens:write",
            Self::AdmitPeople => "admin-tokens:write",
            Self::ReadCalls => "calls:read",
            Self::ReadAudit => "audit:read",
            Self::ChangeLog => "log:write",
            Self::RevokeIdentities => "identities:revoke",
            Self::RotateRoots => "roots:rotate",
        })
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("the mesh as a whole"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Self::Tenant(tenant) => write!(f, "tenant {tenant}"),
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces = self.namespaces.iter().map(|name| format!("namespace {name}"));
        let all: Vec<String> = namespaces.chain(self.tenants.iter().map(|name| format!("tenant {name}"))).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(role: Role, namespaces: &[&str]) -> Actor {
        let namespaces = namespaces.iter().map(|name| Namespace::parse(name).unwrap()).collect();
        Actor { id: "a1".into(), name: "ci".into(), role, limits: Limits { namespaces, tenants: Vec::new() } }
    }

    #[test]
    fn each_role_may_do_what_those_before_it_may() {
        use Permission::{
            AdmitPeople, AdmitWorkloads, Read, ReadAudit, RegisterInstances, RevokeIdentities, RotateRoots,
            WriteDocuments,
        };
        let operators = [WriteDocuments, RegisterInstances, AdmitWorkloads, RevokeIdentities];
        let [a, b, c, d] = operators;
        let all = [Read, a, b, c, d, AdmitPeople, ReadAudit, RotateRoots];
        let allowed = |role| all.map(|permission| actor(role, &[]).may(permission, Place::Mesh).is_ok());
        assert_eq!(allowed(Role::Viewer), [true, false, false, false, false, false, false, false]);
        assert_eq!(allowed(Role::Operator), [true, true, true, true, true, false, false, false]);
        assert_eq!(allowed(Role::Admin), [true; 8]);
    }

    #[test]
    fn a_denial_says_which_permission_is_missing_and_how_to_get_it() {
        let denied = actor(Role::Viewer, &[]).may(Permission::WriteDocuments, Place::Mesh).unwrap_err().to_string();
        assert!(
            denied.contains("permission documents:write is missing") && denied.contains("--role operator"),
            "{denied}"
        );
    }

    #[test]
    fn a_limited_token_holds_only_where_it_says() {
        let (shop, bank) = (Namespace::parse("shop").unwrap(), Namespace::parse("bank").unwrap());
        let limited = actor(Role::Admin, &["shop"]);
        assert_eq!(limited.may(Permission::WriteDocuments, Place::Namespace(&shop)), Ok(()));
        let denied = limited.may(Permission::Read, Place::Namespace(&bank)).unwrap_err().to_string();
        assert_eq!(denied, "permission read is missing for namespace bank: token \"ci\" is limited to namespace shop");
        assert!(limited.may(Permission::AdmitPeople, Place::Mesh).is_err());
        let acme = TenantName::parse("acme").unwrap();
        assert!(limited.may(Permission::Read, Place::Tenant(&acme)).is_err());
    }
}
