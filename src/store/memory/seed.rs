//! Hashing with a secret.

use std::hash::{BuildHasher, Hasher};

/// Hashes keys, which are hashes, with a secret: a client that picks URLs can't choose which slots they fall into.
#[derive(Clone, Debug)]
pub(super) struct Seed(u64);

impl Seed {
    pub(super) fn random() -> Self {
        Self(ahash::RandomState::new().hash_one(0_u8) | 1)
    }
}

impl BuildHasher for Seed {
    type Hasher = SeedHasher;

    fn build_hasher(&self) -> SeedHasher {
        SeedHasher { seed: self.0, state: 0 }
    }
}

#[derive(Debug)]
pub(super) struct SeedHasher {
    seed: u64,
    state: u64,
}

impl Hasher for SeedHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "folding the halves of a product is the point")]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(word ^ self.state ^ self.seed) * u128::from(self.seed.rotate_left(32) | 1);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are hashed one after the other")]
    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
}
