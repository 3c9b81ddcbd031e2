//! `equerry token`: lets a workload or a person in. Only the token itself goes to stdout.

use std::time::Duration;

use clap::Subcommand;
use equerry_control_plane::access::{Limits, Role};
use equerry_control_plane::serve::admin::shapes::{
    AdminTokenList, AdminTokenReply, JoinTokenReply, TokenList, TokenReply, TokenRequest,
};
use equerry_policies::names::{Namespace, TenantName};
use http::Method;

use crate::args::{OutputArgs, duration};
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;

/// `equerry token`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token
    Create {
        #[command(subcommand)]
        kind: TokenKind,
    },
    /// Show join tokens: whom they let in, and whether they were used; never their secrets
    List {
        /// Show the tokens of the admin API instead: whom they are for, their roles and where they hold
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a token back: a join token lets nobody in any more, an admin token stops at once
    Revoke {
        /// Its public part, as lists show it
        #[arg(value_name = "ID")]
        id: String,
        /// A token of the admin API
        #[arg(long)]
        admin: bool,
    },
}

/// What a token lets in.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenKind {
    /// A token with which one sidecar joins, once, as one identity
    Join {
        /// Namespace of the workload
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: String,
        /// Account of the workload
        #[arg(short, long, value_name = "ACCOUNT")]
        account: String,
        /// How long it can be used, such as 10m
        #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
        ttl: Duration,
    },
    /// A token for the admin API
    Admin {
        /// Whom it is for, to be told apart in lists
        #[arg(long, default_value = "admin", value_name = "NAME")]
        name: String,
        /// What it is good for: viewer looks; operator also changes documents and lets workloads in; admin everything
        #[arg(long, default_value = "admin", value_name = "viewer|operator|admin")]
        role: Role,
        /// Good only in these namespaces; several with commas
        #[arg(long = "limit-namespaces", value_name = "NAMESPACE,..", value_delimiter = ',', value_parser = namespace)]
        namespaces: Vec<Namespace>,
        /// Good only for these tenants; several with commas
        #[arg(long = "limit-tenants", value_name = "TENANT,..", value_delimiter = ',', value_parser = tenant)]
        tenants: Vec<TenantName>,
    },
}

fn namespace(text: &str) -> Result<Namespace, String> {
    Namespace::parse(text).map_err(|bad| bad.to_string())
}

fn tenant(text: &str) -> Result<TenantName, String> {
    TenantName::parse(text).map_err(|bad| bad.to_string())
}

pub(crate) async fn run(command: &TokenCommand, client: &mut Client) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { kind } => create(kind, client).await,
        TokenCommand::List { admin: false, output } => list(output, client).await,
        TokenCommand::List { admin: true, output } => list_admins(output, client).await,
        TokenCommand::Revoke { id, admin } => {
            let path = if *admin { format!("/api/v1/admin-tokens/{id}") } else { format!("/api/v1/tokens/{id}") };
            client.delete(&path).await?;
            out::data(format_args!("token {id} revoked"));
            Ok(())
        }
    }
}

async fn list(output: &OutputArgs, client: &mut Client) -> Result<(), Failure> {
    let list: TokenList = client.get("/api/v1/tokens").await?;
    if !plain(output.output, &list) {
        let row = |token: &JoinTokenReply| vec![token.id.clone(), token.account.clone(), token.state.clone()];
        let rows: Vec<_> = list.items.iter().map(row).collect();
        out::data(out::table(&["ID", "ACCOUNT", "STATE"], &rows));
    }
    Ok(())
}

async fn list_admins(output: &OutputArgs, client: &mut Client) -> Result<(), Failure> {
    let list: AdminTokenList = client.get("/api/v1/admin-tokens").await?;
    if !plain(output.output, &list) {
        let limits = |limits: &Limits| if limits.is_empty() { "-".to_owned() } else { limits.to_string() };
        let row = |token: &AdminTokenReply| {
            vec![token.id.clone(), token.name.clone(), token.role.to_string(), limits(&token.limits)]
        };
        let rows: Vec<_> = list.items.iter().map(row).collect();
        out::data(out::table(&["ID", "NAME", "ROLE", "LIMITED TO"], &rows));
    }
    Ok(())
}

async fn create(kind: &TokenKind, client: &mut Client) -> Result<(), Failure> {
    let request = match kind {
        TokenKind::Join { namespace, account, ttl } => {
            TokenRequest::Join { namespace: namespace.clone(), account: account.clone(), ttl_seconds: ttl.as_secs() }
        }
        TokenKind::Admin { name, role, namespaces, tenants } => TokenRequest::Admin {
            name: name.clone(),
            role: *role,
            limits: Limits { namespaces: namespaces.clone(), tenants: tenants.clone() },
        },
    };
    let reply: TokenReply = client.json(Method::POST, "/api/v1/tokens", Some(&request)).await?;
    out::data(&reply.token);
    match &request {
        TokenRequest::Join { namespace, account, ttl_seconds } => out::say(out::styled(
            out::DIM,
            format_args!(
                "lets one sidecar in as {namespace}/{account}, once, within {ttl_seconds} s: equerry-proxy run --join-token-file FILE ... ; it is not shown again"
            ),
        )),
        TokenRequest::Admin { name, role, .. } => out::say(out::styled(
            out::DIM,
            format_args!(
                "admin token of {name}, role {role}; keep it in a file only you can read (chmod 600); it is not shown again"
            ),
        )),
    }
    Ok(())
}
