//! `[admin]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{List, Secret};
use crate::config::values::{ADMIN_HOST, OPTIONAL_LISTEN, TOKEN};

pub(super) static SECTION: Section = Section {
    name: "admin",
    about: "The operator's listener: health, metrics, purges and explanations.",
    keys: &[
        Key {
            name: "listen",
            field: &Of { at: |d| &mut d.config.admin.listen, kind: OPTIONAL_LISTEN },
            does: "Accepts the operator's requests on this address: \"host:port\", \"unix:/run/larder-admin.sock\" or \
                   \"off\".",
        },
        Key {
            name: "token",
            field: &Of { at: |d| &mut d.config.admin.token, kind: Secret(TOKEN) },
            does: "Demands this bearer token. It must be set unless the listener is a loopback address or a unix \
                   socket.",
        },
        Key {
            name: "hosts",
            field: &Of { at: |d| &mut d.config.admin.hosts, kind: List { of: "host names", item: ADMIN_HOST } },
            does: "Accepts these names in Host, besides localhost and addresses, where no token is set. Others are \
                   refused, so that no web page asks through its visitor's browser.",
        },
    ],
};
