//! Addresses as an operator writes them: one, or a network of them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

/// An address, or all whose first bits are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressBlock {
    network: IpAddr,
    bits: u8,
}

impl AddressBlock {
    /// Whether an address is in it. An IPv4 address in IPv6's clothes is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for AddressBlock {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected an address or a network, such as 10.0.0.1, 10.0.0.0/8 or fd00::/8".to_owned();
        let (network, bits) = text.split_once('/').map_or((text, None), |(network, bits)| (network, Some(bits)));
        let network: IpAddr = network.parse().map_err(|_| expected())?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            // One address is the same in whatever clothes.
            None if network.to_canonical().is_ipv4() => return Ok(Self { network: network.to_canonical(), bits: 32 }),
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(expected)?,
        };
        Ok(Self { network, bits })
    }
}

impl TryFrom<String> for AddressBlock {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_addresses_and_no_other() {
        for (block, inside, outside) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.0/8", "::ffff:10.255.0.1", "11.0.0.0"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("127.0.0.0/8", "127.1.2.3", "128.0.0.1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::1", "::1", "127.0.0.1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let block: AddressBlock = block.parse().unwrap();
            assert!(block.contains(inside.parse().unwrap()) && !block.contains(outside.parse().unwrap()), "{block}");
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0", "::/129", "a/8", "10.0.0.1/", "10.0.0.1/-1"] {
            assert!(text.parse::<AddressBlock>().is_err(), "{text}");
        }
    }
}
