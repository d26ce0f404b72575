//! The random numbers of an attempt: a stream made from a seed, so that an attempt that is taken up again draws the same.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes that one block of the stream has.
const BLOCK_BYTES: usize = 32;

/// A stream of random bytes: HMAC-SHA256 of a counter, with the seed as its key. Whoever does not know the seed cannot
/// tell it from randomness, so it is good enough for keys.
#[derive(Clone)]
pub(super) struct Random {
    seed: [u8; 32],
    block: u64,
}

impl Random {
    pub(super) const fn new(seed: [u8; 32]) -> Self {
        Self { seed, block: 0 }
    }

    /// Fills a buffer. What is left of the last block is dropped.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(BLOCK_BYTES) {
            #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
            let mut mac = Hmac::<Sha256>::new_from_slice(&self.seed).expect("HMAC takes keys of any length");
            mac.update(&self.block.to_be_bytes());
            self.block += 1;
            for (byte, random) in part.iter_mut().zip(mac.finalize().into_bytes()) {
                *byte = random;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let draw = |seed: u8, sizes: &[usize]| {
            let mut random = Random::new([seed; 32]);
            sizes
                .iter()
                .map(|size| {
                    let mut bytes = vec![0; *size];
                    random.fill(&mut bytes);
                    bytes
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1, &[16, 40, 1]), draw(1, &[16, 40, 1]));
        assert_ne!(draw(1, &[16]), draw(2, &[16]));
        let once = draw(1, &[64]);
        assert_ne!(once[0][..32], once[0][32..], "blocks differ");
        assert_ne!(draw(1, &[16, 16])[0], draw(1, &[16, 16])[1], "calls differ");
    }
}
