//! The peer key, and what it proves: HMAC-SHA-256 over a message and what kind of message it is.

use crate::model::{node::Nonce, secret::Secret};
use ring::hmac;
use std::fmt;

/// The cluster's peer key. Whoever has it is a member.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    /// From the content of `peer_key_file`.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().trim().as_bytes()))
    }

    /// The seal of a question, as hexadecimal digits.
    pub fn of_question(&self, body: &[u8]) -> String {
        hex(hmac::sign(&self.0, &question(body)).as_ref())
    }

    /// Whether this is the seal of that question. In constant time.
    pub fn seals_question(&self, body: &[u8], seal: &str) -> bool {
        unhex(seal).is_some_and(|seal| hmac::verify(&self.0, &question(body), &seal).is_ok())
    }

    /// The seal of a reply to the question `nonce`.
    pub fn of_reply(&self, nonce: &Nonce, body: &[u8]) -> String {
        hex(hmac::sign(&self.0, &reply(nonce, body)).as_ref())
    }

    /// Whether this is the seal of that reply to that question.
    pub fn seals_reply(&self, nonce: &Nonce, body: &[u8], seal: &str) -> bool {
        unhex(seal).is_some_and(|seal| hmac::verify(&self.0, &reply(nonce, body), &seal).is_ok())
    }
}

/// A reply sent back as a question must not pass, nor one to another question.
fn question(body: &[u8]) -> Vec<u8> {
    [b"pgbaton question\0", body].concat()
}

fn reply(nonce: &Nonce, body: &[u8]) -> Vec<u8> {
    [b"pgbaton reply\0", nonce.as_str().as_bytes(), b"\0", body].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let whole = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then(|| (0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_one_key_one_text_and_one_kind_of_message() {
        let (ours, theirs) = (Key::new(&Secret::new("a".repeat(32))), Key::new(&Secret::new("b".repeat(32))));
        let (nonce, other): (Nonce, Nonce) = ("q1".parse().expect("nonce"), "q2".parse().expect("nonce"));
        let seal = ours.of_question(b"text");
        assert!(ours.seals_question(b"text", &seal));
        assert!(!ours.seals_question(b"texts", &seal) && !theirs.seals_question(b"text", &seal));
        assert!(!ours.seals_reply(&nonce, b"text", &seal));
        let seal = ours.of_reply(&nonce, b"text");
        assert!(ours.seals_reply(&nonce, b"text", &seal));
        assert!(!ours.seals_reply(&other, b"text", &seal) && !ours.seals_question(b"text", &seal));
        for damaged in ["", "0", "zz", "é", &seal[1..], &seal[..62]] {
            assert!(!ours.seals_reply(&nonce, b"text", damaged), "{damaged:?}");
        }
        assert_eq!(format!("{ours:?}"), "***");
    }
}
