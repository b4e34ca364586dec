//! `[tls.acme]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{FLAG, List, Time, Words};
use crate::config::values::{ACME_DIRECTORY, ACME_STATE, DOMAINS, EMAIL, FILE, PROFILE};
use crate::tls::acme::ChallengeChoice;

pub(super) static SECTION: Section = Section {
    name: "tls.acme",
    about: "Certificates that renew themselves (ACME). docs/acme.md leads through it.",
    keys: &[
        Key {
            name: "domains",
            field: &Of {
                at: |d| &mut d.config.tls.acme.domains,
                kind: List { of: "certificates, each the names that it is for", item: DOMAINS },
            },
            does: "Gets a certificate for each item, and renews it. Names with spaces between them, such as \
                   \"shop.example www.shop.example\", share one. Empty: ACME is off.",
        },
        Key {
            name: "accept_terms",
            field: &Of { at: |d| &mut d.config.tls.acme.accept_terms, kind: FLAG },
            does: "Agrees to the terms of service of the CA (certificate authority). Without that there are no \
                   certificates.",
        },
        Key {
            name: "email",
            field: &Of { at: |d| &mut d.config.tls.acme.email, kind: EMAIL },
            does: "Tells the CA how to reach you; empty: it is not told.",
        },
        Key {
            name: "directory",
            field: &Of { at: |d| &mut d.config.tls.acme.directory, kind: ACME_DIRECTORY },
            does: "Names the CA by the URL of its directory. Begin with that for tests: \
                   \"https://acme-staging-v02.api.letsencrypt.org/directory\".",
        },
        Key {
            name: "state",
            field: &Of { at: |d| &mut d.config.tls.acme.state, kind: ACME_STATE },
            does: "Keeps the account, the certificates and their private keys in this directory, or in the bucket of \
                   durable.url: \"bucket\". Empty: in the bucket, if there is one. Larders with one state share \
                   certificates.",
        },
        Key {
            name: "challenge",
            field: &Of {
                at: |d| &mut d.config.tls.acme.challenge,
                kind: Words(&[
                    ("auto", ChallengeChoice::Auto),
                    ("http-01", ChallengeChoice::Http01),
                    ("tls-alpn-01", ChallengeChoice::TlsAlpn01),
                ]),
            },
            does: "Chooses the door at which the CA checks a name: port 80 (\"http-01\") or port 443 (\"tls-alpn-01\"). \
                   \"auto\" chooses by server.listen, and tries the other one after a failure. Both are always \
                   answered.",
        },
        Key {
            name: "account_key",
            field: &Of { at: |d| &mut d.config.tls.acme.account_key, kind: FILE },
            does: "Uses the account with the private key in this PEM file, on the curve P-256. Empty: an account is made \
                   once, and kept in the state.",
        },
        Key {
            name: "ca_file",
            field: &Of { at: |d| &mut d.config.tls.acme.ca_file, kind: FILE },
            does: "Trusts only the authorities in this PEM file for the connection to the directory, such as that of a \
                   CA of your own. Empty: those of this machine.",
        },
        Key {
            name: "profile",
            field: &Of { at: |d| &mut d.config.tls.acme.profile, kind: PROFILE },
            does: "Asks the CA for certificates of this profile, such as \"shortlived\"; empty: its default.",
        },
        Key {
            name: "poll_interval",
            field: &Of { at: |d| &mut d.config.tls.acme.poll_interval, kind: Time::AboveZero },
            does: "Looks at the state this often: so soon a certificate is used that another Larder got. A claim to order is \
                   taken over after a third more.",
        },
    ],
};
