//! The kinds that things are counted by, and their names in `/metrics`.

/// The reason why a request was refused before it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unparsed {
    /// It is not HTTP/1.1.
    Malformed,
    /// Its head is larger than `server.max_header_size`, or has more fields than `server.max_headers`.
    HeadTooLarge,
    /// Its target is too long.
    TargetTooLong,
    /// It has both `Content-Length` and `Transfer-Encoding`.
    Framing,
    /// Its head did not arrive in time.
    HeadTimeout,
    /// The limit of connections was reached.
    TooManyConnections,
    /// Its connection should have begun with a PROXY header.
    ProxyHeader,
    /// The limit of requests of HTTP/2 was reached.
    TooManyRequests,
    /// A connection of HTTP/2 had too many frames that ask for nothing.
    Flood,
}

impl Unparsed {
    /// Every reason.
    pub(super) const ALL: [Self; 9] = [
        Self::Malformed,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::Framing,
        Self::HeadTimeout,
        Self::TooManyConnections,
        Self::ProxyHeader,
        Self::TooManyRequests,
        Self::Flood,
    ];

    /// Returns the name in `/metrics` and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::Framing => "framing",
            Self::HeadTimeout => "head-timeout",
            Self::TooManyConnections => "too-many-connections",
            Self::ProxyHeader => "proxy-header",
            Self::TooManyRequests => "too-many-requests",
            Self::Flood => "flood",
        }
    }
}

/// The outcome of a request to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginOutcome {
    /// A response head arrived.
    Answered,
    /// No connection could be made.
    ConnectFailed,
    /// No head arrived in time.
    TimedOut,
    /// The connection broke, or the answer can't be used.
    Broken,
    /// The request was not sent whole: its client ended early, or there was no room for its content. Says nothing of the
    /// origin.
    NotSent,
}

impl OriginOutcome {
    /// Every outcome, with its name.
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Answered, "answered"),
        (Self::ConnectFailed, "connect-failed"),
        (Self::TimedOut, "timed-out"),
        (Self::Broken, "broken"),
        (Self::NotSent, "not-sent"),
    ];
}

/// An operation of the durable tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableOp {
    /// Read an object.
    Get,
    /// Write an object.
    Put,
    /// Delete an object.
    Delete,
}

impl DurableOp {
    /// Number of operations.
    pub const COUNT: usize = 3;
}

/// The reason why a response was not written to the durable tier although it should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The queue was full.
    QueueFull,
    /// The tier accepts other responses, but not this one.
    NotTaken,
    /// There was no room, even after evictions.
    NoRoom,
    /// Its upload, made while it came in, failed, or there were too many uploads.
    Upload,
}

/// Every reason for a lost response, with its name.
pub(super) const LOST: [(Lost, &str); 4] = [
    (Lost::QueueFull, "queue-full"),
    (Lost::NotTaken, "not-taken"),
    (Lost::NoRoom, "no-room"),
    (Lost::Upload, "upload"),
];

/// The outcome of an operation of the durable tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableOutcome {
    /// Done; a read found its object.
    Ok,
    /// There is no such object.
    NotFound,
    /// The tier could not be reached, or refused.
    Error,
    /// It took longer than its deadline.
    TimedOut,
    /// The object is not a valid one of Larder's: truncated, corrupt, foreign, or of an unknown version.
    Unreadable,
    /// It was given up: the queue was full, or the tier did not take the object.
    Dropped,
}

/// The class that a service charges a request by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Reads an object.
    Read,
    /// Writes one, or a part of one.
    Write,
    /// Lists names.
    List,
    /// Deletes an object.
    Delete,
}

/// The purpose of a request to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPurpose {
    /// Looks a response up.
    LookUp,
    /// Writes responses.
    Packs,
    /// Writes a separate body.
    Bodies,
    /// Writes purges.
    Purges,
    /// Finds out what other processes purged and stored.
    Journal,
    /// Reads or writes a snapshot.
    Snapshots,
    /// Frees space.
    Reclaiming,
    /// Finds out whether the place works.
    Probe,
    /// Keeps certificates, and what is needed to get them.
    Certificates,
}

/// Every purpose of requests, with its name.
pub(super) const PURPOSES: [(RequestPurpose, &str); 9] = [
    (RequestPurpose::LookUp, "look-up"),
    (RequestPurpose::Packs, "packs"),
    (RequestPurpose::Bodies, "bodies"),
    (RequestPurpose::Purges, "purges"),
    (RequestPurpose::Journal, "journal"),
    (RequestPurpose::Snapshots, "snapshots"),
    (RequestPurpose::Reclaiming, "reclaiming"),
    (RequestPurpose::Probe, "probe"),
    (RequestPurpose::Certificates, "certificates"),
];

/// The prices of a million requests, in any currency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// The price of writes and listings.
    pub write: f64,
    /// The price of reads.
    pub read: f64,
}

impl Eq for Prices {}

impl Default for Prices {
    fn default() -> Self {
        Self { write: 5.0, read: 0.4 }
    }
}

/// Every class of requests, with its name.
pub(super) const CLASSES: [(RequestClass, &str); 4] = [
    (RequestClass::Read, "read"),
    (RequestClass::Write, "write"),
    (RequestClass::List, "list"),
    (RequestClass::Delete, "delete"),
];

/// The reason why a request to the durable tier was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// A read: the index shows that there is no object.
    Index,
    /// A write: the response is fresh for too short a time.
    MinLifetime,
    /// A write: the response is larger than the tier keeps.
    Size,
    /// A write: the response's rule forbids it.
    Rule,
    /// A write: the response was not used often enough yet.
    AfterHits,
    /// A write: the budget of the month is spent.
    Budget,
    /// A read or a write: the tier is known to be down.
    Breaker,
}

/// Every reason for a saved request, with its name.
pub(super) const SAVED: [(Saved, &str); 7] = [
    (Saved::Index, "index"),
    (Saved::MinLifetime, "min-lifetime"),
    (Saved::Size, "size"),
    (Saved::Rule, "rule"),
    (Saved::AfterHits, "after-hits"),
    (Saved::Budget, "budget"),
    (Saved::Breaker, "breaker"),
];

/// Every operation, with its name.
pub(super) const OPS: [(DurableOp, &str); 3] =
    [(DurableOp::Get, "get"), (DurableOp::Put, "put"), (DurableOp::Delete, "delete")];
/// Every outcome of an operation, with its name.
pub(super) const OUTCOMES: [(DurableOutcome, &str); 6] = [
    (DurableOutcome::Ok, "ok"),
    (DurableOutcome::NotFound, "not-found"),
    (DurableOutcome::Error, "error"),
    (DurableOutcome::TimedOut, "timed-out"),
    (DurableOutcome::Unreadable, "unreadable"),
    (DurableOutcome::Dropped, "dropped"),
];
