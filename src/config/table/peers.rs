//! `[peers]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{List, OrEmpty, Secret, Time};
use crate::config::values::{FILE, PEER, PEERS_LISTEN, SERVER_NAME, TOKEN};

pub(super) static SECTION: Section = Section {
    name: "peers",
    about: "Other Larders, each of which fetches a share of the URLs for all of them: docs/peers.md.",
    keys: &[
        Key {
            name: "listen",
            field: &Of { at: |d| &mut d.config.peers_listen, kind: PEERS_LISTEN },
            does: "Accepts the other nodes on this address, and nobody else: \"10.0.0.2:8081\", \
                   \"https://10.0.0.2:8081\", which shows a certificate of [tls], or \"off\".",
        },
        Key {
            name: "list",
            field: &Of { at: |d| &mut d.config.peers.list, kind: List { of: "URLs", item: PEER } },
            does: "Names the peers.listen of all nodes, this one's among them. It is the same on every node, to the letter.",
        },
        Key {
            name: "name",
            field: &Of { at: |d| &mut d.config.peers.name, kind: OrEmpty(PEER) },
            does: "Names the nodes by a host name that has the addresses of all of them, in place of list.",
        },
        Key {
            name: "resolve_interval",
            field: &Of { at: |d| &mut d.config.peers.resolve_interval, kind: Time::AboveZero },
            does: "Looks name up this often. While that fails the last addresses hold.",
        },
        Key {
            name: "token",
            field: &Of { at: |d| &mut d.config.peers.token, kind: Secret(TOKEN) },
            does: "Demands that the nodes know this secret, which is never sent. It must be set unless all of them are \
                   on loopback addresses.",
        },
        Key {
            name: "timeout",
            field: &Of { at: |d| &mut d.config.peers.timeout, kind: Time::AboveZero },
            does: "Skips a node that makes no connection, or says nothing, for this long. One that waits for the \
                   application says so, and is not skipped.",
        },
        Key {
            name: "interval",
            field: &Of { at: |d| &mut d.config.peers.interval, kind: Time::AboveZero },
            does: "Greets each node this often. One that was skipped is asked again once it answers.",
        },
        Key {
            name: "ca_file",
            field: &Of { at: |d| &mut d.config.peers.tls.ca_file, kind: FILE },
            does: "Believes the authorities in this PEM file where the nodes are https; empty: those of the system.",
        },
        Key {
            name: "server_name",
            field: &Of { at: |d| &mut d.config.peers.tls.server_name, kind: SERVER_NAME },
            does: "Asks the nodes for a certificate for this name; empty: for name, or for the host in list.",
        },
        Key {
            name: "client_chain",
            field: &Of { at: |d| &mut d.config.peers.tls.client_chain, kind: FILE },
            does: "Shows the nodes the certificate in this PEM file, with its chain, which tls.client_ca may demand; \
                   empty: none.",
        },
        Key {
            name: "client_key",
            field: &Of { at: |d| &mut d.config.peers.tls.client_key, kind: FILE },
            does: "Names the PEM file of the key of client_chain.",
        },
    ],
};
