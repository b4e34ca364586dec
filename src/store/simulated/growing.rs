//! The growing packs of a simulated directory.
//!
//! An append takes two steps, between which its process may die: others then see its first part. What has returned stays.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{BucketContent, Fate, Simulated, SimulatedBucket, fault, open_name};
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::place::{GrowingPack, Operation};

/// A growing pack, and the lock on it.
#[derive(Debug)]
struct Growing {
    bucket: Arc<SimulatedBucket>,
    process: u64,
    is_cut: Arc<AtomicBool>,
    /// Its complete name, and that which it has while it grows.
    name: String,
    open: String,
    len: u64,
}

pub(super) fn begin(place: &Simulated, name: &str) -> Result<Box<dyn GrowingPack>, StoreError> {
    let now = place.bucket.clock.now();
    let (mut content, fate) = place.begin();
    if content.faults.is_full {
        return Err(StoreError::new(StoreErrorKind::Full, name));
    }
    if !matches!(fate, Fate::Done) {
        return Err(fault(name));
    }
    let open = open_name(name);
    assert!(content.objects.insert(open.clone(), (Bytes::new(), now)).is_none(), "{name} is begun twice");
    Ok(lock(place, &mut content, name, open, 0))
}

pub(super) fn take_over(place: &Simulated, name: &str) -> Result<Option<Box<dyn GrowingPack>>, StoreError> {
    let (mut content, fate) = place.begin();
    if !matches!(fate, Fate::Done) {
        return Err(fault(name));
    }
    let open = open_name(name);
    match content.objects.get(&open).map(|(object, _)| object.len() as u64) {
        Some(len) if !content.locks.contains_key(&open) => Ok(Some(lock(place, &mut content, name, open, len))),
        Some(_) | None => Ok(None),
    }
}

fn lock(place: &Simulated, content: &mut BucketContent, name: &str, open: String, len: u64) -> Box<dyn GrowingPack> {
    content.locks.insert(open.clone(), place.process);
    Box::new(Growing {
        bucket: Arc::clone(&place.bucket),
        process: place.process,
        is_cut: Arc::clone(&place.is_cut),
        name: name.to_owned(),
        open,
        len,
    })
}

impl Growing {
    /// Writes `bytes` at `at`, where the file is cut off.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let now = self.bucket.clock.now();
        let mut content = self.bucket.content.lock();
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(fault(&self.open));
        }
        assert_eq!(content.locks.get(&self.open), Some(&self.process), "only its holder writes to {}", self.open);
        let Some((object, modified)) = content.objects.get_mut(&self.open) else { return Err(fault(&self.open)) };
        let kept = object.slice(..object.len().min(usize::try_from(at).unwrap_or(usize::MAX)));
        *object = Bytes::from([&kept[..], bytes].concat());
        *modified = now;
        Ok(())
    }

    /// Decides the fate of an append: how many bytes of it are written, and whether it succeeds.
    fn fate_of_append(&self, len: usize) -> Result<(usize, bool), StoreError> {
        let (mut content, fate) = self.bucket.begin();
        if content.faults.is_full {
            return Err(StoreError::new(StoreErrorKind::Full, self.open.as_str()));
        }
        if content.random.u32(0..1000) < content.faults.torn {
            return Ok((content.random.usize(0..len), false));
        }
        match fate {
            Fate::Done => Ok((len, true)),
            Fate::DoneWithError => Ok((len, false)),
            Fate::Late | Fate::Failed => Err(fault(&self.open)),
        }
    }
}

impl GrowingPack for Growing {
    fn len(&self) -> u64 {
        self.len
    }

    fn append(&mut self, bytes: Bytes) -> Operation<'_, ()> {
        Box::pin(async move {
            let (written, is_done) = self.fate_of_append(bytes.len())?;
            self.write(self.len, &bytes[..written / 2])?;
            tokio::task::yield_now().await;
            self.write(self.len, &bytes[..written])?;
            if !is_done {
                return Err(fault(&self.open));
            }
            self.len += bytes.len() as u64;
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> Operation<'_, ()> {
        Box::pin(async move {
            self.write(len, &[])?;
            self.len = len;
            Ok(())
        })
    }

    fn seal(self: Box<Self>, footer: Bytes) -> Operation<'static, ()> {
        Box::pin(async move {
            if self.bucket.content.lock().seals_hang {
                return pending().await;
            }
            let (written, is_done) = self.fate_of_append(footer.len())?;
            self.write(self.len, &footer[..written])?;
            tokio::task::yield_now().await;
            if self.is_cut.load(Ordering::SeqCst) || !is_done {
                return Err(fault(&self.open));
            }
            let mut content = self.bucket.content.lock();
            if let Some(pack) = content.objects.remove(&self.open) {
                content.objects.insert(self.name.clone(), pack);
            }
            Ok(())
        })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let mut content = self.bucket.content.lock();
        if content.locks.get(&self.open) == Some(&self.process) {
            content.locks.remove(&self.open);
        }
    }
}
