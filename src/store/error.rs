//! The one error of the store: what the caller does about it, a sentence for the operator, and the cause.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Sorts the errors of a place by what the caller does about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The place has no such object. Count a miss.
    Absent,
    /// The place does not allow the operation (rights, credentials, a lock, a wrong bucket or clock). Try again seldom,
    /// until an operator changes that. The place is not down.
    Refused,
    /// The place does not answer, or not in time. Try again; after several on end count the place as down.
    Unavailable,
    /// The place holds something else than what was written. Count a miss, and write the object anew. The place is not
    /// down.
    Corrupt,
    /// The place answers that it can't do it now, or fails for a reason of its own. Try again later; after several reads on
    /// end count the place as down.
    Overloaded,
    /// The place has no space, even after evicting. Give this object up: the capacity is reached.
    Full,
    /// The place does not take this object, and takes others. Give this object up.
    Unacceptable,
    /// This process ends, and has given the operation up. Nothing is to be done or told.
    GivenUp,
}

impl StoreErrorKind {
    /// Number of kinds.
    pub const COUNT: usize = 8;

    /// Returns whether such errors mean that the place is down, once there are several on end.
    pub fn is_outage(self) -> bool {
        match self {
            Self::Unavailable | Self::Overloaded => true,
            Self::Absent | Self::Refused | Self::Corrupt | Self::Full | Self::Unacceptable | Self::GivenUp => false,
        }
    }
}

/// A failed operation of the store. Its text is a sentence for the operator that names the object.
#[derive(Clone, Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error that no other error caused.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An error that `source` caused.
    pub fn caused_by(
        kind: StoreErrorKind,
        message: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Arc::new(source)) }
    }

    /// The error of reading an object that is not there.
    pub fn absent(name: &str) -> Self {
        Self::new(StoreErrorKind::Absent, format!("{name}: there is no such object"))
    }

    /// The error of an object that is not what was written.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Corrupt, message)
    }

    /// The error of an operation that a deadline ended.
    pub fn timed_out() -> Self {
        Self::new(StoreErrorKind::Unavailable, "it does not answer in time")
    }

    /// The error of an operation whose task ended before it did, as when this process ends.
    pub fn given_up(what: &str) -> Self {
        Self::new(StoreErrorKind::GivenUp, format!("{what}: given up, since this process ends"))
    }

    /// Returns the kind, which says what the caller does.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_sentence_a_kind_and_its_cause() {
        let error = StoreError::caused_by(StoreErrorKind::Full, "o/a: the disk is full", fmt::Error);
        assert_eq!((error.to_string().as_str(), error.kind()), ("o/a: the disk is full", StoreErrorKind::Full));
        assert!(error.source().is_some() && StoreError::absent("o/a").source().is_none());
        assert_eq!(StoreError::given_up("o/a").kind(), StoreErrorKind::GivenUp);
    }
}
