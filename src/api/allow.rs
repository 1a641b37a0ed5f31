//! From where requests are answered.

use std::net::IpAddr;

/// All addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of `address` and those that share its first `prefix` bits (32 or 128 at the most).
    pub const fn new(address: IpAddr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// Whether `address` lies in it. An IPv4 address that came over an IPv6 socket counts as the IPv4 address it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                (u32::from(own) ^ u32::from(other)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                (u128::from(own) ^ u128::from(other)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Whether a request from `address` is answered. An empty list allows everybody.
pub fn is_allowed(list: &[Network], address: IpAddr) -> bool {
    list.is_empty() || list.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, prefix: u8) -> Network {
        Network::new(address.parse().expect("address"), prefix)
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        let cases = [
            ("10.0.0.0", 8, "10.200.3.4", true),
            ("10.0.0.0", 8, "::ffff:10.1.1.1", true),
            ("10.0.0.0", 8, "11.0.0.1", false),
            ("10.0.0.0", 8, "fd00::1", false),
            ("0.0.0.0", 0, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.0", false),
            ("fd00::", 8, "fdff::1", true),
            ("::", 0, "2001:db8::1", true),
            ("fd00::1", 128, "fd00::2", false),
        ];
        for (own, prefix, other, expected) in cases {
            assert_eq!(network(own, prefix).contains(other.parse().expect("address")), expected, "{own}/{prefix} {other}");
        }
    }

    #[test]
    fn an_empty_list_allows_everybody() {
        let anywhere = "192.0.2.1".parse().expect("address");
        assert!(is_allowed(&[], anywhere));
        assert!(!is_allowed(&[network("10.0.0.0", 8)], anywhere));
    }
}
