//! The state that the Larders of one site share: the account, certificates with their keys, orders under way, plans.
//!
//! Takes an object that can't be read for an error, and never for absent: a certificate that is there is not ordered
//! again. An object that is no record of Larder's counts as absent, and is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::{debug, warn};

use super::certificate::Issued;
use super::records::{self, Account, Certificate, Order, Pending, Plan, Record, Stamp};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{Keep, StoreError, StoreErrorKind};

/// The certificates that are kept of a group: the one in use and the one before it.
const KEPT: usize = 2;

/// Milliseconds for which a certificate is kept after it has expired.
const LEFT_OVER: i64 = 30 * 24 * 3_600_000;

/// The state of one CA.
#[derive(Debug)]
pub(super) struct State {
    keep: Keep,
    /// The beginning of all names.
    base: String,
    node: u64,
    /// Guarded by its lock: what has been read, by name. Names are never written twice.
    read: Mutex<HashMap<String, Known>>,
}

/// The knowledge of an object.
#[derive(Clone, Debug)]
enum Known {
    Account(Arc<Account>),
    Certificate(Stored),
    Order(Arc<Order>),
    Plan(Arc<Plan>),
    /// It is no record of Larder's.
    Foreign,
}

/// A certificate of the state.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) issued: Arc<Issued>,
    /// The URL of the account that ordered it.
    pub(super) account: Arc<str>,
    /// When it was written.
    pub(super) since: Timestamp,
}

/// The state as it was at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// All names, in their order.
    names: Vec<String>,
    pub(super) account: Option<(String, Arc<Account>)>,
    pub(super) groups: BTreeMap<String, GroupState>,
}

/// The objects of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupState {
    /// With their names, the one that is valid longest first.
    pub(super) certificates: Vec<(String, Stored)>,
    pub(super) order: Option<(String, Arc<Order>)>,
    pub(super) plan: Plan,
}

impl State {
    pub(super) fn new(keep: Keep, base: String, node: u64) -> Self {
        Self { keep, base, node, read: Mutex::default() }
    }

    /// Reads what has changed.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let names = self.keep.list(&self.base).await?;
        let names: Vec<String> =
            names.into_iter().filter_map(|name| name.strip_prefix(&self.base).map(str::to_owned)).collect();
        let mut snapshot = Snapshot { names, ..Snapshot::default() };
        let mut needed = HashSet::new();
        for name in &snapshot.names {
            let (kind, rest) = name.split_once('/').unwrap_or_default();
            let group = rest.rsplit_once('/').map_or("", |(group, _)| group);
            if stamp(name).is_none() {
                continue;
            }
            match kind {
                // The first counts.
                Account::KIND if snapshot.account.is_none() => {
                    if let Known::Account(account) = self.known::<Account>(name).await? {
                        snapshot.account = Some((name.clone(), account));
                    }
                }
                Certificate::KIND => {
                    if let Known::Certificate(stored) = self.known::<Certificate>(name).await? {
                        snapshot.groups.entry(group.into()).or_default().certificates.push((name.clone(), stored));
                    }
                }
                _ => continue,
            }
            needed.insert(name.clone());
        }
        // Of these the last counts.
        for (group, name) in snapshot.last_of(Order::KIND) {
            if let Known::Order(order) = self.known::<Order>(&name).await? {
                snapshot.groups.entry(group).or_default().order = Some((name.clone(), order));
            }
            needed.insert(name);
        }
        for (group, name) in snapshot.last_of(Plan::KIND) {
            if let Known::Plan(plan) = self.known::<Plan>(&name).await? {
                snapshot.groups.entry(group).or_default().plan = Plan::clone(&plan);
            }
            needed.insert(name);
        }
        for group in snapshot.groups.values_mut() {
            group
                .certificates
                .sort_by(|(a, one), (b, other)| (other.issued.validity.until, b).cmp(&(one.issued.validity.until, a)));
        }
        self.read.lock().retain(|name, _| needed.contains(name));
        Ok(snapshot)
    }

    /// Returns what the object `name` is, and reads it if it is not known yet.
    async fn known<R: Record + Keepable>(&self, name: &str) -> Result<Known, StoreError> {
        if let Some(known) = self.read.lock().get(name) {
            return Ok(known.clone());
        }
        let full = format!("{}{name}", self.base);
        let known = match self.keep.get(&full).await {
            Ok(bytes) => {
                records::decode::<R>(&bytes).and_then(|record| record.into_known(name)).unwrap_or_else(|why| {
                    warn!("tls.acme: {full} in the state is no record of Larder's, and is ignored: {why}");
                    Known::Foreign
                })
            }
            // Deleted since it was listed.
            Err(error) if error.kind() == StoreErrorKind::Absent => return Ok(Known::Foreign),
            Err(error) => return Err(error),
        };
        self.read.lock().insert(name.to_owned(), known.clone());
        Ok(known)
    }

    /// Writes the account.
    pub(super) async fn put_account(&self, account: &Account, after: &Snapshot) -> Result<(), StoreError> {
        self.write(Account::KIND, account, after).await.map(drop)
    }

    /// Writes a record of a group. Returns its name.
    pub(super) async fn put<R: Record>(&self, group: &str, record: &R, after: &Snapshot) -> Result<String, StoreError> {
        self.write(&format!("{}/{group}", R::KIND), record, after).await
    }

    /// Writes a record under a name that comes after all others of its kind.
    async fn write<R: Record>(&self, below: &str, record: &R, after: &Snapshot) -> Result<String, StoreError> {
        let below = format!("{below}/");
        let last = after.names.iter().filter(|name| name.starts_with(&below)).filter_map(|name| stamp(name)).max();
        let next = last.map_or(Timestamp::default(), |last| last.time.plus_millis(1));
        let name = format!("{below}{}", Stamp { time: self.keep.now().max(next), node: self.node });
        let bytes = records::encode(record)
            .map_err(|why| StoreError::new(StoreErrorKind::Unacceptable, format!("{name}: {why}")))?;
        self.keep.put(&format!("{}{name}", self.base), Bytes::from(bytes)).await?;
        Ok(name)
    }

    /// Writes how a challenge is to be answered.
    pub(super) async fn put_challenge(&self, pending: &Pending, authorization: &str) -> Result<(), StoreError> {
        self.keep.put(&self.name_of(pending), Bytes::copy_from_slice(authorization.as_bytes())).await
    }

    /// Reads how a challenge is to be answered.
    pub(super) async fn authorization(&self, pending: &Pending) -> Result<Bytes, StoreError> {
        self.keep.get(&self.name_of(pending)).await
    }

    /// Deletes a challenge.
    pub(super) async fn end_challenge(&self, pending: &Pending) {
        self.delete_quietly(&self.name_of(pending)).await;
    }

    fn name_of(&self, pending: &Pending) -> String {
        format!("{}{}/{pending}", self.base, Pending::KIND)
    }

    /// Deletes what is of no use: all but the last plan of a group, all orders but the last, the certificates before the last
    /// two, the challenges that are older than an hour. Only for the process that orders.
    pub(super) async fn tidy(&self, snapshot: &Snapshot) {
        let now = self.keep.now();
        let mut kept: HashSet<String> = HashSet::new();
        kept.extend(snapshot.account.iter().map(|(name, _)| name.clone()));
        for group in snapshot.groups.values() {
            // Those of names that are configured no more go as well, once they are of no use to anybody.
            let is_fresh = |stored: &Stored| now.millis_since(stored.issued.validity.until) < LEFT_OVER;
            let certificates = group.certificates.iter().take(KEPT).filter(|(_, stored)| is_fresh(stored));
            kept.extend(certificates.map(|(name, _)| name.clone()));
            kept.extend(group.order.iter().map(|(name, _)| name.clone()));
        }
        kept.extend(snapshot.last_of(Plan::KIND).into_values());
        for name in snapshot.names.iter().filter(|name| !kept.contains(*name)) {
            let (kind, rest) = name.split_once('/').unwrap_or_default();
            let is_of_no_use = match kind {
                Certificate::KIND | Order::KIND | Plan::KIND => {
                    stamp(name).is_some() && matches!(self.read.lock().get(name), None | Some(Known::Certificate(_)))
                }
                Pending::KIND => Pending::parse(rest).is_some_and(|one| now.millis_since(one.since) > 3_600_000),
                _ => false,
            };
            // An object that is no record stays: somebody may want to know what became of it.
            if is_of_no_use {
                self.delete(name).await;
            }
        }
    }

    /// Deletes an object, or leaves it for the next time.
    pub(super) async fn delete(&self, name: &str) {
        self.delete_quietly(&format!("{}{name}", self.base)).await;
    }

    async fn delete_quietly(&self, full: &str) {
        if let Err(error) = self.keep.delete(full).await {
            debug!("tls.acme: {full} could not be deleted: {error}");
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.keep.now()
    }

    /// Lists the challenges that are to be answered, whoever ordered them.
    pub(super) async fn challenges(&self) -> Result<Vec<Pending>, StoreError> {
        let prefix = format!("{}{}/", self.base, Pending::KIND);
        let names = self.keep.list(&prefix).await?;
        Ok(names.iter().filter_map(|name| Pending::parse(name.strip_prefix(&prefix)?)).collect())
    }
}

/// Returns the stamp at the end of a name.
fn stamp(name: &str) -> Option<Stamp> {
    Stamp::parse(name.rsplit('/').next()?)
}

impl Snapshot {
    /// Returns the last object of a kind for each group.
    fn last_of(&self, kind: &str) -> BTreeMap<String, String> {
        let mut last = BTreeMap::new();
        for name in &self.names {
            let Some((group, _)) = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/')?.rsplit_once('/'))
            else {
                continue;
            };
            if stamp(name).is_some() {
                last.insert(group.to_owned(), name.clone());
            }
        }
        last
    }

    /// Returns what there is of a group.
    pub(super) fn group(&self, group: &str) -> GroupState {
        self.groups.get(group).cloned().unwrap_or_default()
    }

    /// Returns the certificates for all of these names, whatever group they are of, the one that is valid longest first.
    pub(super) fn usable_for(&self, group: &str, names: &[String], now: Timestamp) -> Option<Arc<Issued>> {
        let is_valid = |stored: &&Stored| stored.issued.validity.until > now;
        let own = self.groups.get(group).into_iter().flat_map(|group| &group.certificates);
        if let Some(own) = own.map(|(_, stored)| stored).find(is_valid) {
            return Some(Arc::clone(&own.issued));
        }
        // The names of a certificate have been changed: until there is one for the new names, others serve some of them.
        let others = self.groups.values().flat_map(|group| &group.certificates).map(|(_, stored)| stored);
        let serves = |stored: &&Stored| stored.issued.names.iter().any(|name| names.contains(name));
        let best = others.filter(is_valid).filter(serves).max_by_key(|stored| {
            (names.iter().filter(|name| stored.issued.names.contains(name)).count(), stored.issued.validity.until)
        });
        best.map(|stored| Arc::clone(&stored.issued))
    }
}

/// A record as it is kept in memory.
trait Keepable: Sized {
    fn into_known(self, name: &str) -> Result<Known, String>;
}

impl Keepable for Account {
    fn into_known(self, _: &str) -> Result<Known, String> {
        Ok(Known::Account(Arc::new(self)))
    }
}

impl Keepable for Certificate {
    fn into_known(self, name: &str) -> Result<Known, String> {
        let issued = Arc::new(Issued::read(&self.chain, &self.key)?);
        let since = stamp(name).map_or_else(Timestamp::default, |stamp| stamp.time);
        Ok(Known::Certificate(Stored { issued, account: self.account.into(), since }))
    }
}

impl Keepable for Order {
    fn into_known(self, _: &str) -> Result<Known, String> {
        Ok(Known::Order(Arc::new(self)))
    }
}

impl Keepable for Plan {
    fn into_known(self, _: &str) -> Result<Known, String> {
        Ok(Known::Plan(Arc::new(self)))
    }
}
