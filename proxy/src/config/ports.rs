//! Ports and addresses as they are written in one text: `8080=40123`, `5432=db.shop:5432`, `10.0.0.1:5353`.

use std::net::{IpAddr, SocketAddr};

use equerry_policies::names::{Authority, Namespace};
use serde::Deserialize;

/// A port of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenPort")]
pub struct AppPort {
    /// As the mesh knows it: a Service's target port.
    pub port: u16,
    /// Where the application listens at 127.0.0.1; the same unless the operator says otherwise.
    pub local: u16,
}

/// A port in a file: a number, or a text such as `8080=40123`.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenPort {
    Number(u16),
    Text(String),
}

impl TryFrom<WrittenPort> for AppPort {
    type Error = String;
    fn try_from(written: WrittenPort) -> Result<Self, String> {
        match written {
            WrittenPort::Number(port) => port.to_string().parse(),
            WrittenPort::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for AppPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (port, local) = text.split_once('=').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        match (number(port), number(local)) {
            (Some(port), Some(local)) => Ok(Self { port, local }),
            _ => Err("expected PORT or PORT=LOCAL, each from 1 to 65535".to_owned()),
        }
    }
}

/// A port on 127.0.0.1 that leads to a Service as plain TCP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TcpPort {
    /// Where the sidecar listens for its application.
    pub local: u16,
    /// The Service, as a `Host` header would name it.
    pub service: String,
}

impl TryFrom<String> for TcpPort {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for TcpPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected LOCAL=SERVICE[.NAMESPACE][:PORT], such as 5432=db.shop:5432";
        let (local, service) = text.split_once('=').ok_or(EXPECTED)?;
        let local = local.parse().ok().filter(|port| *port != 0).ok_or(EXPECTED)?;
        // A name without a namespace is of this workload's, which is not known yet; whether it is one can be said with any.
        let any = Namespace::parse("any").map_err(|error| error.to_string())?;
        Authority::parse(service, &any).map_err(|error| format!("{service:?}: {error}; {EXPECTED}"))?;
        Ok(Self { local, service: service.to_owned() })
    }
}

/// A name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct NameServer(pub(super) SocketAddr);

impl TryFrom<String> for NameServer {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for NameServer {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
        let address = text.parse().ok().map(|address: IpAddr| SocketAddr::new(address, 53));
        whole.or(address).map(Self).ok_or_else(|| "expected an IP address, or IP:PORT".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_port_names_a_service_and_perhaps_its_port() {
        let read = |text: &str| text.parse::<TcpPort>().map(|port| (port.local, port.service)).ok();
        for text in ["db", "db.shop", "db:5432", "db.shop.svc.cluster.local:5432"] {
            assert_eq!(read(&format!("15432={text}")), Some((15_432, text.to_owned())));
        }
        for bad in ["db", "5432", "0=db", "70000=db", "5432=", "5432=DB!", "5432=db:x", "5432=127.0.0.1:5432"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn name_servers_are_addresses_with_or_without_a_port() {
        let read = |text: &str| text.parse().map(|NameServer(address)| address.to_string()).ok();
        for (text, address) in [("10.0.0.1", "10.0.0.1:53"), ("[::1]:5353", "[::1]:5353"), ("::1", "[::1]:53")] {
            assert_eq!(read(text).as_deref(), Some(address));
        }
        for bad in ["dns.example.com", "10.0.0.1:0", "10.0.0.1:x", ""] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
