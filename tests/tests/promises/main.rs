//! What Equerry promises, each proved from outside over real sockets between real processes: one module per promise, all
//! in one binary.

mod abuse;
mod api;
mod apply_with_proof;
mod authorization;
mod bad_days;
mod breaker;
mod commands;
mod demo_story;
mod drain;
mod explained;
mod faults;
mod filters;
mod flow;
mod forms;
mod grpc;
mod health;
mod identity;
mod installing;
mod jwt;
mod metrics;
mod mtls;
mod observability;
mod outage;
mod outside;
mod overload;
mod peers;
mod programs;
mod quota;
mod recovery;
mod retries;
mod secrets;
mod settings;
mod skew;
mod smuggling;
mod spread;
mod subsets;
mod tcp;
mod tokens;
mod traces;
mod trust;
mod websocket;

use std::path::Path;

use equerry::demo::town::Resident;

/// The `equerry` command of this build.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_equerry-under-test"))
}

/// The smallest mesh with a caller and two instances of one Service: enough for most promises.
const PAIR: [Resident; 3] = {
    let [_, orders, v1, v2] = equerry::demo::town::SHOP;
    [orders, v1, v2]
};
