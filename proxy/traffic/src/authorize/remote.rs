//! Whose request it is, where proxies in front of the workload speak for somebody else.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of whoever made the request, `trusted_hops` proxies away: each of them wrote the address it was called from at the end
/// of `X-Forwarded-For`, so that the address wanted is that many from the end. What stands before it anybody may have written. Where
/// there are fewer, or what stands there is no address, nobody is believed and the direct peer is meant, as Envoy has it.
pub(super) fn remote_ip(headers: Option<&HeaderMap>, peer: IpAddr, trusted_hops: u8) -> IpAddr {
    let Some(before) = usize::from(trusted_hops).checked_sub(1) else { return peer };
    let lines = headers.map(|headers| headers.get_all(&X_FORWARDED_FOR).iter().collect::<Vec<_>>()).unwrap_or_default();
    let from_the_end = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let wanted = from_the_end.into_iter().nth(before).and_then(|text| std::str::from_utf8(text).ok());
    wanted.and_then(|text| address(text.trim_matches([' ', '\t']))).unwrap_or(peer)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(bare).or_else(with_port)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_as_many_addresses_are_believed_as_there_are_trusted_hops() {
        let peer: IpAddr = [10, 0, 0, 9].into();
        let remote = |lines: &[&'static str], hops| {
            let headers: HeaderMap =
                lines.iter().map(|line| (X_FORWARDED_FOR, HeaderValue::from_static(line))).collect();
            remote_ip(Some(&headers), peer, hops).to_string()
        };
        assert_eq!(remote(&["192.0.2.1, 192.0.2.2"], 0), "10.0.0.9", "nobody is believed");
        assert_eq!(remote(&["192.0.2.1, 192.0.2.2"], 1), "192.0.2.2", "what the client wrote is not looked at");
        assert_eq!(remote(&["192.0.2.1, 192.0.2.2"], 2), "192.0.2.1");
        assert_eq!(remote(&["192.0.2.1, 192.0.2.2"], 3), "10.0.0.9", "it did not come through three");
        assert_eq!(remote(&["192.0.2.1", "192.0.2.2 ,\t192.0.2.3"], 2), "192.0.2.2", "lines are one list");
        assert_eq!(remote(&[], 1), "10.0.0.9");
        assert_eq!(remote(&["192.0.2.1, unknown"], 1), "10.0.0.9", "a word is no address, and none before it counts");
        for (text, read) in [
            ("192.0.2.1:8080", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
        ] {
            assert_eq!(remote(&[text], 1), read);
        }
        assert_eq!(remote_ip(None, peer, 1), peer, "a connection has no headers");
    }
}
