//! A DNS server that knows one name (RFC 1035 §4.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The one name that the peer's DNS server knows.
pub const NAME: &str = "demo.vionet.test";

/// What the name stands for: addresses for documentation (RFC 5737, RFC 3849).
pub const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80)),
];

const TYPE_A: [u8; 2] = [0, 1];
const TYPE_AAAA: [u8; 2] = [0, 28];
/// Recursion available, and no error or no such name.
const FOUND: u8 = 0x80;
const NO_SUCH_NAME: u8 = 0x83;

/// The answer to a query; `None` for what is none.
pub(super) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = query.split_first_chunk::<12>()?;
    let [i0, i1, ..] = *header;
    let name_len = rest.iter().position(|byte| *byte == 0)?.checked_add(1)?;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let kind = *rest.first_chunk::<4>()?.first_chunk::<2>()?;
    let question = query.get(12..name_len.checked_add(16)?)?;
    let known = name.eq_ignore_ascii_case(&wire_name());
    let octets = ADDRESSES.into_iter().find_map(|address| match (address, kind) {
        (IpAddr::V4(address), TYPE_A) => Some(address.octets().to_vec()),
        (IpAddr::V6(address), TYPE_AAAA) => Some(address.octets().to_vec()),
        _ => None,
    });
    let octets = octets.filter(|_| known);
    let code = if known { FOUND } else { NO_SUCH_NAME };
    let mut answer = vec![i0, i1, 0x81, code, 0, 1, 0, u8::from(octets.is_some()), 0, 0, 0, 0];
    answer.extend(question);
    if let Some(octets) = octets {
        let [k0, k1] = kind;
        let len = u8::try_from(octets.len()).unwrap_or(0);
        // The name at offset 12, class IN, 60 seconds.
        answer.extend([0xc0, 12, k0, k1, 0, 1, 0, 0, 0, 60, 0, len]);
        answer.extend(octets);
    }
    Some(answer)
}

/// The name as it is in messages: each label behind its length.
fn wire_name() -> Vec<u8> {
    let label = |label: &str| {
        let len = u8::try_from(label.len()).unwrap_or(0);
        [&[len], label.as_bytes()].concat()
    };
    NAME.split('.').flat_map(label).chain([0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn the_one_name_has_an_address_of_each_family_in_any_case() {
        for name in [NAME, &NAME.to_uppercase()] {
            let a = answer(&query(name, 1)).unwrap();
            assert_eq!((&a[..2], a[3], a[7]), (&[7, 8][..], FOUND, 1));
            assert!(a.ends_with(&[0, 4, 192, 0, 2, 80]));
            let aaaa = answer(&query(name, 28)).unwrap();
            assert_eq!((aaaa[7], aaaa[aaaa.len() - 17], aaaa.last()), (1, 16, Some(&0x80)));
        }
    }

    #[test]
    fn another_kind_has_no_answer_and_another_name_does_not_exist() {
        let mx = answer(&query(NAME, 15)).unwrap();
        assert_eq!((mx[3], mx[7]), (FOUND, 0));
        let other = answer(&query("other.test", 1)).unwrap();
        assert_eq!((other[3], other[7]), (NO_SUCH_NAME, 0));
    }

    #[test]
    fn what_is_no_query_has_no_answer() {
        let whole = query(NAME, 1);
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len]), None, "{len} bytes");
        }
    }
}
