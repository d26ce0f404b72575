//! Which addresses may be reached.
//!
//! A step chooses the URL, so without rules it could speak to whatever trusts the host's place in the network: the
//! metadata service of the cloud, a database without a password, the host's own API. By default only addresses that are
//! routed in the public internet may be reached; the operator can open ranges, or close everything.
//!
//! It judges addresses and does not resolve names: `lookup.rs` puts every resolved address before it. Addresses that
//! are written in a URL are never resolved, so [`Egress::check_literal`] looks at those. By then the URL has been
//! normalised, and `http://2130706433/` and `http://0x7f.1/` are both `127.0.0.1`.
//!
//! The invariant: an address that carries another one (IPv4-mapped IPv6, NAT64) is judged as the one it carries, and an
//! address that is in no table is refused unless it is unicast that has been handed out to networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use reqwest::Url;

/// What may be reached besides the ranges that the operator allows one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// No address.
    Nothing,
    /// Addresses that are routed in the public internet.
    #[default]
    Public,
    /// Those, and the networks of one's own: loopback, RFC 1918, RFC 6598, unique local IPv6. Addresses of metadata
    /// services and those that are no unicast stay closed.
    PublicAndPrivate,
}

/// The rules of the operator.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// What may be reached in general.
    pub reach: Reach,
    /// What may be reached in any case.
    pub allow: Vec<AddressRange>,
}

/// The address of a host may not be reached. It names the host as the request did: what the name resolved to is not
/// for a guest to know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address of `{host}` may not be reached")]
pub struct Denied {
    /// A name, or an address that was written in the URL.
    pub host: String,
}

impl Egress {
    /// Whether a connection to the address may be made.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = carried(address);
        self.allow.iter().any(|range| range.contains(address))
            || match self.reach {
                Reach::Nothing => false,
                Reach::Public => kind(address) == Kind::Public,
                Reach::PublicAndPrivate => kind(address) != Kind::Special,
            }
    }

    /// Whether no address at all may be reached. Then even a look-up of a name would be a message to the outside.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.reach == Reach::Nothing && self.allow.is_empty()
    }

    /// Judges the address in a URL. A name passes; it is judged by what it resolves to.
    pub fn check_literal(&self, url: &Url) -> Result<(), Denied> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(address) if !self.permits(address) => Err(Denied { host: host.to_owned() }),
            _ => Ok(()),
        }
    }
}

/// Addresses that begin with the same bits: `10.0.0.0/8`, `::1/128`. Without a prefix length it is one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    prefix_bits: u8,
}

/// A text is not an address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRangeError {
    /// It has another form.
    #[error("`{0}` is not an address range such as `10.0.0.0/8` or `::1/128`")]
    Form(String),
    /// `10.0.0.1/8`: either the address is meant, or the range.
    #[error("`{0}` has bits after its prefix")]
    HostBits(String),
    /// A range that would never match, as such addresses are judged as the IPv4 address that they carry.
    #[error("`{0}` carries IPv4 addresses: write the range in IPv4")]
    Carried(String),
}

impl AddressRange {
    const fn v4(octets: [u8; 4], prefix_bits: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix_bits }
    }

    const fn v6(segments: [u16; 8], prefix_bits: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = segments;
        Self { first: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix_bits }
    }

    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing_bits = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                u32::BITS - (first.to_bits() ^ address.to_bits()).leading_zeros()
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                u128::BITS - (first.to_bits() ^ address.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing_bits <= width(address) - u32::from(self.prefix_bits)
    }

    fn has_host_bits(&self) -> bool {
        let trailing_zeros = match self.first {
            IpAddr::V4(first) => first.to_bits().trailing_zeros(),
            IpAddr::V6(first) => first.to_bits().trailing_zeros(),
        };
        trailing_zeros < width(self.first) - u32::from(self.prefix_bits)
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || AddressRangeError::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| form())?;
        let longest = u8::try_from(width(first)).map_err(|_| form())?;
        let prefix_bits = prefix.map_or(Ok(longest), str::parse).map_err(|_| form())?;
        if prefix_bits > longest {
            return Err(form());
        }
        let range = Self { first, prefix_bits };
        if range.has_host_bits() {
            return Err(AddressRangeError::HostBits(text.to_owned()));
        }
        if carried(first) != first {
            return Err(AddressRangeError::Carried(text.to_owned()));
        }
        Ok(range)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix_bits)
    }
}

/// Bits of an address.
fn width(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => Ipv4Addr::BITS,
        IpAddr::V6(_) => Ipv6Addr::BITS,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Routed in the public internet.
    Public,
    /// In somebody's own network.
    Private,
    /// No address of a peer, or of one that hands out credentials to whoever can reach it.
    Special,
}

/// The address that is reached in the end: a mapped address by the operating system, NAT64 by a gateway.
fn carried(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if NAT64.contains(IpAddr::V6(v6)) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        address => address,
    }
}

/// The first entry that contains the address decides.
fn kind(address: IpAddr) -> Kind {
    let (table, otherwise) = match address {
        IpAddr::V4(_) => (V4, Kind::Public),
        // So far only 2000::/3 is unicast for the internet (RFC 4291, IANA registry). The rest is reserved, local,
        // multicast, or one of the transition mechanisms of the past.
        IpAddr::V6(_) if V6_UNICAST.contains(address) => (V6, Kind::Public),
        IpAddr::V6(_) => (V6, Kind::Special),
    };
    table.iter().find(|(range, _)| range.contains(address)).map_or(otherwise, |(_, kind)| *kind)
}

const NAT64: AddressRange = AddressRange::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const V6_UNICAST: AddressRange = AddressRange::v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// IPv4 that is not public: RFC 6890 and the IANA registry of special-purpose addresses, after the metadata services
/// that lie outside of them or inside of a private range.
const V4: &[(AddressRange, Kind)] = &[
    (AddressRange::v4([168, 63, 129, 16], 32), Kind::Special), // Azure's host, in a public range
    (AddressRange::v4([100, 100, 100, 200], 32), Kind::Special), // metadata at Alibaba
    (AddressRange::v4([0, 0, 0, 0], 8), Kind::Special),        // this host, this network
    (AddressRange::v4([10, 0, 0, 0], 8), Kind::Private),
    (AddressRange::v4([100, 64, 0, 0], 10), Kind::Private), // carrier-grade NAT, overlay networks
    (AddressRange::v4([127, 0, 0, 0], 8), Kind::Private),   // loopback
    (AddressRange::v4([169, 254, 0, 0], 16), Kind::Special), // link-local, metadata at most clouds
    (AddressRange::v4([172, 16, 0, 0], 12), Kind::Private),
    (AddressRange::v4([192, 0, 0, 0], 24), Kind::Special), // protocol assignments, metadata at Oracle
    (AddressRange::v4([192, 0, 2, 0], 24), Kind::Special), // documentation
    (AddressRange::v4([192, 88, 99, 0], 24), Kind::Special), // 6to4 relays
    (AddressRange::v4([192, 168, 0, 0], 16), Kind::Private),
    (AddressRange::v4([198, 18, 0, 0], 15), Kind::Special), // benchmarks
    (AddressRange::v4([198, 51, 100, 0], 24), Kind::Special), // documentation
    (AddressRange::v4([203, 0, 113, 0], 24), Kind::Special), // documentation
    (AddressRange::v4([224, 0, 0, 0], 4), Kind::Special),   // multicast
    (AddressRange::v4([240, 0, 0, 0], 4), Kind::Special),   // reserved, broadcast
];

/// IPv6 that is private, and what is special within [`V6_UNICAST`] or a private range.
const V6: &[(AddressRange, Kind)] = &[
    (AddressRange::v6([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254], 128), Kind::Special), // metadata at AWS
    (AddressRange::v6([0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254], 128), Kind::Special), // metadata at Google
    (AddressRange::v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Kind::Private),               // loopback
    (AddressRange::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Kind::Private),            // unique local
    (AddressRange::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Kind::Special),           // protocol assignments, Teredo
    (AddressRange::v6([0x2001, 0x0db8, 0, 0, 0, 0, 0, 0], 32), Kind::Special),      // documentation
    (AddressRange::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), Kind::Special),           // 6to4
    (AddressRange::v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Kind::Special),           // documentation
];

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(egress: &Egress, addresses: &[&str]) -> Vec<String> {
        let permitted = addresses.iter().filter(|text| egress.permits(text.parse().unwrap()));
        permitted.map(|text| (*text).to_owned()).collect()
    }

    const PUBLIC: &[&str] = &[
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::",
        "2001:4860:4860::8888",
        "2001:db7:ffff::",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ];

    const PRIVATE: &[&str] = &[
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.255.255",
        "::1",
        "fc00::",
        "fdff:ffff::1",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "64:ff9b::192.168.0.1",
    ];

    const SPECIAL: &[&str] = &[
        "0.0.0.0",
        "0.255.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.0.0",
        "169.254.169.254",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.255",
        "::",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
    ];

    #[test]
    fn by_default_only_public_addresses_are_reached() {
        let egress = Egress::default();
        assert_eq!(permitted(&egress, PUBLIC), PUBLIC);
        assert!(permitted(&egress, PRIVATE).is_empty());
        assert!(permitted(&egress, SPECIAL).is_empty());
        assert!(!egress.is_closed());
    }

    #[test]
    fn private_networks_open_without_the_addresses_that_hand_out_credentials() {
        let egress = Egress { reach: Reach::PublicAndPrivate, allow: Vec::new() };
        assert_eq!(permitted(&egress, PUBLIC), PUBLIC);
        assert_eq!(permitted(&egress, PRIVATE), PRIVATE);
        assert!(permitted(&egress, SPECIAL).is_empty());
    }

    #[test]
    fn nothing_means_nothing_but_what_is_listed() {
        let mut egress = Egress { reach: Reach::Nothing, allow: Vec::new() };
        assert!(egress.is_closed());
        for addresses in [PUBLIC, PRIVATE, SPECIAL] {
            assert!(permitted(&egress, addresses).is_empty());
        }
        egress.allow = vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        assert!(!egress.is_closed());
        assert!(permitted(&egress, PUBLIC).is_empty());
        assert_eq!(permitted(&egress, PRIVATE), ["10.0.0.0", "10.255.255.255", "::1", "::ffff:10.1.2.3"]);
    }

    #[test]
    fn an_allowed_range_opens_special_addresses_and_ends_where_it_says() {
        let egress = Egress {
            reach: Reach::Public,
            allow: vec!["169.254.0.0/16".parse().unwrap(), "fe80::/10".parse().unwrap()],
        };
        assert_eq!(
            permitted(&egress, SPECIAL),
            [
                "169.254.0.0",
                "169.254.169.254",
                "::ffff:169.254.169.254",
                "64:ff9b::169.254.169.254",
                "fe80::1",
                "febf::1"
            ]
        );
    }

    #[test]
    fn an_address_in_a_url_is_judged_however_it_is_spelled() {
        let egress = Egress::default();
        for url in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://0/",
            "http://１２７.0.0.1/",
            "http://127。0。0。1/",
            "http://%31%32%37.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[0:0:0:0:0:0:0:1]:443/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://169.254.169.254/latest/meta-data/",
        ] {
            let denied = egress.check_literal(&Url::parse(url).unwrap());
            assert!(denied.is_err(), "{url} passed");
        }
        for url in
            ["http://1.1.1.1/", "https://[2606:4700::1111]/", "http://a-name.example/", "http://1.1.1.1.example/"]
        {
            assert_eq!(egress.check_literal(&Url::parse(url).unwrap()), Ok(()), "{url}");
        }
    }

    #[test]
    fn a_range_is_read_and_printed() {
        for (text, printed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("::/0", "::/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1/128", "::1/128"),
        ] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), printed);
        }
        for text in ["", "/", "10", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0.0/8/8", "localhost/8"]
        {
            assert_eq!(text.parse::<AddressRange>(), Err(AddressRangeError::Form(text.to_owned())));
        }
        assert!(matches!("10.0.0.1/8".parse::<AddressRange>(), Err(AddressRangeError::HostBits(_))));
        assert!(matches!("::ffff:10.0.0.0/104".parse::<AddressRange>(), Err(AddressRangeError::Carried(_))));
    }

    #[test]
    fn the_widest_range_contains_every_address_of_its_family() {
        let range: AddressRange = "0.0.0.0/0".parse().unwrap();
        assert!(range.contains(IpAddr::V4(Ipv4Addr::BROADCAST)));
        assert!(!range.contains(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }
}
