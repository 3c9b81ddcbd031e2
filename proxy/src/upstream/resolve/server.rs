//! Tests only: a name server that speaks the real protocol over UDP and TCP, says what it was told to, and remembers what it
//! was asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// What is said of one name.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// These addresses, each to the question for its family, with this time to live in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// That it is another name for this one (both times to live in seconds), whose addresses follow.
    Alias(&'static str, u32, Vec<IpAddr>, u32),
    /// This code, with an SOA record of this negative time to live in seconds.
    Code(ResponseCode, u32),
    /// The addresses, but by UDP only that they do not fit.
    Truncated(Vec<IpAddr>, u32),
    /// Nothing.
    Silence,
}

/// The server; it ends with the runtime of its test.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    says: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
}

impl Server {
    /// A server that knows no name: it says NXDOMAIN.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let server = Self { address: udp.local_addr().unwrap(), says: Arc::default(), asked: Arc::default() };
        tokio::spawn(server.clone().answer_udp(udp));
        tokio::spawn(server.clone().answer_tcp(tcp));
        server
    }

    /// What is said of `name` from now on.
    pub(crate) fn say(&self, name: &str, says: Says) {
        self.says.lock().unwrap().insert(format!("{name}."), says);
    }

    /// How often `name` was asked for, A and AAAA counted each.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _)| *asked == format!("{name}.")).count()
    }

    async fn answer_udp(self, socket: UdpSocket) {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = self.answer(&buffer[..length], true) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    }

    async fn answer_tcp(self, listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let server = self.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    if let Some(answer) = server.answer(&question, false) {
                        stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                }
            });
        }
    }

    fn answer(&self, question: &[u8], udp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).unwrap();
        let query = question.queries.first().unwrap().clone();
        let (name, kind) = (query.name().clone(), query.query_type());
        let asked = name.to_ascii().to_lowercase();
        self.asked.lock().unwrap().push((asked.clone(), kind));
        let says = self.says.lock().unwrap().get(&asked).cloned().unwrap_or(Says::Code(ResponseCode::NXDomain, 60));

        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.add_query(query);
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        let soa = |minimum| RData::SOA(SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, minimum));
        match says {
            Says::Silence => return None,
            Says::Truncated(..) if udp => answer.metadata.truncation = true,
            Says::Code(code, minimum) => {
                answer.metadata.response_code = code;
                answer.add_authority(Record::from_rdata(Name::root(), minimum, soa(minimum)));
            }
            Says::Addresses(addresses, ttl) | Says::Truncated(addresses, ttl) => {
                answer.add_answers(records(&name, &addresses, ttl, kind));
            }
            Says::Alias(other, alias_ttl, addresses, ttl) => {
                let other = Name::from_ascii(format!("{other}.")).unwrap();
                answer.add_answer(Record::from_rdata(name, alias_ttl, RData::CNAME(CNAME(other.clone()))));
                answer.add_answers(records(&other, &addresses, ttl, kind));
            }
        }
        if answer.answers.is_empty() && answer.authorities.is_empty() && !answer.metadata.truncation {
            answer.add_authority(Record::from_rdata(Name::root(), 60, soa(60)));
        }
        Some(answer.to_vec().unwrap())
    }
}

fn records(name: &Name, addresses: &[IpAddr], ttl: u32, kind: RecordType) -> Vec<Record> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == (kind == RecordType::A);
    addresses
        .iter()
        .filter(of_family)
        .map(|address| Record::from_rdata(name.clone(), ttl, RData::from(*address)))
        .collect()
}
