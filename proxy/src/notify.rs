//! Tells the service manager how this process stands, by the protocol of `sd_notify(3)`: one datagram to the socket that
//! `NOTIFY_SOCKET` names. Without that variable nobody asked, and nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Everything this process is for stands.
pub(crate) const READY: &str = "READY=1";
/// The process was told to stop, and finishes what is under way.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Says it, if somebody listens; a service manager that does not hear is told of in the log, and nothing else.
pub(crate) fn manager(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?socket, state, "the service manager cannot be told");
    }
}

/// A name that begins with `@` is of Linux' abstract namespace; any other is a path.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    // A manager that does not read must not hold this process up.
    from.set_nonblocking(true)?;
    from.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(by: &UnixDatagram) -> String {
        let mut text = [0; 64];
        let length = by.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(heard(&by_path), READY);

        let name = format!("equerry-{}", path.display());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        assert_eq!(heard(&by_name), STOPPING);
    }

    #[test]
    fn a_manager_that_is_not_there_is_an_error_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        assert!(send(dir.path().join("nobody").as_os_str(), READY).is_err());
    }
}
