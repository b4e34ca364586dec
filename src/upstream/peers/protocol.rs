//! The fields by which peers know each other, and what they tell each other in them.
//!
//! All of them begin with `larder-peer-`. They count on the peers' own listener alone, and only behind a credential
//! that matches. Whoever asks removes them from what its client sent; whoever answers, from what the origin sent.
//!
//! * **Greeting.** A node sends a random number, with a proof that it knows the token. The peer returns its id, which
//!   is random for each process, with a proof of its own. The token itself is never sent, and a node that meets its own
//!   id knows which address is its own.
//! * **Question.** A request as the origin would get it, with a credential made of the token and the peer's id: it is
//!   of no use for any other process. It says which purges the asking node knows.
//! * **Answer.** What the origin would have answered, and a verdict on it. A response that is shared comes with the
//!   purges that were known when its fetch began, and with its tags.

use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::hmac;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use subtle::ConstantTimeEq;

use crate::base::wire::Decoder;
use crate::entry::VersionVector;
use crate::upstream::{NewStickyCookie, StickyCookies};

const PREFIX: &str = "larder-peer-";
const HELLO: HeaderName = HeaderName::from_static("larder-peer-hello");
const PROOF: HeaderName = HeaderName::from_static("larder-peer-proof");
const ID: HeaderName = HeaderName::from_static("larder-peer-id");
const CREDENTIAL: HeaderName = HeaderName::from_static("larder-peer-credential");
const KNOWN: HeaderName = HeaderName::from_static("larder-peer-known");
const PATIENCE: HeaderName = HeaderName::from_static("larder-peer-patience");
const LIMIT: HeaderName = HeaderName::from_static("larder-peer-limit");
const FINGERPRINT: HeaderName = HeaderName::from_static("larder-peer-fingerprint");
const PURGES: HeaderName = HeaderName::from_static("larder-peer-purges");
const SUBJECT: HeaderName = HeaderName::from_static("larder-peer-subject");
const STICKY: HeaderName = HeaderName::from_static("larder-peer-sticky");
const VERDICT: HeaderName = HeaderName::from_static("larder-peer-verdict");
const TAGS: HeaderName = HeaderName::from_static("larder-peer-tags");
const HELD_FOR: HeaderName = HeaderName::from_static("larder-peer-held-for");

/// The most bytes of the tags of an answer. A response with more is not given to peers.
const MAX_TAGS: usize = 512 << 10;

/// Tells what kind of answer a peer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It answers a greeting.
    Greeting,
    /// It waits for the origin.
    Waits,
    /// The response is shared.
    Shared,
    /// The response is the origin's to this request, and for its client alone.
    Own,
    /// There is no response: the asking node goes to the origin itself.
    Declined,
    /// The asking node did not show that it knows the token.
    Refused,
}

impl Verdict {
    const ALL: [Self; 6] = [Self::Greeting, Self::Waits, Self::Shared, Self::Own, Self::Declined, Self::Refused];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Waits => "waits",
            Self::Shared => "shared",
            Self::Own => "own",
            Self::Declined => "declined",
            Self::Refused => "refused",
        }
    }

    /// Reads the verdict of an answer.
    pub(super) fn of(answer: &HeaderMap) -> Option<Self> {
        let said = answer.get(VERDICT)?;
        Self::ALL.into_iter().find(|verdict| *said == verdict.as_str())
    }
}

/// The facts of a shared response that its fields do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerFacts {
    /// The purges that were known when its fetch began.
    pub(crate) version_vector: VersionVector,
    /// The tags that it can be purged by.
    pub(crate) tags: Vec<String>,
    /// The milliseconds since it came from the origin.
    pub(crate) held_for: i64,
}

/// The node that asks, and its client.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    /// The purges that it knows.
    pub(crate) known: VersionVector,
    /// Purges of which it tells, since this process answered with what they cover. What they look like is for higher
    /// rooms.
    pub(crate) purges: Option<String>,
    /// The hash of the key that it makes of the request, and of the rule's terms. Other settings make another.
    pub(crate) fingerprint: Option<u128>,
    /// The longest that it waits without a word.
    pub(crate) patience: Duration,
    /// The longest that it waits for the head in all; `None`: it does not say.
    pub(crate) limit: Option<Duration>,
    /// The subject of its client's certificate.
    pub(crate) subject: Option<HeaderValue>,
    /// The cookies of ours that its client has.
    pub(crate) sticky: Option<StickyCookies>,
    /// True if it is this process.
    pub(crate) is_own: bool,
}

/// A message on the peers' listener.
#[derive(Debug)]
pub(crate) enum Received {
    /// A greeting, and the fields of the answer to it.
    Greeting(HeaderMap),
    /// A question.
    Question(Box<Asker>),
    /// Its sender does not know the token.
    Refused,
}

/// The shared secret, and this process's own id.
pub(super) struct Secrets {
    key: hmac::Key,
    /// Random for each process.
    pub(super) id: String,
    /// The credential of whoever asks this process.
    own: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Makes the secrets of a process.
    pub(super) fn new(token: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
        let id = random();
        let own = sign(&key, &["question", &id]);
        Self { key, id, own }
    }

    /// Makes a greeting. Returns its random number, which the answer has to prove.
    pub(super) fn greeting(&self) -> (String, [(HeaderName, String); 2]) {
        let number = random();
        let proof = sign(&self.key, &["greeting", &number]);
        (number.clone(), [(HELLO, number), (PROOF, proof)])
    }

    /// Reads the answer to a greeting: the id of the peer, and the credential for questions to it. `None`: it does not
    /// know the token.
    pub(super) fn greeted(&self, number: &str, answer: &HeaderMap) -> Option<(String, HeaderValue)> {
        let id = answer.get(ID)?.to_str().ok()?;
        let proof = sign(&self.key, &["greeted", number, id]);
        if Verdict::of(answer) != Some(Verdict::Greeting) || !is_same(answer.get(PROOF), &proof) {
            return None;
        }
        let credential = HeaderValue::from_str(&sign(&self.key, &["question", id])).ok()?;
        Some((id.to_owned(), credential))
    }

    /// Reads a message, and removes the fields of peers from it.
    pub(super) fn receive(&self, fields: &mut HeaderMap) -> Received {
        let received = self.read(fields);
        remove_all(fields);
        received
    }

    fn read(&self, fields: &HeaderMap) -> Received {
        if let Some(number) = fields.get(HELLO).and_then(|number| number.to_str().ok()) {
            if !is_same(fields.get(PROOF), &sign(&self.key, &["greeting", number])) {
                return Received::Refused;
            }
            let mut answer = HeaderMap::new();
            write_verdict(&mut answer, Verdict::Greeting);
            let proof = sign(&self.key, &["greeted", number, &self.id]);
            for (name, value) in [(ID, &self.id), (PROOF, &proof)] {
                if let Ok(value) = HeaderValue::from_str(value) {
                    answer.insert(name, value);
                }
            }
            return Received::Greeting(answer);
        }
        if !is_same(fields.get(CREDENTIAL), &self.own) {
            return Received::Refused;
        }
        let known = fields.get(KNOWN).and_then(vector_of).unwrap_or_default();
        let millis = |name| fields.get(name)?.to_str().ok()?.parse().ok().map(Duration::from_millis);
        let (patience, limit) = (millis(PATIENCE).unwrap_or(Duration::from_secs(1)), millis(LIMIT));
        let fingerprint = fields.get(FINGERPRINT).and_then(|told| u128::from_str_radix(told.to_str().ok()?, 16).ok());
        let is_own = fields.get(ID).is_some_and(|id| *id == self.id);
        let purges = fields.get(PURGES).and_then(|purges| purges.to_str().ok()).map(str::to_owned);
        let subject = fields.get(SUBJECT).cloned();
        let sticky = fields.get(STICKY).map(StickyCookies::of_value);
        Received::Question(Box::new(Asker { known, purges, fingerprint, patience, limit, subject, sticky, is_own }))
    }
}

/// The part of a question that its request does not tell.
pub(super) struct Question<'a> {
    /// The id of the node.
    pub(super) id: &'a str,
    /// The credential for the peer.
    pub(super) credential: &'a HeaderValue,
    /// See [`Asker`].
    pub(super) known: &'a VersionVector,
    /// See [`Asker`].
    pub(super) purges: Option<&'a str>,
    /// See [`Asker`].
    pub(super) fingerprint: u128,
    /// See [`Asker`].
    pub(super) patience: Duration,
    /// See [`Asker`].
    pub(super) limit: Duration,
    /// See [`Asker`].
    pub(super) subject: Option<&'a HeaderValue>,
    /// See [`Asker`].
    pub(super) sticky: Option<&'a StickyCookies>,
}

/// Writes the fields of a question to those of its request, from which it removes what a client wrote by these names.
pub(super) fn write_question(fields: &mut HeaderMap, question: &Question<'_>) {
    let Question { id, credential, known, purges, fingerprint, patience, limit, subject, sticky } = question;
    remove_all(fields);
    fields.insert(CREDENTIAL, (*credential).clone());
    let texts = [
        (ID, Some((*id).to_owned())),
        (KNOWN, Some(text_of(known))),
        (PURGES, purges.map(str::to_owned)),
        (FINGERPRINT, Some(format!("{fingerprint:x}"))),
    ];
    for (name, text) in texts {
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            fields.insert(name, value);
        }
    }
    // Rounded up, so that the peer does not give up before this node does.
    let millis =
        |time: &Duration| HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_add(1));
    fields.insert(PATIENCE, millis(patience));
    fields.insert(LIMIT, millis(limit));
    if let Some(subject) = subject {
        fields.insert(SUBJECT, (*subject).clone());
    }
    if let Some(sticky) = sticky.and_then(StickyCookies::to_value) {
        fields.insert(STICKY, sticky);
    }
}

/// Writes a verdict to the fields of an answer, from which it removes what the origin may have sent by these names.
pub(crate) fn write_verdict(answer: &mut HeaderMap, verdict: Verdict) {
    remove_all(answer);
    answer.insert(VERDICT, HeaderValue::from_static(verdict.as_str()));
}

/// Writes to the fields of an answer for one client, behind the verdict, the cookie of ours that it is to get.
pub(crate) fn write_sticky(answer: &mut HeaderMap, cookie: &NewStickyCookie) {
    // The asking node adds what its client's scheme demands.
    if let Some(cookie) = cookie.to_value("http") {
        answer.insert(STICKY, cookie);
    }
}

/// Takes that cookie from the fields of such an answer, and all else of peers.
pub(super) fn take_sticky(answer: &mut HeaderMap) -> Option<NewStickyCookie> {
    let cookie = answer.get(STICKY).and_then(NewStickyCookie::of_value);
    remove_all(answer);
    cookie
}

/// Writes to the fields of a shared response, behind the verdict, what is told of it. Returns `false` if that is too
/// much.
pub(crate) fn write_facts(
    answer: &mut HeaderMap,
    version_vector: &VersionVector,
    tags: &[String],
    held_for: i64,
) -> bool {
    let mut told = String::new();
    for tag in tags {
        if !told.is_empty() {
            told.push(',');
        }
        put_word(&mut told, tag);
        if told.len() > MAX_TAGS {
            return false;
        }
    }
    let (Ok(known), Ok(told)) = (HeaderValue::from_str(&text_of(version_vector)), HeaderValue::from_str(&told)) else {
        return false;
    };
    answer.insert(KNOWN, known);
    answer.insert(TAGS, told);
    answer.insert(HELD_FOR, HeaderValue::from(held_for));
    true
}

/// Takes what is told of a shared response from its fields. `None`: it is not what peers write.
pub(super) fn take_facts(answer: &mut HeaderMap) -> Option<PeerFacts> {
    let version_vector = vector_of(answer.get(KNOWN)?)?;
    let told = answer.get(TAGS)?.to_str().ok()?;
    let tags = told.split(',').filter(|tag| !tag.is_empty()).map(word_of).collect::<Option<_>>()?;
    let held_for = answer.get(HELD_FOR)?.to_str().ok()?.parse().ok()?;
    remove_all(answer);
    Some(PeerFacts { version_vector, tags, held_for })
}

/// Removes every field of peers.
pub(super) fn remove_all(fields: &mut HeaderMap) {
    let ours: Vec<HeaderName> = fields.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in ours {
        fields.remove(name);
    }
}

/// Writes a word so that no separator and nothing that a field can't hold is in it.
pub(crate) fn put_word(text: &mut String, word: &str) {
    for byte in word.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b',' | b'%') => text.push(char::from(byte)),
            _ => drop(write!(text, "%{byte:02x}")),
        }
    }
}

/// Reads what [`put_word`] wrote.
pub(crate) fn word_of(told: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(told.len());
    let mut rest = told.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, others) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = others;
    }
    String::from_utf8(bytes).ok()
}

fn text_of(vector: &VersionVector) -> String {
    let mut bytes = Vec::with_capacity(64);
    vector.encode(&mut bytes);
    hex(&bytes)
}

fn vector_of(text: &HeaderValue) -> Option<VersionVector> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(byte).collect::<Option<_>>()?;
    let mut decoder = Decoder(&bytes);
    let vector = VersionVector::decode(&mut decoder).ok()?;
    decoder.0.is_empty().then_some(vector)
}

/// Returns a random number that nobody can foresee.
fn random() -> String {
    let mut bytes = fastrand::u128(..).to_le_bytes();
    // Without the system's randomness the number is still of this process alone.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    hex(&bytes)
}

/// Signs words with the token. The first says what the signature is for.
fn sign(key: &hmac::Key, words: &[&str]) -> String {
    let mut text = String::from("larder peers 1");
    for word in words {
        text.push('\n');
        text.push_str(word);
    }
    hex(hmac::sign(key, text.as_bytes()).as_ref())
}

/// Returns whether a field has the value, in a time that does not depend on where they differ.
fn is_same(told: Option<&HeaderValue>, expected: &str) -> bool {
    told.is_some_and(|told| bool::from(told.as_bytes().ct_eq(expected.as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_response_is_read_as_it_was_written() {
        let vector = VersionVector { complete_until: 7, recent: vec![(1, 9), (u64::MAX, 12)] };
        for tags in [&[][..], &["a", "b,c", "50 %", "größe", "\n"]] {
            let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
            let mut fields = HeaderMap::new();
            assert!(write_facts(&mut fields, &vector, &tags, 1234));
            assert_eq!(
                take_facts(&mut fields),
                Some(PeerFacts { version_vector: vector.clone(), tags, held_for: 1234 })
            );
            assert!(fields.is_empty(), "{fields:?}");
        }
        let many: Vec<String> = (0..1000).map(|n| format!("{n:0>1000}")).collect();
        assert!(!write_facts(&mut HeaderMap::new(), &vector, &many, 0), "too long for a field");
    }

    #[test]
    fn who_does_not_know_the_token_neither_asks_nor_is_asked() {
        let (here, there, stranger) = (Secrets::new("token"), Secrets::new("token"), Secrets::new("other"));
        let greet = |from: &Secrets, to: &Secrets| {
            let (number, greeting) = from.greeting();
            let mut fields = HeaderMap::new();
            for (name, value) in greeting {
                fields.insert(name, value.parse().expect("a value"));
            }
            match to.receive(&mut fields) {
                Received::Greeting(answer) => from.greeted(&number, &answer),
                _ => None,
            }
        };
        let (id, credential) = greet(&here, &there).expect("both know the token");
        assert_eq!(id, there.id);
        assert!(greet(&here, &stranger).is_none());
        assert!(greet(&stranger, &here).is_none());
        let ask = |to: &Secrets| {
            let mut fields = HeaderMap::new();
            fields.insert("larder-peer-tags", HeaderValue::from_static("of the client"));
            let question = Question {
                id: &here.id,
                credential: &credential,
                known: &VersionVector::default(),
                purges: None,
                fingerprint: 1,
                patience: Duration::from_secs(1),
                limit: Duration::from_secs(1),
                subject: None,
                sticky: None,
            };
            write_question(&mut fields, &question);
            assert!(!fields.contains_key(TAGS), "what a client writes by these names is not passed on");
            to.receive(&mut fields)
        };
        assert!(matches!(ask(&there), Received::Question(_)));
        assert!(matches!(ask(&here), Received::Refused), "a credential is for one process");
        assert!(matches!(there.receive(&mut HeaderMap::new()), Received::Refused));
    }

    #[test]
    fn an_answer_to_a_greeting_can_not_be_used_again() {
        let (here, there) = (Secrets::new("token"), Secrets::new("token"));
        let (_, greeting) = here.greeting();
        let mut fields = HeaderMap::new();
        for (name, value) in greeting {
            fields.insert(name, value.parse().expect("a value"));
        }
        let Received::Greeting(answer) = there.receive(&mut fields) else { panic!("it is a greeting") };
        let (other, _) = here.greeting();
        assert!(here.greeted(&other, &answer).is_none());
    }
}
