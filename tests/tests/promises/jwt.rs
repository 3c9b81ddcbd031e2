//! Tokens are verified on every request, whatever their bearer tries.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use equerry::demo::town::SHOP;
use equerry_tests::Mesh;

use crate::program;

#[tokio::test]
async fn a_token_that_was_tampered_with_is_refused() -> Result<()> {
    let mesh = Mesh::up(program(), &SHOP).await?;
    let frontend = mesh.town.home("frontend")?;
    let good = mesh.bearer()?;
    let (head, rest) = good.split_once('.').unwrap_or_default();
    let signature = rest.rsplit('.').next().unwrap_or_default();
    let forged = URL_SAFE_NO_PAD
        .encode(r#"{"iss":"https://login.demo.equerry.dev","aud":"orders","sub":"root","exp":9999999999}"#);
    let symmetric = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT","kid":"demo"}"#);
    for (name, bearer, reason) in [
        ("other claims under the same signature", format!("{head}.{forged}.{signature}"), "token_invalid"),
        ("a symmetric algorithm", format!("Bearer {symmetric}.{forged}.{signature}"), "token_algorithm"),
        ("17 KiB", format!("Bearer {}", "x".repeat(17 * 1024)), "token_invalid"),
        ("two dots and nothing else", "Bearer ..".to_owned(), "token_invalid"),
    ] {
        let answer = frontend.through_sidecar().get("orders", "/", &[("authorization", &bearer)]).await?;
        ensure!(
            answer.status == 401 && answer.header("www-authenticate").contains(reason),
            "{name}: {} {:?}",
            answer.shown(),
            answer.headers
        );
    }
    let answer = frontend.through_sidecar().get("orders", "/", &[("authorization", &good)]).await?;
    ensure!(answer.status == 200, "a good token: {}", answer.shown());
    Ok(())
}
