//! Domain names in DNS encoding, as DHCP and router advertisements carry them (RFC 1035 §3.1).

/// Appends `name`, dots turned into length bytes, closed by the root's empty label.
/// Labels longer than 63 bytes do not pass [`crate::config::UserConfig::check`]; here they and
/// empty ones are left out.
pub(super) fn encode(name: &str, out: &mut Vec<u8>) {
    for label in name.split('.') {
        if let Ok(len @ 1..=63) = u8::try_from(label.len()) {
            out.push(len);
            out.extend_from_slice(label.as_bytes());
        }
    }
    out.push(0);
}

/// All `names` one after the other.
pub(super) fn encode_all(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        encode(name, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_length_prefixed_labels() {
        let names = ["example.org".to_owned(), "a".to_owned()];
        assert_eq!(encode_all(&names), b"\x07example\x03org\0\x01a\0");
    }
}
