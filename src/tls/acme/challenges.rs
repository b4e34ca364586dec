//! Answers the CA's challenges: those of this process, and those that another process with the same state has ordered.
//!
//! * A challenge is written to the state before the CA is told, so a listing that begins after the CA's request came shows it.
//! * The state is listed at most once a second, whatever clients ask for. All who wait for a listing share it. So nobody keeps
//!   a CA from its answer, and nobody makes Larder ask the bucket more often.
//! * A token is looked for only if it is one: 200 letters, digits, `-` and `_` at most.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use tokio::time::sleep;
use tracing::debug;

use super::certificate;
use super::records::{Pending, is_token};
use super::state::State;
use super::waiting::Waiting;
use crate::base::Stopwatch;

/// The time between two listings.
const PAUSE: Duration = Duration::from_secs(1);

/// The beginning of the paths that CAs ask for (RFC 8555 §8.3).
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// The protocol of challenges in TLS (RFC 8737 §6.2).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The challenges that are to be answered.
#[derive(Debug)]
pub(crate) struct Challenges {
    state: Arc<State>,
    /// Guarded by its lock: what is known to be pending.
    known: Mutex<Known>,
    waiting: Waiting,
    /// Held by the one that lists: when the last listing began.
    listing: tokio::sync::Mutex<Option<Stopwatch>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Those of this process.
    own: Vec<Pending>,
    /// The pending ones of the last listing.
    listed: Vec<Pending>,
    /// When that began.
    listed_at: Option<Stopwatch>,
    /// The key authorizations of some of those.
    authorizations: Vec<(Pending, Bytes)>,
    /// The certificates that were made for some of those.
    keys: Vec<(Pending, Arc<CertifiedKey>)>,
}

impl Known {
    fn authorization(&self, pending: &Pending) -> Option<Bytes> {
        self.authorizations.iter().find(|(of, _)| of == pending).map(|(_, authorization)| authorization.clone())
    }

    fn key(&self, pending: &Pending) -> Option<Arc<CertifiedKey>> {
        self.keys.iter().find(|(of, _)| of == pending).map(|(_, key)| Arc::clone(key))
    }

    /// Forgets what is not pending any more.
    fn tidy(&mut self) {
        let Self { own, listed, authorizations, keys, .. } = self;
        let is_pending = |of: &Pending| own.contains(of) || listed.contains(of);
        authorizations.retain(|(of, _)| is_pending(of));
        keys.retain(|(of, _)| is_pending(of));
    }
}

impl Challenges {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, known: Mutex::default(), waiting: Waiting::default(), listing: tokio::sync::Mutex::default() }
    }

    /// Returns what `path` asks for, if it is the path of a challenge.
    pub(crate) fn token(path: &str) -> Option<&str> {
        path.strip_prefix(CHALLENGE_PATH).filter(|token| is_token(token))
    }

    /// Returns the answer to a request of `client` for `token` (RFC 8555 §8.3); `None`: nobody has ordered that.
    pub(crate) async fn answer(&self, client: Option<IpAddr>, token: &str) -> Option<Bytes> {
        let pending = self.find(client, |pending| pending.token == token).await?;
        self.authorization(&pending).await
    }

    /// Returns the certificate that answers a handshake of `client` for `name` (RFC 8737 §3); `None`: nobody has ordered
    /// that.
    pub(crate) async fn certificate(&self, client: Option<IpAddr>, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let pending = self.find(client, |pending| pending.name == name).await?;
        if let Some(key) = self.known.lock().key(&pending) {
            return Some(key);
        }
        let authorization = self.authorization(&pending).await?;
        let key = certificate::of_challenge(&name, digest(&SHA256, &authorization).as_ref());
        let key = Arc::new(key.map_err(|why| debug!("tls.acme: {name}: {why}")).ok()?);
        let mut known = self.known.lock();
        // One that two asked for at once is made twice.
        if let Some(key) = known.key(&pending) {
            return Some(key);
        }
        known.keys.push((pending, Arc::clone(&key)));
        Some(key)
    }

    /// Adds a challenge of this process.
    pub(super) fn begin(&self, pending: Pending, authorization: &str) {
        let mut known = self.known.lock();
        known.authorizations.push((pending.clone(), Bytes::copy_from_slice(authorization.as_bytes())));
        known.own.push(pending);
    }

    /// Removes one.
    pub(super) fn end(&self, pending: &Pending) {
        let mut known = self.known.lock();
        known.own.retain(|own| own != pending);
        known.listed.retain(|listed| listed != pending);
        known.tidy();
    }

    /// Returns how a pending challenge is answered. Another process's is read once.
    async fn authorization(&self, pending: &Pending) -> Option<Bytes> {
        if let Some(authorization) = self.known.lock().authorization(pending) {
            return Some(authorization);
        }
        let read = self.state.authorization(pending).await;
        let read = read.map_err(|error| debug!("tls.acme: the challenge for {} can't be read: {error}", pending.name));
        let authorization = read.ok()?;
        let mut known = self.known.lock();
        if known.authorization(pending).is_none() {
            known.authorizations.push((pending.clone(), authorization.clone()));
        }
        Some(authorization)
    }

    /// Finds the last challenge that is the one: among those that are known, or else in the state, unless `client` has
    /// others looked for already.
    async fn find(&self, client: Option<IpAddr>, is_it: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let look = |may_be_listed: &dyn Fn(Stopwatch) -> bool| {
            let known = self.known.lock();
            let may_be_listed = known.listed_at.is_some_and(may_be_listed);
            let all = known.own.iter().chain(known.listed.iter().filter(|_| may_be_listed));
            all.filter(|pending| is_it(pending)).max_by_key(|pending| pending.since).cloned()
        };
        // Since an older listing another process may have ordered a name anew.
        if let Some(pending) = look(&|began| began.elapsed() < PAUSE) {
            return Some(pending);
        }
        let _place = self.waiting.begin(client)?;
        self.refresh().await;
        look(&|_| true)
    }

    /// Returns once a listing is there that began after this was called.
    async fn refresh(&self) {
        let asked = Stopwatch::start();
        let mut last = self.listing.lock().await;
        if let Some(began) = *last {
            if began >= asked {
                return;
            }
            sleep(PAUSE.saturating_sub(began.elapsed())).await;
        }
        let began = Stopwatch::start();
        *last = Some(began);
        match self.state.challenges().await {
            Ok(listed) => {
                let mut known = self.known.lock();
                (known.listed, known.listed_at) = (listed, Some(began));
                known.tidy();
            }
            Err(error) => debug!("tls.acme: the challenges of other processes are not known: {error}"),
        }
    }
}

#[cfg(test)]
impl Challenges {
    /// Makes a state in `directory`, and a challenge for `name`.
    pub(in crate::tls) async fn with_one(directory: &std::path::Path, name: &str) -> Arc<Self> {
        let keep =
            crate::store::Keep::in_directory(directory, crate::base::Clock::system()).await.expect("a directory");
        let this = Self::new(Arc::new(State::new(keep, "ca/".into(), 1)));
        let since = crate::rfc9111::timestamp::Timestamp::from_secs(5);
        this.begin(Pending { since, name: name.into(), token: "token".into() }, "token.thumb");
        Arc::new(this)
    }

    /// Ends the challenges of this process.
    pub(in crate::tls) fn end_all(&self) {
        *self.known.lock() = Known::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;
    use crate::rfc9111::timestamp::Timestamp;
    use crate::store::Keep;

    async fn node(directory: &tempfile::TempDir, node: u64) -> (Arc<State>, Arc<Challenges>) {
        let keep =
            Keep::in_directory(directory.path(), Clock::manual(Timestamp::from_secs(9))).await.expect("a directory");
        let state = Arc::new(State::new(keep, "ca/".into(), node));
        (Arc::clone(&state), Arc::new(Challenges::new(state)))
    }

    fn pending(name: &str, token: &str) -> Pending {
        Pending { since: Timestamp::from_secs(5), name: name.into(), token: token.into() }
    }

    const STRANGER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    #[tokio::test(flavor = "multi_thread")]
    async fn what_another_process_has_ordered_is_answered_and_strange_tokens_keep_nobody_from_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let ((one, _), (_, other)) = (node(&directory, 1).await, node(&directory, 2).await);
        // Many strange tokens, before and after.
        let strange = |n: usize| {
            let other = Arc::clone(&other);
            tokio::spawn(async move { other.answer(STRANGER, &format!("strange-{n}")).await })
        };
        let mut asked: Vec<_> = (0..300).map(strange).collect();
        assert_eq!(other.answer(None, "token").await, None);
        one.put_challenge(&pending("a.example", "token"), "token.thumb").await.expect("written");
        asked.extend((300..600).map(strange));
        let watch = Stopwatch::start();
        assert_eq!(other.answer(None, "token").await.as_deref(), Some(&b"token.thumb"[..]));
        assert!(watch.elapsed() < PAUSE * 4, "{:?}", watch.elapsed());
        for strange in asked {
            assert_eq!(strange.await.expect("no panic"), None);
        }
        let first = other.certificate(None, "A.example.").await.expect("it is pending");
        assert!(other.certificate(None, "b.example").await.is_none());
        // The name is ordered anew, months later.
        one.end_challenge(&pending("a.example", "token")).await;
        one.put_challenge(&pending("a.example", "second"), "second.thumb").await.expect("written");
        sleep(PAUSE).await;
        let second = other.certificate(None, "a.example").await.expect("it is pending");
        assert_ne!(first.cert, second.cert, "what was known of the first order does not count for the second");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clients_make_larder_list_the_state_at_most_once_a_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, challenges) = node(&directory, 1).await;
        let watch = Stopwatch::start();
        let ask = |n: usize| {
            let challenges = Arc::clone(&challenges);
            tokio::spawn(async move { challenges.answer(STRANGER, &format!("strange-{n}")).await })
        };
        for round in 0..3 {
            let asked: Vec<_> = (0..100).map(|n| ask(100 * round + n)).collect();
            for one in asked {
                assert_eq!(one.await.expect("no panic"), None);
            }
        }
        // Each round waits for one listing, or for two if it begins during one.
        assert!(watch.elapsed() >= PAUSE * 2 && watch.elapsed() < PAUSE * 8, "{:?}", watch.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_order_of_a_name_is_answered_until_it_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, challenges) = node(&directory, 1).await;
        let (older, newer) = (
            pending("a.example", "older"),
            Pending { since: Timestamp::from_secs(6), ..pending("a.example", "newer") },
        );
        challenges.begin(newer.clone(), "newer.thumb");
        challenges.begin(older.clone(), "older.thumb");
        let key = challenges.certificate(None, "a.example").await.expect("pending");
        assert!(
            Arc::ptr_eq(&key, &challenges.certificate(None, "a.example").await.expect("pending")),
            "it is made once"
        );
        challenges.end(&newer);
        assert!(!Arc::ptr_eq(&key, &challenges.certificate(None, "a.example").await.expect("pending")));
        challenges.end(&older);
        assert!(challenges.certificate(None, "a.example").await.is_none());
    }

    #[test]
    fn only_a_token_is_looked_for() {
        for (path, token) in [
            ("/.well-known/acme-challenge/to-k_en", Some("to-k_en")),
            ("/.well-known/acme-challenge/", None),
            ("/.well-known/acme-challenge/../../etc/passwd", None),
            ("/.well-known/acme-challenge/a/b", None),
            ("/.well-known/acme-challenge/%61", None),
            ("/.well-known/acme-challengex", None),
            ("/", None),
        ] {
            assert_eq!(Challenges::token(path), token, "{path}");
        }
    }
}
