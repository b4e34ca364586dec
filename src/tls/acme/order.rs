//! One order, from the account to the certificate (RFC 8555 §7).
//!
//! Writes what would be lost if the process ended before the step that needs it: the account's key before it is used
//! again, the key of a certificate before the CA signs it, challenges before the CA is told. So an order that was interrupted
//! is gone on with, by whichever process comes next.

use std::path::Path;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, Key,
    NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tracing::{debug, info, warn};

use super::super::files;
use super::certificate::{self, Issued};
use super::challenges::Challenges;
use super::client::CaClient;
use super::config::Config;
use super::plan::{Trouble, Window};
use super::problem::Failure;
use super::records;
use super::state::{Snapshot, State};

/// The longest that the CA takes to validate the names, and to issue the certificate.
const TO_VALIDATE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(120));

/// Places orders.
#[derive(Clone, Copy)]
pub(super) struct Orders<'a> {
    pub(super) config: &'a Config,
    pub(super) client: &'a CaClient,
    pub(super) state: &'a State,
    pub(super) challenges: &'a Challenges,
}

/// The wishes for one order.
#[derive(Clone, Debug)]
pub(super) struct Wish<'a> {
    pub(super) group: &'a str,
    pub(super) names: &'a [String],
    /// The challenge that is asked for, if the CA has it.
    pub(super) challenge: ChallengeType,
    /// The certificate that is replaced, by the CA's name, with the URL of its account.
    pub(super) replaces: Option<(String, String)>,
}

impl<'a> Orders<'a> {
    fn failure(&self, error: &instant_acme::Error) -> Failure {
        Failure::of(error, self.client.take_said())
    }

    /// Returns the account, and makes one if there is none.
    pub(super) async fn account(&self, snapshot: &Snapshot) -> Result<Account, Failure> {
        let builder = || Account::builder_with_http(Box::new(self.client.clone()));
        let email = &self.config.email;
        let contact = if email.is_empty() { Vec::new() } else { vec![format!("mailto:{email}")] };
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        if !self.config.account_key.as_os_str().is_empty() {
            let key = account_key(&self.config.account_key).map_err(|why| Failure::new(Trouble::State, why))?;
            let made = builder().create_from_key(key, self.config.directory.clone()).await;
            let (account, _) = made.map_err(|error| self.failure(&error))?;
            if !contact.is_empty() {
                account.update_contacts(&contact).await.map_err(|error| self.failure(&error))?;
            }
            return Ok(account);
        }
        if let Some((name, stored)) = &snapshot.account {
            let credentials: AccountCredentials =
                serde_json::from_value(stored.credentials.clone()).map_err(|error| {
                    Failure::new(Trouble::State, format!("the account in {name} can't be read: {error}"))
                })?;
            let account = builder().from_credentials(credentials).await.map_err(|error| self.failure(&error))?;
            if stored.email != *email {
                account.update_contacts(&contact).await.map_err(|error| self.failure(&error))?;
                let changed = records::Account { credentials: stored.credentials.clone(), email: email.clone() };
                self.state.put_account(&changed, snapshot).await.map_err(|error| Failure::of_state(&error))?;
                self.state.delete(name).await;
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let made = builder().create(&new, self.config.directory.clone(), None).await;
        let (account, credentials) = made.map_err(|error| self.failure(&error))?;
        let credentials = serde_json::to_value(&credentials)
            .map_err(|error| Failure::new(Trouble::State, format!("the account can't be written: {error}")))?;
        let record = records::Account { credentials, email: email.clone() };
        self.state.put_account(&record, snapshot).await.map_err(|error| Failure::of_state(&error))?;
        info!("tls.acme: made the account {} at {}", account.id(), self.config.directory);
        Ok(account)
    }

    /// Gets a certificate. An order that was begun before is gone on with.
    pub(super) async fn obtain(
        &self,
        account: &Account,
        wish: &Wish<'_>,
        snapshot: &Snapshot,
    ) -> Result<records::Certificate, Failure> {
        let (mut order, key, name) = match self.begun(account, wish, snapshot).await? {
            Some(begun) => begun,
            None => self.begin(account, wish, snapshot).await?,
        };
        let obtained = self.carry_through(&mut order, wish, &key).await.and_then(|chain| {
            let issued = Issued::read(&chain, &key).and_then(|issued| {
                if issued.is_for(wish.names) { Ok(()) } else { Err("it is for other names".to_owned()) }
            });
            match issued {
                Ok(()) => Ok(chain),
                Err(why) => Err(Failure::new(Trouble::Refused, format!("the CA's certificate can't be used: {why}"))),
            }
        });
        match obtained {
            Ok(chain) => {
                let record = records::Certificate { chain, key, account: account.id().to_owned() };
                // Until it is written the order stays, so that a process that ends here loses nothing.
                self.state.put(wish.group, &record, snapshot).await.map_err(|error| Failure::of_state(&error))?;
                self.state.delete(&name).await;
                Ok(record)
            }
            Err(failure) => {
                // An order that the CA refuses once it refuses for ever.
                if failure.trouble == Trouble::Refused {
                    self.state.delete(&name).await;
                }
                Err(failure)
            }
        }
    }

    /// Finds the order that was begun before, if the CA still knows it and it can still succeed.
    async fn begun(
        &self,
        account: &Account,
        wish: &Wish<'_>,
        snapshot: &Snapshot,
    ) -> Result<Option<(Order, String, String)>, Failure> {
        let Some((name, begun)) = snapshot.group(wish.group).order else { return Ok(None) };
        if begun.account != account.id() {
            self.state.delete(&name).await;
            return Ok(None);
        }
        match account.order(begun.url.clone()).await {
            Ok(mut order) => {
                if order.state().status == OrderStatus::Invalid {
                    self.state.delete(&name).await;
                    return Ok(None);
                }
                info!("tls.acme: goes on with the order for {} that was begun before", wish.names.join(" "));
                Ok(Some((order, begun.key.clone(), name)))
            }
            Err(error) => {
                let failure = self.failure(&error);
                if failure.trouble == Trouble::Refused {
                    debug!("tls.acme: the CA does not know the order in {name} any more");
                    self.state.delete(&name).await;
                    return Ok(None);
                }
                Err(failure)
            }
        }
    }

    /// Places a new order. Returns it with the key of its certificate, and the name of its record.
    async fn begin(
        &self,
        account: &Account,
        wish: &Wish<'_>,
        snapshot: &Snapshot,
    ) -> Result<(Order, String, String), Failure> {
        let identifiers: Vec<Identifier> = wish.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
        let plain = || match self.config.profile.as_str() {
            "" => NewOrder::new(&identifiers),
            profile => NewOrder::new(&identifiers).profile(profile),
        };
        // Only the account that ordered a certificate may replace it (RFC 9773 §5).
        let replaced = wish.replaces.as_ref().filter(|(_, of)| of == account.id()).and_then(|(id, _)| identifier(id));
        let placed = match replaced {
            Some(replaced) => match account.new_order(&plain().replaces(replaced)).await {
                Ok(order) => Ok(order),
                Err(instant_acme::Error::Unsupported(_)) => account.new_order(&plain()).await,
                Err(error) => {
                    let failure = self.failure(&error);
                    if !failure.is_no_replacement {
                        return Err(failure);
                    }
                    debug!("tls.acme: orders {} anew: {}", wish.names.join(" "), failure.told);
                    account.new_order(&plain()).await
                }
            },
            None => account.new_order(&plain()).await,
        };
        let order = placed.map_err(|error| self.failure(&error))?;
        let key = certificate::new_key().map_err(|why| Failure::new(Trouble::State, why))?;
        let record = records::Order { url: order.url().to_owned(), key: key.clone(), account: account.id().to_owned() };
        let name = self.state.put(wish.group, &record, snapshot).await.map_err(|error| Failure::of_state(&error))?;
        Ok((order, key, name))
    }

    /// Takes an order from where it is to its certificate. Returns the chain, as PEM.
    async fn carry_through(&self, order: &mut Order, wish: &Wish<'_>, key: &str) -> Result<String, Failure> {
        if order.state().status == OrderStatus::Pending {
            let mut pending = Vec::new();
            let validated = self.validate(order, wish, &mut pending).await;
            for answering in pending {
                self.state.end_challenge(&answering.pending).await;
            }
            validated?;
        }
        if order.state().status == OrderStatus::Ready {
            let request = certificate::request(wish.names, key).map_err(|why| Failure::new(Trouble::State, why))?;
            order.finalize_csr(&request).await.map_err(|error| self.failure(&error))?;
        }
        if order.state().status == OrderStatus::Valid {
            let chain = order.certificate().await.map_err(|error| self.failure(&error))?;
            return chain
                .ok_or_else(|| Failure::new(Trouble::Unreachable, "the CA has no certificate for the order yet"));
        }
        order.poll_certificate(&TO_VALIDATE).await.map_err(|error| self.failure(&error))
    }

    /// Answers the challenges of an order, and waits for the CA's decision. `answered` gets the challenges.
    async fn validate(
        &self,
        order: &mut Order,
        wish: &Wish<'_>,
        answered: &mut Vec<Answering<'a>>,
    ) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.failure(&error))?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // Validated for an earlier order.
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Invalid
                | AuthorizationStatus::Revoked
                | AuthorizationStatus::Expired
                | AuthorizationStatus::Deactivated => break,
            }
            let name = authorization.identifier().to_string();
            let offered: Vec<ChallengeType> = authorization.challenges.iter().map(|one| one.r#type.clone()).collect();
            let kind = [wish.challenge.clone(), ChallengeType::Http01, ChallengeType::TlsAlpn01]
                .into_iter()
                .find(|kind| offered.contains(kind))
                .ok_or_else(|| {
                    let told =
                        format!("the CA offers neither http-01 nor tls-alpn-01 for {name}, and Larder does no other");
                    Failure::new(Trouble::Refused, told)
                })?;
            let Some(mut challenge) = authorization.challenge(kind) else { continue };
            let pending = records::Pending { since: self.state.now(), name, token: challenge.token.clone() };
            let authorization = challenge.key_authorization();
            answered.push(Answering::begin(self.challenges, pending.clone(), authorization.as_str()));
            self.state
                .put_challenge(&pending, authorization.as_str())
                .await
                .map_err(|error| Failure::of_state(&error))?;
            challenge.set_ready().await.map_err(|error| self.failure(&error))?;
        }
        match order.poll_ready(&TO_VALIDATE).await {
            Ok(OrderStatus::Invalid) => Err(self.why_invalid(order, None).await),
            Ok(_) => Ok(()),
            Err(error) => {
                let failure = self.failure(&error);
                // The order says little; the challenge says why.
                if failure.trouble == Trouble::Refused {
                    Err(self.why_invalid(order, Some(failure)).await)
                } else {
                    Err(failure)
                }
            }
        }
    }

    /// Returns what the CA says of the first challenge that failed.
    async fn why_invalid(&self, order: &mut Order, otherwise: Option<Failure>) -> Failure {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                continue;
            }
            let name = authorization.identifier().to_string();
            for challenge in &authorization.challenges {
                if let Some(problem) = &challenge.error {
                    return Failure::of_problem(problem, Some((&name, &challenge.r#type)));
                }
            }
        }
        otherwise
            .unwrap_or_else(|| Failure::new(Trouble::Refused, "the CA has refused the order, and does not say why"))
    }

    /// Asks the CA when to renew a certificate (RFC 9773). `None`: it does not suggest anything.
    pub(super) async fn window(&self, account: &Account, id: &str) -> Result<Option<(Window, Duration)>, Failure> {
        let Some(identifier) = identifier(id) else { return Ok(None) };
        match account.renewal_info(&identifier).await {
            Ok((info, pause)) => {
                let window = info.suggested_window;
                if let Some(url) = info.explanation_url {
                    warn!("tls.acme: the CA explains when to renew a certificate at {}", super::problem::clean(&url));
                }
                Ok(Some((Window { start: window.start.unix_timestamp(), end: window.end.unix_timestamp() }, pause)))
            }
            Err(instant_acme::Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(self.failure(&error)),
        }
    }
}

/// A challenge that is answered until this is dropped.
struct Answering<'a> {
    challenges: &'a Challenges,
    pending: records::Pending,
}

impl<'a> Answering<'a> {
    fn begin(challenges: &'a Challenges, pending: records::Pending, authorization: &str) -> Self {
        challenges.begin(pending.clone(), authorization);
        Self { challenges, pending }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.challenges.end(&self.pending);
    }
}

/// Takes the CA's name of a certificate apart.
fn identifier(id: &str) -> Option<CertificateIdentifier<'_>> {
    let (key, serial) = id.split_once('.')?;
    Some(CertificateIdentifier { authority_key_identifier: key.into(), serial: serial.into() })
}

/// Reads the key of the account.
pub(super) fn account_key(path: &Path) -> Result<(Key, PrivateKeyDer<'static>), String> {
    let told = |why: String| {
        format!(
            "tls.acme.account_key: {} {why}; make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {}",
            path.display(),
            path.display()
        )
    };
    let bytes = files::read_text(path).map_err(|error| told(format!("can't be read: {error}")))?;
    let der = PrivateKeyDer::from_pem_slice(bytes.as_bytes())
        .map_err(|error| told(format!("is no private key as PEM: {error}")))?;
    let PrivateKeyDer::Pkcs8(pkcs8) = &der else { return Err(told("is no key as PKCS #8 (BEGIN PRIVATE KEY)".into())) };
    let key = Key::from_pkcs8_der(pkcs8.clone_key()).map_err(|_| told("is no key on the curve P-256".into()))?;
    Ok((key, der))
}
