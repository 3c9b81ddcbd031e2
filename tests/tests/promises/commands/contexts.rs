//! Several control planes, each remembered under a name: which one a command asks is never in doubt.

use std::time::Duration;

use anyhow::{Result, ensure};
use equerry::demo::process::{Said, run_to_end};
use equerry::demo::town::Town;
use equerry_tests::Mesh;

use crate::program;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME, namespace: shop, annotations: {equerry.dev/accounts: shop}}\nspec: {selector: {app: shop}, ports: [{port: 80}]}\n";

#[tokio::test]
async fn two_control_planes_on_one_machine_are_told_apart_and_switched_between() -> Result<()> {
    let mesh = Mesh::plan(program(), &[]).await?;
    let folder = tempfile::tempdir()?;
    let second = Town::plan(program(), folder.path(), &[])?;
    mesh.town.start_control_plane(&[]).await?;
    second.start_control_plane(&[]).await?;
    let config = folder.path().join("config.json");
    let equerry = async |line: &[&str]| -> Result<Said> {
        let args: Vec<_> = line.iter().map(std::ffi::OsString::from).collect();
        run_to_end(program(), &args, &[("EQUERRY_CONFIG", config.clone().into())], Duration::from_secs(20)).await
    };
    let add = async |town: &Town, more: &[&str]| -> Result<Said> {
        let (url, state) = (format!("https://{}", town.admin.address()), town.control_plane_state());
        let (ca, token) = (state.join("ca.pem").display().to_string(), state.join("admin.token").display().to_string());
        equerry(&[&["context", "add", &url, "--ca", &ca, "--token-file", &token], more].concat()).await
    };

    let lost = equerry(&["status"]).await?;
    ensure!(lost.code == Some(2) && lost.err.contains("equerry context add https://"), "{}", lost.everything());
    let url = format!("https://{}", second.admin.address());
    let unproved = equerry(&["status", "--server", &url]).await?;
    ensure!(unproved.code == Some(2) && unproved.err.contains("--ca FILE is missing"), "{}", unproved.everything());

    add(&mesh.town, &[]).await?.succeeded()?;
    let taken = add(&second, &[]).await?;
    ensure!(taken.code == Some(2), "a second control plane took the first's place: {}", taken.everything());
    for part in ["there is a context 127.0.0.1 already", &mesh.town.admin.address(), "--name NAME", "--replace"] {
        ensure!(taken.err.contains(part), "{part} is not in {}", taken.err);
    }
    add(&mesh.town, &[]).await?.succeeded()?;
    add(&second, &["--name", "staging"]).await?.succeeded()?;

    // The one added last is the current one; each shows its own documents.
    let services = async |more: &[&str]| -> Result<String> {
        Ok(equerry(&[&["get", "services", "-A", "-o", "name"], more].concat()).await?.succeeded()?.out)
    };
    for (context, name) in [("127.0.0.1", "here"), ("staging", "there")] {
        let file = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, SERVICE.replace("NAME", name))?;
        equerry(&["--context", context, "apply", "-f", &file.display().to_string()]).await?.succeeded()?;
    }
    ensure!(services(&[]).await?.trim() == "Service/shop/there");
    ensure!(services(&["--context", "127.0.0.1"]).await?.trim() == "Service/shop/here");
    equerry(&["context", "use", "127.0.0.1"]).await?.succeeded()?;
    ensure!(services(&[]).await?.trim() == "Service/shop/here");
    let nobody = equerry(&["context", "use", "stagin"]).await?;
    ensure!(nobody.code == Some(2) && nobody.err.contains("did you mean staging?"), "{}", nobody.everything());
    let listed = equerry(&["context", "list"]).await?.succeeded()?.out;
    ensure!(listed.lines().any(|line| line.starts_with('*') && line.contains("127.0.0.1")), "{listed}");
    ensure!(listed.lines().count() == 3, "{listed}");

    // Its files are not lent to another server, and with --replace the name goes to the other.
    let lent = equerry(&["status", "--server", &url]).await?;
    ensure!(lent.code == Some(2) && lent.err.contains("--ca FILE is missing"), "{}", lent.everything());
    add(&second, &["--replace"]).await?.succeeded()?;
    ensure!(services(&["--context", "127.0.0.1"]).await?.trim() == "Service/shop/there");
    second.stop().await;
    Ok(())
}
