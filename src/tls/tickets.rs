//! Session tickets (RFC 8446 §4.6.1, RFC 5077): what a client keeps of a session, to resume it with any worker.
//!
//! A ticket is encrypted with a key that only its period has. The secret of a period is made from that of the one before
//! by HKDF, which can't be undone: who learns today's secret reads no ticket of yesterday. With a file the secrets go on
//! after a restart, and several machines that begin with copies of one file take each other's tickets. The file never
//! holds a secret older than the previous period's.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use parking_lot::RwLock;
use rustls::server::ProducesTickets;
use tracing::{info, warn};

use super::TlsError;
use super::files;
use crate::base::Clock;

/// The time that one key encrypts new tickets for. A ticket is accepted in its own period and the next.
const PERIOD: i64 = 6 * 60 * 60;

/// The time that clients are told to keep a ticket for: each is accepted for at least so long.
const LIFETIME: u32 = 6 * 60 * 60;

/// The most periods that secrets are made for one after the other: more than a hundred years. A file that is further
/// behind, or a clock that is further ahead, gets a new secret.
const MAX_STEPS: u64 = 200_000;

/// The most periods that the clock may go back. Further back, the secrets begin anew.
const MAX_AHEAD: u64 = 4;

/// The first word of the file, and its version.
const MAGIC: &str = "larder-ticket-key-1";

const SECRET: usize = 32;

/// Bytes of a ticket before its ciphertext: the number of its period, and the nonce.
const HEAD: usize = 8 + NONCE_LEN;

type Secret = [u8; SECRET];

/// Makes and reads the tickets of all workers.
pub(super) struct Tickets {
    clock: Clock,
    ring: RwLock<Ring>,
    /// The file of the secret; `None`: each start has a new one.
    file: Option<PathBuf>,
}

/// The keys of three periods.
struct Ring {
    /// The secret of the previous period.
    before: Secret,
    /// The number of the present period.
    period: u64,
    /// The keys of the previous period, the present and the next, which machines whose clocks are ahead use already.
    keys: [LessSafeKey; 3],
    /// True if the file has an older secret.
    is_unsaved: bool,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Tickets {
    /// Opens the file, makes it if there is none, or, without a file, takes a random secret.
    pub(super) fn open(file: &Path, clock: Clock) -> Result<Self, TlsError> {
        let now = period_of(&clock);
        if file.as_os_str().is_empty() {
            return Ok(Self { clock, ring: RwLock::new(Ring::at(now - 1, random()?, now)?), file: None });
        }
        let failed = |why: String| TlsError(format!("{} (tls.ticket_key): {why}", file.display()));
        let (first, secret) = match files::read_text(file) {
            Ok(text) => {
                let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
                if mode & 0o077 != 0 {
                    return Err(failed(
                        "other users may read this secret; take that right away: chmod 600, and delete it if they may have read it".into(),
                    ));
                }
                parse(&text).ok_or_else(|| {
                    failed(
                        "it is no file that Larder wrote; delete it, and Larder makes a new one, or name another"
                            .into(),
                    )
                })?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (now - 1, random()?),
            Err(error) => {
                return Err(failed(format!("it can't be read: {error}; let Larder's user read and write it")));
            }
        };
        // Whoever wrote a number so far ahead had a wrong clock. Its secret would be used for too long.
        let (first, secret) = if first > now + MAX_AHEAD { (now - 1, random()?) } else { (first, secret) };
        let ring = Ring::at(first, secret, now.max(first + 1))?;
        let this = Self { clock, ring: RwLock::new(Ring { is_unsaved: true, ..ring }), file: Some(file.to_owned()) };
        if let Err(error) = this.save() {
            if !file.exists() {
                return Err(failed(format!(
                    "it can't be written: {error}; make its directory, and let Larder's user write there"
                )));
            }
            warn!(
                "{} (tls.ticket_key): it can't be written: {error}; who reads it can read all sessions of TLS 1.2 that were resumed since it was made; let Larder's user write it and its directory",
                file.display()
            );
        }
        Ok(this)
    }

    /// Moves to the present period, and writes the file if it has an older secret. Waits for the disk.
    pub(super) fn keep(&self) {
        self.turn();
        if let Err(error) = self.save()
            && let Some(file) = &self.file
        {
            // The warning of the start says what to do.
            info!("{} (tls.ticket_key): it can't be written: {error}", file.display());
        }
    }

    /// Moves to the present period.
    fn turn(&self) {
        let now = period_of(&self.clock);
        let is_due = |ring: &Ring| now > ring.period || now + MAX_AHEAD < ring.period;
        if !is_due(&self.ring.read()) {
            return;
        }
        let mut ring = self.ring.write();
        // Of several threads one has been first.
        if is_due(&ring)
            && let Ok(next) = Ring::at(ring.period - 1, ring.before, now)
        {
            *ring = next;
        }
    }

    /// Writes the file: whole or not at all, and for its owner alone.
    fn save(&self) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (period, before) = {
            let mut ring = self.ring.write();
            if !std::mem::take(&mut ring.is_unsaved) {
                return Ok(());
            }
            (ring.period - 1, ring.before)
        };
        let mut text = format!("{MAGIC} {period} ");
        for byte in before {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{:08x}", fastrand::u32(..)));
        let new = PathBuf::from(name);
        let written =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut to| {
                to.write_all(text.as_bytes())?;
                to.sync_all()?;
                std::fs::rename(&new, file)
            });
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written
    }
}

impl Ring {
    /// Makes the keys around `period`, from the secret of the earlier period `first`. A period too far from it gets a
    /// new secret.
    fn at(first: u64, mut secret: Secret, period: u64) -> Result<Self, TlsError> {
        let before = period.saturating_sub(1);
        match before.checked_sub(first) {
            Some(steps) if steps <= MAX_STEPS => (0..steps).for_each(|_| secret = next(&secret)),
            // The clock is further ahead than any is, or was set back.
            Some(_) | None => secret = random()?,
        }
        let (present, after) = (next(&secret), next(&next(&secret)));
        let key = |secret: &Secret| {
            let unbound = UnboundKey::new(&AES_256_GCM, &expand(secret, b"larder ticket key"));
            unbound.map(LessSafeKey::new).map_err(|_| TlsError("tls: the keys of tickets can't be made".into()))
        };
        Ok(Self {
            before: secret,
            period: before + 1,
            keys: [key(&secret)?, key(&present)?, key(&after)?],
            is_unsaved: true,
        })
    }

    /// Returns the key of a period, if it is one of the three.
    fn key(&self, period: u64) -> Option<&LessSafeKey> {
        let place = (period + 1).checked_sub(self.period)?;
        self.keys.get(usize::try_from(place).ok()?)
    }
}

/// Returns the secret of the period behind that of `secret`.
fn next(secret: &Secret) -> Secret {
    expand(secret, b"larder next period")
}

fn expand(secret: &Secret, purpose: &[u8]) -> Secret {
    let mut out = [0; SECRET];
    let info = [purpose];
    let prk = Prk::new_less_safe(HKDF_SHA256, secret);
    // Neither fails with 32 bytes, the length of the hash. A zeroed key must not be used all the same.
    let filled = prk.expand(&info, HKDF_SHA256).and_then(|okm| okm.fill(&mut out));
    assert!(filled.is_ok(), "HKDF gives 32 bytes");
    out
}

fn random() -> Result<Secret, TlsError> {
    let mut secret = [0; SECRET];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| TlsError("tls: the system gives no random bytes".into()))?;
    Ok(secret)
}

fn period_of(clock: &Clock) -> u64 {
    u64::try_from(clock.now().as_secs() / PERIOD).unwrap_or(0).max(1)
}

/// Reads the file: the number of a period, and its secret.
fn parse(text: &str) -> Option<(u64, Secret)> {
    let mut words = text.split_ascii_whitespace();
    let (MAGIC, period, digits, None) = (words.next()?, words.next()?, words.next()?, words.next()) else {
        return None;
    };
    let mut secret = [0; SECRET];
    if digits.len() != 2 * SECRET || !digits.is_ascii() {
        return None;
    }
    for (n, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).ok()?;
    }
    Some((period.parse().ok().filter(|period| *period < u64::MAX / 2)?, secret))
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.turn();
        let ring = self.ring.read();
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(HEAD + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&ring.period.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let aad = Aad::from(ring.period.to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = ring.keys[1].seal_in_place_separate_tag(nonce, aad, &mut ticket[HEAD..]).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.turn();
        let (period, rest) = ticket.split_first_chunk::<8>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let ring = self.ring.read();
        let key = ring.key(u64::from_be_bytes(*period))?;
        let mut plain = sealed.to_vec();
        let length =
            key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(*period), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}
