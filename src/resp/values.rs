//! The objects: named values over both tiers.

use std::sync::Arc;

use crate::base::Clock;
use crate::store::Store;

/// The objects of all clients.
#[derive(Debug)]
pub(crate) struct Values {
    #[expect(dead_code, reason = "the values come next")]
    store: Arc<Store>,
    #[expect(dead_code, reason = "the values come next")]
    clock: Clock,
}

impl Values {
    /// Makes the objects that are kept in `store`, whose keys begin with `prefix` (`cache.key_prefix`).
    pub(crate) fn new(store: Arc<Store>, _prefix: &str, clock: Clock) -> Self {
        Self { store, clock }
    }
}
