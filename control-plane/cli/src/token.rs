//! `equerry token`: lets a workload or a person in. Only the token itself goes to stdout.

use equerry_control_plane::serve::admin::shapes::{TokenList, TokenReply, TokenRequest};
use http::Method;

use crate::args::{TokenCommand, TokenKind};
use crate::client::Client;
use crate::failure::Failure;
use crate::get::plain;
use crate::out;

pub(crate) async fn run(command: &TokenCommand, client: &mut Client) -> Result<(), Failure> {
    let request = match command {
        TokenCommand::Create { kind: TokenKind::Join { namespace, account, ttl } } => {
            TokenRequest::Join { namespace: namespace.clone(), account: account.clone(), ttl_seconds: ttl.as_secs() }
        }
        TokenCommand::Create { kind: TokenKind::Admin { name } } => TokenRequest::Admin { name: name.clone() },
        TokenCommand::List { output } => {
            let list: TokenList = client.get("/api/v1/tokens").await?;
            if !plain(output.output, &list) {
                let rows: Vec<_> = list
                    .items
                    .iter()
                    .map(|token| vec![token.id.clone(), token.account.clone(), token.state.clone()])
                    .collect();
                out::data(out::table(&["ID", "ACCOUNT", "STATE"], &rows));
            }
            return Ok(());
        }
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
        TokenRequest::Admin { name } => out::say(out::styled(
            out::DIM,
            format_args!(
                "admin token of {name}; keep it in a file only you can read (chmod 600); it is not shown again"
            ),
        )),
    }
    Ok(())
}
