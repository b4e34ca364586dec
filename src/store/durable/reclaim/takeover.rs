//! Completes the packs that processes left growing when they ended.

use std::sync::Arc;

use bytes::Bytes;
use tracing::info;

use super::super::Inner;
use crate::store::error::StoreError;
use crate::store::journal::all_entries;
use crate::store::names::PackName;

impl Inner {
    /// Completes a pack that grows and whose writer is gone: up to the first entry that does not hold. Returns `false` if
    /// its writer has it, or somebody else does this.
    pub(super) async fn complete(self: &Arc<Self>, pack: PackName) -> Result<bool, StoreError> {
        if !self.place.is_local() {
            return Ok(false);
        }
        let name = self.names.pack(pack);
        let Some(mut file) = self.place.take_over(&name).await? else { return Ok(false) };
        let builder = all_entries(&*self.place, &name, file.len()).await?;
        if builder.entries().is_empty() {
            self.place.delete(&self.names.open_pack(pack)).await?;
            drop(self.index.remove_pack(pack));
            return Ok(false);
        }
        if builder.len() < file.len() {
            file.truncate(builder.len()).await?;
        }
        let footer = Bytes::from(builder.finish());
        let size = builder.len() + footer.len() as u64;
        file.seal(footer).await?;
        let pack = self.index.add_pack(pack);
        self.index.insert_all(&pack, builder.entries());
        pack.set_size(size, false);
        info!(pack = %pack.name, entries = builder.entries().len(), "a pack whose writer is gone is completed");
        Ok(true)
    }
}
