//! How much one side may make the other hold in memory.
//!
//! Set on every stub: tonic's own default (4 MiB) is for messages received and would cut a large update silently into an
//! error on the proxy's side only; here both sides know the same number, and a sender refuses first.

/// Largest body of one resource in bytes: some 50,000 endpoints of one Service.
pub const MAX_RESOURCE: usize = 8 << 20;

/// Largest message in bytes, in both directions. Room for one resource of the largest size and some thousand small ones; an
/// update that would be larger has to be sent as several, of which only the last names the new epoch.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Longest certificate request in bytes; an ECDSA P-256 request has about 200.
pub const MAX_CSR: usize = 16 << 10;

/// Most labels, ports, held resources or interests in one message; more is refused as somebody's mistake.
pub const MAX_ITEMS: usize = 16_384;

/// How long calls took is counted by these bounds, in milliseconds: those of the metric `equerry_request_duration_seconds`.
pub const CALL_BOUNDS_MS: [f64; 14] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0];

/// Largest report of calls in bytes.
pub const MAX_CALL_REPORT: usize = 4 << 20;
