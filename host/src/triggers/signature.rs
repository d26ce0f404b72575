//! Signatures of webhooks, in both directions: made for what leaves, checked for what comes.
//!
//! Owns: the schemes and the replay window.
//! Does not: remember signatures. What was accepted is found by the idempotency key that its run was started with.
//! Keeps: a signature is compared in constant time, over the body as it came, before anything in it is read.

use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};
use stepwell_core::Timestamp;
use stepwell_outbound::Secret;
use subtle::ConstantTimeEq;

use crate::journal::triggers::Scheme;

/// How far a signature's time may be from the host's, in both directions.
pub const REPLAY_WINDOW_MS: u64 = 5 * 60 * 1000;
/// Signatures of one request that are tried: some senders sign with an old and a new secret.
const SIGNATURES_MAX: usize = 4;

/// Why a signature is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// It is not there, or not that of this body.
    #[error("the request does not carry a valid signature")]
    Invalid,
    /// It is, but made too long ago, or too far in the future.
    #[error("the signature's time is more than five minutes away")]
    Expired,
}

impl Scheme {
    /// The header that carries the signature.
    #[must_use]
    pub fn header(self) -> &'static str {
        match self {
            Self::Stepwell => "stepwell-signature",
            Self::Stripe => "stripe-signature",
            Self::Github => "x-hub-signature-256",
        }
    }

    /// Whether the time of the signature is signed too.
    fn has_time(self) -> bool {
        match self {
            Self::Stepwell | Self::Stripe => true,
            Self::Github => false,
        }
    }
}

/// Headers that may carry a signature, of all schemes and of what came before them.
pub const HEADERS: [&str; 4] = ["stepwell-signature", "stripe-signature", "x-hub-signature-256", "x-hub-signature"];

/// The header of a delivery: `t=SECONDS,v1=HEX`.
#[must_use]
pub fn sign(secret: &Secret, now: Timestamp, body: &[u8]) -> String {
    let seconds = (now.as_millis() / 1000).to_string();
    let made = mac(secret, &[seconds.as_bytes(), b".", body]);
    format!("t={seconds},v1={}", hex::encode(made))
}

/// Checks a header's signature over a body. Returns what names the request: made of its time and its body and not of the
/// signature, of which there may be several for one request.
///
/// Any of the secrets will do, so that one can be replaced while both are in use. Two are tried whether there are any or
/// not: how long a refusal takes does not say whether there is something to be found.
pub fn verify(
    scheme: Scheme,
    secrets: &[Option<Secret>; 2],
    header: Option<&str>,
    now: Timestamp,
    body: &[u8],
) -> Result<String, BadSignature> {
    let Presented { seconds, signatures } = Presented::read(scheme, header.unwrap_or_default());
    let signed: &[&[u8]] = if scheme.has_time() { &[seconds.as_bytes(), b".", body] } else { &[body] };
    let nobodys = Secret::new("");
    let mut valid = false;
    for secret in secrets {
        let made = mac(secret.as_ref().unwrap_or(&nobodys), signed);
        for presented in &signatures {
            valid |= bool::from(made.as_slice().ct_eq(presented)) & secret.is_some();
        }
    }
    if !valid {
        return Err(BadSignature::Invalid);
    }
    if scheme.has_time() {
        let at = seconds.parse::<u64>().map_err(|_| BadSignature::Invalid)?;
        if at.saturating_mul(1000).abs_diff(now.as_millis()) > REPLAY_WINDOW_MS {
            return Err(BadSignature::Expired);
        }
    }
    let mut name = Sha256::new();
    signed.iter().for_each(|part| name.update(part));
    Ok(hex::encode(name.finalize()))
}

/// What a header says.
struct Presented<'a> {
    /// When the request was signed, as it is written.
    seconds: &'a str,
    signatures: Vec<Vec<u8>>,
}

impl<'a> Presented<'a> {
    /// Whatever the header is: what cannot be read is not there.
    fn read(scheme: Scheme, header: &'a str) -> Self {
        if !scheme.has_time() {
            let signature = header.trim().strip_prefix("sha256=").and_then(|text| hex::decode(text).ok());
            return Self { seconds: "", signatures: signature.into_iter().collect() };
        }
        let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
        let seconds = parts().find(|(name, _)| *name == "t").map_or("", |(_, value)| value);
        let signatures = parts().filter(|(name, _)| *name == "v1").take(SIGNATURES_MAX);
        Self { seconds, signatures: signatures.filter_map(|(_, value)| hex::decode(value).ok()).collect() }
    }
}

fn mac(secret: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_999);

    fn one(secret: &str) -> [Option<Secret>; 2] {
        [Some(Secret::new(secret)), None]
    }

    #[test]
    fn what_is_signed_is_accepted_and_nothing_else() {
        let (secret, other) = (Secret::new("hunter2"), Secret::new("hunter3"));
        let header = sign(&secret, NOW, b"{}");
        let check = |header: &str, body: &[u8]| verify(Scheme::Stepwell, &one("hunter2"), Some(header), NOW, body);
        assert!(check(&header, b"{}").is_ok());
        assert_eq!(check(&header, b"{} "), Err(BadSignature::Invalid));
        assert_eq!(check(&sign(&other, NOW, b"{}"), b"{}"), Err(BadSignature::Invalid));
        assert!(check(&format!("{header},v1=00"), b"{}").is_ok(), "one of several is enough");
        assert!(check(&format!("v1=00,{header},v2=ff,,=,x"), b"{}").is_ok());
        let hidden = format!("v1=00,v1=01,v1=02,v1=03,{header}");
        assert_eq!(check(&hidden, b"{}"), Err(BadSignature::Invalid), "the fifth is not tried");
        let moved = header.replace("t=1700000000", "t=1700000001");
        let cut = &header[..header.len() - 2];
        let longer = format!("{header}00");
        let twice = format!("t=1700000001,{header}");
        for bad in
            ["", "t=1", "v1=00", "t=1,v1=", "t=x,v1=00", ",", "=", "t=,v1=", "\u{1f980}", &moved, cut, &longer, &twice]
        {
            assert_eq!(check(bad, b"{}"), Err(BadSignature::Invalid), "{bad}");
        }
        // Whoever has the secret can sign any time; what is none is not taken for one.
        for seconds in ["", "x", "-1", "1e9", "18446744073709551616"] {
            let made = mac(&secret, &[seconds.as_bytes(), b".", b"{}"]);
            assert_eq!(check(&format!("t={seconds},v1={}", hex::encode(made)), b"{}"), Err(BadSignature::Invalid));
        }
        let never = mac(&secret, &[u64::MAX.to_string().as_bytes(), b".", b"{}"]);
        let never = format!("t={},v1={}", u64::MAX, hex::encode(never));
        assert_eq!(check(&never, b"{}"), Err(BadSignature::Expired));
    }

    #[test]
    fn without_a_secret_nothing_is_accepted() {
        for scheme in [Scheme::Stepwell, Scheme::Stripe] {
            let header = sign(&Secret::new(""), NOW, b"{}");
            assert_eq!(verify(scheme, &[None, None], Some(&header), NOW, b"{}"), Err(BadSignature::Invalid));
            assert_eq!(verify(scheme, &one("hunter2"), None, NOW, b"{}"), Err(BadSignature::Invalid));
        }
        let header = format!("sha256={}", hex::encode(mac(&Secret::new(""), &[b"{}"])));
        assert_eq!(verify(Scheme::Github, &[None, None], Some(&header), NOW, b"{}"), Err(BadSignature::Invalid));
        assert_eq!(verify(Scheme::Github, &one("x"), Some("sha1=00"), NOW, b"{}"), Err(BadSignature::Invalid));
    }

    #[test]
    fn two_secrets_are_in_use_while_one_is_replaced_and_the_request_stays_the_same() {
        let (old, new) = (Secret::new("hunter2"), Secret::new("hunter3"));
        let both = [Some(new.clone()), Some(old.clone())];
        let name = |header: &str| verify(Scheme::Stripe, &both, Some(header), NOW, b"{}");
        let (by_old, by_new) = (sign(&old, NOW, b"{}"), sign(&new, NOW, b"{}"));
        let signed_twice = format!("{by_old},{}", by_new.split_once(',').unwrap().1);
        // Whoever has seen a request that is signed twice may leave one signature out, and gains nothing.
        assert!(name(&by_old).is_ok());
        assert_eq!(name(&by_old), name(&by_new));
        assert_eq!(name(&by_old), name(&signed_twice));
        assert_eq!(name(&sign(&Secret::new("hunter4"), NOW, b"{}")), Err(BadSignature::Invalid));
        let later = sign(&new, NOW.plus_millis(1_000), b"{}");
        assert_ne!(name(&by_new), name(&later));
    }

    #[test]
    fn a_signature_is_good_for_five_minutes() {
        let header = sign(&Secret::new("hunter2"), NOW, b"");
        let later = |ms: u64| Timestamp::from_millis(NOW.as_millis() - 999 + ms);
        let at = |now| verify(Scheme::Stepwell, &one("hunter2"), Some(&header), now, b"");
        assert!(at(later(REPLAY_WINDOW_MS)).is_ok());
        assert_eq!(at(later(REPLAY_WINDOW_MS + 1)), Err(BadSignature::Expired));
        assert_eq!(at(Timestamp::from_millis(NOW.as_millis() - REPLAY_WINDOW_MS - 1000)), Err(BadSignature::Expired));
    }

    /// The example of the page on which GitHub describes the scheme.
    #[test]
    fn githubs_own_example_is_accepted() {
        let secrets = one("It's a Secret to Everybody");
        let header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(verify(Scheme::Github, &secrets, Some(header), NOW, b"Hello, World!").is_ok());
        assert_eq!(verify(Scheme::Github, &secrets, Some(header), NOW, b"Hello, World?"), Err(BadSignature::Invalid));
    }
}
