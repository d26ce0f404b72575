//! Signatures of webhooks, in both directions: made for what leaves, checked for what comes.
//!
//! Owns: the schemes and the replay window.
//! Does not: remember signatures. What was accepted is found by the idempotency key that its run was started with.
//! Keeps: a signature is compared in constant time, over the body as it came, before anything in it is read.

use hmac::{Hmac, Mac};
use sha2::Sha256;
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
    #[error("the signature is more than five minutes old")]
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
}

/// The header of a delivery: `t=SECONDS,v1=HEX`.
#[must_use]
pub fn sign(secret: &Secret, now: Timestamp, body: &[u8]) -> String {
    let seconds = (now.as_millis() / 1000).to_string();
    let made = mac(secret, &[seconds.as_bytes(), b".", body]);
    format!("t={seconds},v1={}", hex::encode(made))
}

/// Checks a header's signature over a body. Returns the signature, which names the request.
pub fn verify(
    scheme: Scheme,
    secret: &Secret,
    header: &str,
    now: Timestamp,
    body: &[u8],
) -> Result<String, BadSignature> {
    if scheme == Scheme::Github {
        let presented = header.trim().strip_prefix("sha256=").and_then(|text| hex::decode(text).ok());
        let made = mac(secret, &[body]);
        let same = presented.is_some_and(|presented| made.as_slice().ct_eq(&presented).into());
        return if same { Ok(hex::encode(made)) } else { Err(BadSignature::Invalid) };
    }
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let seconds = parts().find(|(name, _)| *name == "t").map(|(_, value)| value).ok_or(BadSignature::Invalid)?;
    let made = mac(secret, &[seconds.as_bytes(), b".", body]);
    let presented = parts().filter(|(name, _)| *name == "v1").take(SIGNATURES_MAX);
    let mut same = false;
    for (_, value) in presented {
        same |= hex::decode(value).is_ok_and(|presented| made.as_slice().ct_eq(&presented).into());
    }
    let at = seconds.parse::<u64>().ok().filter(|_| same).ok_or(BadSignature::Invalid)?;
    if at.saturating_mul(1000).abs_diff(now.as_millis()) > REPLAY_WINDOW_MS {
        return Err(BadSignature::Expired);
    }
    Ok(hex::encode(made))
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

    #[test]
    fn what_is_signed_is_accepted_and_nothing_else() {
        let (secret, other) = (Secret::new("hunter2"), Secret::new("hunter3"));
        let header = sign(&secret, NOW, b"{}");
        let check = |header: &str, body: &[u8]| verify(Scheme::Stepwell, &secret, header, NOW, body);
        assert!(check(&header, b"{}").is_ok());
        assert_eq!(check(&header, b"{} "), Err(BadSignature::Invalid));
        assert_eq!(check(&sign(&other, NOW, b"{}"), b"{}"), Err(BadSignature::Invalid));
        assert!(check(&format!("{header},v1=00"), b"{}").is_ok(), "one of several is enough");
        let moved = header.replace("t=1700000000", "t=1700000001");
        for bad in ["", "t=1", "v1=00", "t=1,v1=", "t=x,v1=00", &moved] {
            assert_eq!(check(bad, b"{}"), Err(BadSignature::Invalid), "{bad}");
        }
    }

    #[test]
    fn a_signature_is_good_for_five_minutes() {
        let secret = Secret::new("hunter2");
        let header = sign(&secret, NOW, b"");
        let later = |ms: u64| Timestamp::from_millis(NOW.as_millis() - 999 + ms);
        let at = |now| verify(Scheme::Stepwell, &secret, &header, now, b"");
        assert!(at(later(REPLAY_WINDOW_MS)).is_ok());
        assert_eq!(at(later(REPLAY_WINDOW_MS + 1)), Err(BadSignature::Expired));
        assert_eq!(at(Timestamp::from_millis(NOW.as_millis() - REPLAY_WINDOW_MS - 1000)), Err(BadSignature::Expired));
    }

    /// The example of the page on which GitHub describes the scheme.
    #[test]
    fn githubs_own_example_is_accepted() {
        let secret = Secret::new("It's a Secret to Everybody");
        let header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(verify(Scheme::Github, &secret, header, NOW, b"Hello, World!").is_ok());
        assert_eq!(verify(Scheme::Github, &secret, header, NOW, b"Hello, World?"), Err(BadSignature::Invalid));
    }
}
