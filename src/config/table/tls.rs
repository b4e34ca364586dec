//! `[tls]` and `[[tls.certificate]]`

use crate::config::key::{InCertificate, Key, Of, Section};
use crate::config::kinds::{OrEmpty, Time, Words};
use crate::config::values::{FILE, SUBJECT_FIELD};
use crate::tls::{CertificateFiles, MinVersion, UnknownSni};

pub(super) static SECTION: Section = Section {
    name: "tls",
    about: "TLS on the listeners that begin with https:.",
    keys: &[
        Key {
            name: "min_version",
            field: &Of {
                at: |d| &mut d.config.tls.min_version,
                kind: Words(&[("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)]),
            },
            does: "Refuses clients that speak only older versions of TLS.",
        },
        Key {
            name: "unknown_sni",
            field: &Of {
                at: |d| &mut d.config.tls.unknown_sni,
                kind: Words(&[("default", UnknownSni::Default), ("refuse", UnknownSni::Refuse)]),
            },
            does: "Decides about a client that asks for a name of which there is no certificate. \"default\": it gets \
                   the first certificate; \"refuse\": it gets the alert unrecognized_name. A client that names none \
                   gets the first.",
        },
        Key {
            name: "client_ca",
            field: &Of { at: |d| &mut d.config.tls.client_ca, kind: FILE },
            does: "Demands of clients a certificate that one of the authorities in this PEM file has issued. Empty: \
                   clients need none.",
        },
        Key {
            name: "client_subject_field",
            field: &Of { at: |d| &mut d.config.tls.client_subject_field, kind: OrEmpty(SUBJECT_FIELD) },
            does: "Tells the application the subject of the client's certificate in this request field, such as \
                   \"X-Client-Subject\", which becomes part of every cache key. Removes the field from all other \
                   requests.",
        },
        Key {
            name: "handshake_timeout",
            field: &Of { at: |d| &mut d.config.tls.handshake_timeout, kind: Time::AboveZero },
            does: "Limits the time from the connection to the end of the handshake.",
        },
        Key {
            name: "ticket_key",
            field: &Of { at: |d| &mut d.config.tls.ticket_key, kind: FILE },
            does: "Keeps the secret of session tickets in this file, which Larder makes and replaces, so that clients \
                   resume their sessions after a restart. Empty: only until the stop. There are no tickets with \
                   tls.client_ca.",
        },
    ],
};

/// The name of the list of certificates.
pub(in crate::config) const LIST: &str = "tls.certificate";

pub(in crate::config) const ABOUT: &str = "A certificate and its key, one table for each. A client gets the one for the name that it asks for; the first is \
     the default.";

/// The keys of a `[[tls.certificate]]`, all of which it must have.
pub(in crate::config) static CERTIFICATE: &[Key<CertificateFiles>] = &[
    Key {
        name: "chain",
        field: &InCertificate { at: |files| &mut files.chain, kind: FILE },
        does: "Reads the certificate from this PEM file, and behind it those of its issuers.",
    },
    Key {
        name: "key",
        field: &InCertificate { at: |files| &mut files.key, kind: FILE },
        does: "Reads the private key from this PEM file.",
    },
];
