//! Keeps the certificates: looks at the state, puts what it has into use, and orders what is due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::certificate::Issued;
use super::challenges::Challenges;
use super::claims::{Claims, Pace};
use super::client::CaClient;
use super::config::{Config, StatePlace};
use super::due::{Doors, Due, due, renew_at};
use super::order::{Orders, Wish, account_key};
use super::plan::{self, Trouble};
use super::problem::{Failure, clean};
use super::records::{self, Failures, Plan};
use super::state::{GroupState, Snapshot, State};
use crate::base::log::OncePerMinute;
use crate::base::{AcmeOutcome, Clock, Metrics};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{Durable, Keep, is_open_to_others};
use crate::tls::{Tls, TlsError};

/// The longest that one order takes, validation included.
const TO_ORDER: Duration = Duration::from_secs(300);

/// The longest that the start waits for the state, so that what is there is served from the first handshake on.
const TO_START: Duration = Duration::from_secs(10);

/// The bounds of the time between two looks at the state.
const LEAST_POLL: Duration = Duration::from_millis(500);
const MOST_POLL: Duration = Duration::from_secs(3600);

/// The names of one certificate.
#[derive(Clone, Debug)]
struct Group {
    id: String,
    names: Vec<String>,
}

/// Keeps the certificates of `[tls.acme]`.
pub(crate) struct Acme {
    config: Config,
    groups: Vec<Group>,
    doors: Doors,
    client: CaClient,
    state: Arc<State>,
    challenges: Arc<Challenges>,
    claims: Claims,
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// When this process began.
    since: Timestamp,
    /// Guarded by its lock: the names without a certificate, with what failed last.
    missing: Mutex<BTreeMap<String, String>>,
    /// Guarded by its lock: what was put into use last, by group.
    installed: Mutex<BTreeMap<String, Arc<Issued>>>,
    /// Troubles with the state that were logged.
    told: OncePerMinute<&'static str>,
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acme").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Acme {
    /// Opens the state, and puts into use what it has. Asks the CA for nothing. Call on the runtime on which
    /// [`Acme::run`] goes on.
    pub(crate) async fn open(
        config: &Config,
        doors: Doors,
        durable: Option<&Durable>,
        tls: Arc<Tls>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let keep = match (&config.state, durable) {
            (StatePlace::Directory(path), _) => {
                let kept = Keep::in_directory(path, clock.clone()).await.map_err(|error| {
                    TlsError(format!(
                        "tls.acme.state: the directory {} can't be used ({error}); make it writable for Larder's user, or name \
                         another one",
                        path.display()
                    ))
                })?;
                if is_open_to_others(path) {
                    warn!(
                        "tls.acme.state: the directory {0} is open to other users than Larder's, and private keys are kept in \
                         it: chmod 700 {0}",
                        path.display()
                    );
                }
                kept
            }
            (StatePlace::Default | StatePlace::Bucket, Some(durable)) => Keep::beside(durable, clock.clone()),
            (StatePlace::Default | StatePlace::Bucket, None) => {
                return Err(TlsError("tls.acme.state: there is no durable tier; name a directory".into()));
            }
        };
        let mut config = config.clone();
        config.poll_interval = config.poll_interval.clamp(LEAST_POLL, MOST_POLL);
        let client = CaClient::new(&config.ca_file).map_err(TlsError)?;
        if !config.account_key.as_os_str().is_empty() {
            account_key(&config.account_key).map_err(TlsError)?;
        }
        let (base, node) = (records::base(&config.directory), fastrand::u64(1..));
        let state = Arc::new(State::new(keep.clone(), base.clone(), node));
        let groups = config.domains.iter().map(|domains| {
            let names = domains.names().to_vec();
            Group { id: records::group(&names), names }
        });
        let this = Arc::new(Self {
            groups: groups.collect(),
            doors,
            client,
            challenges: Arc::new(Challenges::new(Arc::clone(&state))),
            claims: Claims::new(keep, &base, node, Pace::of(config.poll_interval)),
            state,
            tls,
            metrics,
            since: clock.now(),
            clock,
            missing: Mutex::default(),
            installed: Mutex::default(),
            told: OncePerMinute::new(),
            config,
        });
        this.tls.answer_challenges(Arc::clone(&this.challenges));
        match timeout(TO_START, this.state.snapshot()).await {
            Ok(Ok(snapshot)) => this.put_into_use(&snapshot),
            Ok(Err(error)) => this.tell_of_state(&error.to_string()),
            Err(_) => this.tell_of_state("it does not answer in time"),
        }
        Ok(this)
    }

    /// Returns what answers the CA's challenges.
    pub(crate) fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// Returns the names for which there is no certificate, each with what failed last.
    pub(crate) fn missing(&self) -> BTreeMap<String, String> {
        self.missing.lock().clone()
    }

    /// Keeps the certificates until `stop` is cancelled.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            self.turn(&stop).await;
            tokio::select! {
                () = stop.cancelled() => return,
                // Processes that were started together do not ask together.
                () = sleep(self.config.poll_interval.mul_f64(0.75 + fastrand::f64() / 4.0)) => {}
            }
        }
    }

    /// Looks at the state once, and does what is due, unless another process does.
    async fn turn(&self, stop: &CancellationToken) {
        let snapshot = tokio::select! {
            () = stop.cancelled() => return,
            snapshot = self.state.snapshot() => snapshot,
        };
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => return self.tell_of_state(&error.to_string()),
        };
        self.put_into_use(&snapshot);
        if self.groups.iter().all(|group| self.due(group, &snapshot) == Due::Nothing) {
            return;
        }
        let held = match self.claims.acquire().await {
            Ok(Some(held)) => held,
            Ok(None) => return,
            Err(error) => return self.tell_of_state(&error.to_string()),
        };
        let work = async {
            tokio::select! {
                () = stop.cancelled() => {}
                done = self.work() => {
                    if let Err(failure) = done {
                        self.tell_of_state(&failure.told);
                    }
                }
            }
        };
        held.during(work).await;
    }

    /// Does all that is due, one group after the other. Only for the process that has the claim.
    async fn work(&self) -> Result<(), Failure> {
        let of_state = |error| Failure::of_state(&error);
        for group in &self.groups {
            // Others may have done it since.
            let snapshot = self.state.snapshot().await.map_err(of_state)?;
            match self.due(group, &snapshot) {
                Due::Nothing => {}
                Due::Order => self.order(group, &snapshot).await?,
                Due::Window => self.ask_for_window(group, &snapshot).await?,
            }
        }
        let snapshot = self.state.snapshot().await.map_err(of_state)?;
        self.state.tidy(&snapshot).await;
        Ok(())
    }

    /// Decides what there is to do for a group.
    fn due(&self, group: &Group, snapshot: &Snapshot) -> Due {
        let GroupState { certificates, plan, .. } = snapshot.group(&group.id);
        let stored = certificates.first().map(|(_, stored)| stored);
        due(stored, &plan, self.clock.now(), self.since)
    }

    /// Gets a certificate for a group, and writes down what came of it.
    async fn order(&self, group: &Group, snapshot: &Snapshot) -> Result<(), Failure> {
        let GroupState { certificates, plan, .. } = snapshot.group(&group.id);
        let now = self.clock.now();
        let names = group.names.join(" ");
        let (last, is_renewal) = match certificates.first() {
            Some((_, stored)) if stored.issued.validity.until > now => (Some(stored), true),
            Some((_, stored)) => (Some(stored), false),
            None => (None, false),
        };
        let until = last.map(|stored| stored.issued.validity.until);
        match until {
            Some(until) => info!(
                "tls.acme: renews the certificate for {names}, which {} {}",
                if is_renewal { "expires at" } else { "expired at" },
                until.to_rfc3339()
            ),
            None => info!("tls.acme: orders a certificate for {names} from {}", self.config.directory),
        }
        let count = plan.failures.as_ref().map_or(0, |failures| failures.count);
        let wish = Wish {
            group: &group.id,
            names: &group.names,
            challenge: self.doors.challenge(self.config.challenge, count),
            replaces: last.and_then(|stored| Some((stored.issued.id.clone()?, stored.account.to_string()))),
        };
        let orders = self.orders();
        let obtained = timeout(TO_ORDER, async {
            let account = orders.account(snapshot).await?;
            // The account may just have been made, and written.
            orders.obtain(&account, &wish, snapshot).await
        });
        let obtained = obtained.await.unwrap_or_else(|_| {
            let told = format!("the CA has not come to a decision within {} s", TO_ORDER.as_secs());
            Err(Failure::new(Trouble::Unreachable, told))
        });
        match obtained {
            Ok(_) => {
                self.metrics.acme.ordered(AcmeOutcome::Issued);
                let snapshot = self.state.snapshot().await.map_err(|error| Failure::of_state(&error))?;
                self.put_into_use(&snapshot);
                let state = snapshot.group(&group.id);
                let issued = state.certificates.first().map(|(_, stored)| Arc::clone(&stored.issued));
                let until = issued.as_ref().map_or_else(Timestamp::default, |issued| issued.validity.until);
                info!("tls.acme: has a certificate for {names}, valid until {}", until.to_rfc3339());
                if state.plan.failures.is_some() {
                    let plan = Plan { failures: None, ..state.plan };
                    self.write_plan(group, &plan, &snapshot).await?;
                }
                // Its window is asked for at the next turn.
                Ok(())
            }
            Err(failure) => self.failed(group, &plan, until, failure, snapshot).await,
        }
    }

    /// Writes down and tells what failed, and when it is tried again.
    async fn failed(
        &self,
        group: &Group,
        plan: &Plan,
        until: Option<Timestamp>,
        failure: Failure,
        snapshot: &Snapshot,
    ) -> Result<(), Failure> {
        let now = self.clock.now();
        self.metrics.acme.ordered(match failure.trouble {
            Trouble::Unreachable => AcmeOutcome::Unreachable,
            Trouble::Refused => AcmeOutcome::Refused,
            Trouble::TooOften => AcmeOutcome::TooOften,
            Trouble::State => AcmeOutcome::State,
        });
        self.metrics.acme.failed_at(now);
        let count = plan.failures.as_ref().map_or(0, |failures| failures.count).saturating_add(1);
        let unit = self.config.poll_interval * 2 / 3;
        let pause = plan::pause(failure.trouble, count, unit, failure.said, fastrand::f64());
        let retry_at = now.plus_millis(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
        let names = group.names.join(" ");
        let told = format!("{}; the next attempt is at {}", failure.told, retry_at.to_rfc3339());
        match until.map(|until| until.millis_since(now)) {
            None => warn!("tls.acme: there is no certificate for {names} yet: {told}"),
            Some(left) if left <= 0 => {
                error!("tls.acme: the certificate for {names} HAS EXPIRED, and is not renewed: {told}");
            }
            Some(left) if left < 48 * 3_600_000 => {
                error!(
                    "tls.acme: the certificate for {names} expires in {} h, and is not renewed: {told}",
                    left / 3_600_000
                );
            }
            Some(_) => warn!("tls.acme: the certificate for {names} is not renewed yet: {told}"),
        }
        {
            let mut missing = self.missing.lock();
            for name in &group.names {
                if let Some(why) = missing.get_mut(name) {
                    failure.told.clone_into(why);
                }
            }
        }
        if failure.is_account_gone
            && let Some((name, _)) = &snapshot.account
        {
            warn!("tls.acme: the CA does not know the account any more; another one is made");
            self.state.delete(name).await;
        }
        let not_before = failure.said.and_then(|said| Some(now.as_secs() + i64::try_from(said.as_secs()).ok()?));
        let failures = Failures {
            count,
            trouble: failure.trouble,
            failed_at: now.as_secs(),
            retry_at: retry_at.as_secs(),
            not_before,
            told: clean(&failure.told),
        };
        let plan = Plan { failures: Some(failures), ..plan.clone() };
        // Something may have been written since the snapshot.
        let snapshot = self.state.snapshot().await.map_err(|error| Failure::of_state(&error))?;
        self.write_plan(group, &plan, &snapshot).await
    }

    /// Asks the CA when to renew the certificate of a group, and writes that down.
    async fn ask_for_window(&self, group: &Group, snapshot: &Snapshot) -> Result<(), Failure> {
        let GroupState { certificates, plan, .. } = snapshot.group(&group.id);
        let Some((_, stored)) = certificates.first() else { return Ok(()) };
        let (issued, names) = (&stored.issued, group.names.join(" "));
        let Some(id) = &issued.id else { return Ok(()) };
        let asked = timeout(TO_ORDER, async {
            let orders = self.orders();
            let account = orders.account(snapshot).await?;
            orders.window(&account, id).await
        });
        let asked = asked.await.unwrap_or_else(|_| Err(Failure::new(Trouble::Unreachable, "the CA does not answer")));
        let now = self.clock.now();
        let of_this = plan.certificate.as_deref() == Some(id);
        let last = if of_this { plan.window.zip(plan.renew_at) } else { None };
        let (suggested, pause) = match asked {
            Ok(Some((window, pause))) => {
                // A moment that was chosen stays: chosen anew each time it would nearly always be an early one.
                let renew_at = match last {
                    Some((of, renew_at)) if of == window => renew_at,
                    Some(_) | None => {
                        let renew_at = issued.validity.renew_within(window, fastrand::f64());
                        info!(
                            "tls.acme: renews the certificate for {names} at {}, as the CA suggests",
                            renew_at.to_rfc3339()
                        );
                        renew_at.as_secs()
                    }
                };
                (Some((window, renew_at)), plan::pause_of_window(pause))
            }
            Ok(None) => (None, Duration::from_secs(24 * 3600)),
            Err(failure) => {
                debug!("tls.acme: when to renew the certificate for {names} is not known: {}", failure.told);
                (
                    last,
                    failure.said.unwrap_or_default().clamp(Duration::from_secs(3600), Duration::from_secs(24 * 3600)),
                )
            }
        };
        let plan = Plan {
            certificate: Some(id.clone()),
            window: suggested.map(|(window, _)| window),
            renew_at: suggested.map(|(_, renew_at)| renew_at),
            check_at: Some(now.as_secs() + i64::try_from(pause.as_secs()).unwrap_or(3600)),
            failures: plan.failures,
        };
        self.write_plan(group, &plan, snapshot).await
    }

    async fn write_plan(&self, group: &Group, plan: &Plan, snapshot: &Snapshot) -> Result<(), Failure> {
        self.state.put(&group.id, plan, snapshot).await.map(drop).map_err(|error| Failure::of_state(&error))
    }

    fn orders(&self) -> Orders<'_> {
        Orders { config: &self.config, client: &self.client, state: &self.state, challenges: &self.challenges }
    }

    /// Puts into use what the state has, and notes what is missing.
    fn put_into_use(&self, snapshot: &Snapshot) {
        let now = self.clock.now();
        let mut next = None::<Timestamp>;
        let mut missing = BTreeMap::new();
        for group in &self.groups {
            let GroupState { certificates, plan, .. } = snapshot.group(&group.id);
            if let Some((_, stored)) = certificates.first() {
                let at = renew_at(&stored.issued, &plan);
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            let usable = snapshot.usable_for(&group.id, &group.names, now);
            let has = |name: &String| usable.as_ref().is_some_and(|issued| issued.names.contains(name));
            let why = plan.failures.as_ref().map_or("it is being ordered", |failures| &failures.told);
            for name in group.names.iter().filter(|name| !has(name)) {
                missing.insert(name.clone(), why.to_owned());
            }
            if let Some(issued) = usable {
                self.install(group, issued);
            }
        }
        self.metrics.acme.renewal_at(next);
        self.metrics.acme.missing(missing.len());
        *self.missing.lock() = missing;
    }

    /// Puts a certificate into use, unless it is.
    fn install(&self, group: &Group, issued: Arc<Issued>) {
        let mut installed = self.installed.lock();
        if installed.get(&group.id).is_some_and(|last| Arc::ptr_eq(last, &issued)) {
            return;
        }
        let source = format!("tls.acme, {}", group.names.join(" "));
        match self.tls.install(&source, issued.chain.as_bytes(), issued.key.as_bytes()) {
            Ok(()) => {
                info!("{source}: uses the certificate that is valid until {}", issued.validity.until.to_rfc3339());
                installed.insert(group.id.clone(), issued);
            }
            Err(why) => self.tell_of_state(&why.to_string()),
        }
    }

    fn tell_of_state(&self, why: &str) {
        self.metrics.acme.failed_at(self.clock.now());
        if let Some(turn) = self.told.turn("state", self.clock.now().as_millis()) {
            warn!(
                "tls.acme: the state can't be used, and until it can nothing is ordered; what was read before is served: {why}{}",
                turn.in_words()
            );
        }
    }
}
