//! Remembers what of a file is in use, what was seen of it, and what was refused.

/// A fingerprint of contents.
pub(super) type Hash = [u8; 32];

/// A value that was made of a file, which may change.
#[derive(Debug)]
pub(super) struct Watched<T> {
    value: T,
    /// The contents that `value` was made of.
    taken: Hash,
    /// Other contents, which were seen at the last look.
    seen: Option<Hash>,
    /// Contents that can't be used, and of which that was said.
    refused: Option<Hash>,
}

/// Says how soon a change is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// When it is the same at the next look: chain and key may be written one after the other.
    Patient,
    /// Now: somebody says that the files are ready.
    AtOnce,
}

impl<T> Watched<T> {
    pub(super) fn new(taken: Hash, value: T) -> Self {
        Self { value, taken, seen: None, refused: None }
    }

    pub(super) fn value(&self) -> &T {
        &self.value
    }

    /// Returns whether contents that were seen now are to be taken or refused.
    pub(super) fn is_due(&mut self, hash: Hash, look: Look) -> bool {
        if hash == self.taken {
            (self.seen, self.refused) = (None, None);
            return false;
        }
        let is_settled = look == Look::AtOnce || self.seen == Some(hash);
        self.seen = Some(hash);
        is_settled && (look == Look::AtOnce || self.refused != Some(hash))
    }

    /// Puts `value` in place of the one before.
    pub(super) fn take(&mut self, hash: Hash, value: T) {
        *self = Self::new(hash, value);
    }

    /// Remembers that these contents can't be used.
    pub(super) fn refuse(&mut self, hash: Hash) {
        self.refused = Some(hash);
    }
}
