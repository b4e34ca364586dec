//! Commands about the server: what it can do, how it is configured, and how it does.

use std::fmt::Write as _;

use bytes::Bytes;

use super::connection::VERSION;
use super::{Command, Context, Step, When, all, find, wrong_number};
use crate::base::{RespClass, format_size};
use crate::downstream::Listen;
use crate::resp::reply::Reply;
use crate::resp::server::Server;
use crate::resp::session::DATABASES;
use crate::resp::values::glob::Pattern;

const fn command(name: &'static str, arity: i16, run: super::Handler) -> Command {
    Command { name, arity, class: RespClass::Connection, flags: &[], keys: (0, 0, 0), when: When::Usual, run }
}

pub(super) static COMMANDS: &[Command] =
    &[command("command", -1, commands), command("config", -2, config), command("info", -1, info)];

/// Returns Redis's error for a subcommand that there is not.
pub(super) fn unknown_subcommand(command: &str, name: &[u8]) -> Reply {
    let name = String::from_utf8_lossy(&name[..name.len().min(128)]);
    Reply::error(format!("ERR unknown subcommand '{name}'. Try {command} HELP."))
}

/// `COMMAND`: lists the commands, for clients that ask where the keys of a command are.
fn commands(_: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let Some(subcommand) = arguments.get(1) else {
        return Reply::Array(all().map(description).collect()).into();
    };
    let named = |names: &[Bytes]| -> Vec<Option<&'static Command>> {
        if names.is_empty() { all().map(Some).collect() } else { names.iter().map(|name| find(name)).collect() }
    };
    let reply = match (subcommand.to_ascii_lowercase().as_slice(), &arguments[2..]) {
        (b"count", []) => Reply::Integer(i64::try_from(all().count()).unwrap_or(i64::MAX)),
        (b"count", _) => wrong_number("command|count"),
        (b"info", names) => {
            Reply::Array(named(names).into_iter().map(|found| found.map_or(Reply::Null, description)).collect())
        }
        (b"list", []) => Reply::Array(all().map(|command| Reply::text(command.name)).collect()),
        // Redis's documentation says what each does.
        (b"docs", names) => {
            let docs = |command: &Command| (Reply::text(command.name), Reply::Map(Vec::new()));
            Reply::Map(named(names).into_iter().flatten().map(docs).collect())
        }
        _ => unknown_subcommand("COMMAND", subcommand),
    };
    reply.into()
}

/// Describes a command as Redis does.
fn description(command: &Command) -> Reply {
    let (first, last, step) = command.keys;
    Reply::Array(vec![
        Reply::text(command.name),
        Reply::Integer(command.arity.into()),
        Reply::Set(command.flags.iter().map(|flag| Reply::Simple((*flag).into())).collect()),
        Reply::Integer(first.into()),
        Reply::Integer(last.into()),
        Reply::Integer(step.into()),
        Reply::Set(Vec::new()),
        Reply::Set(Vec::new()),
        Reply::Set(Vec::new()),
        Reply::Array(Vec::new()),
    ])
}

/// The most patterns of a `CONFIG GET`.
const MOST_PATTERNS: usize = 64;

/// `CONFIG GET`: what clients and tools ask for. The configuration of Larder itself is shown by `larder config`.
fn config(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    if !arguments[1].eq_ignore_ascii_case(b"get") {
        return unknown_subcommand("CONFIG", &arguments[1]).into();
    }
    if arguments.len() == 2 {
        return wrong_number("config|get").into();
    }
    if arguments.len() - 2 > MOST_PATTERNS {
        return Reply::error(format!("ERR CONFIG GET takes at most {MOST_PATTERNS} patterns")).into();
    }
    if let Some(error) = arguments[2..].iter().find_map(|text| Pattern::check(text).err()) {
        return error.into();
    }
    let patterns: Vec<_> = arguments[2..].iter().map(|text| Pattern::new(&text.to_ascii_lowercase())).collect();
    let is_asked = |name: &str| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()));
    let asked = settings(context.server).into_iter().filter(|(name, _)| is_asked(name));
    Reply::Map(asked.map(|(name, value)| (Reply::text(name), Reply::Bulk(value.into()))).collect()).into()
}

fn settings(server: &Server) -> [(&'static str, String); 9] {
    let config = &server.config;
    [
        ("appendonly", "no".into()),
        ("databases", DATABASES.to_string()),
        ("maxclients", config.max_connections.to_string()),
        ("maxmemory", server.capacity.to_string()),
        ("maxmemory-clients", config.max_buffered.to_string()),
        ("maxmemory-policy", "allkeys-lru".into()),
        ("proto-max-bulk-len", config.max_value_size.to_string()),
        ("save", String::new()),
        ("timeout", config.idle_timeout.as_secs().to_string()),
    ]
}

/// The sections of `INFO`.
const SECTIONS: [(&str, fn(&Context<'_>, &mut String)); 8] = [
    ("Server", server),
    ("Clients", clients),
    ("Memory", memory),
    ("Persistence", persistence),
    ("Stats", stats),
    ("Replication", replication),
    ("Cluster", |_, out| out.push_str("cluster_enabled:0\r\n")),
    ("Keyspace", |_, _| {}),
];

fn info(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let is_asked = |section: &str| {
        let is = |name: &Bytes| {
            name.eq_ignore_ascii_case(section.as_bytes())
                || [&b"all"[..], b"default", b"everything"].iter().any(|every| name.eq_ignore_ascii_case(every))
        };
        arguments.len() == 1 || arguments[1..].iter().any(is)
    };
    let mut out = String::new();
    for (name, write) in SECTIONS.iter().filter(|(name, _)| is_asked(name)) {
        if !out.is_empty() {
            out.push_str("\r\n");
        }
        let _ = write!(out, "# {name}\r\n");
        write(context, &mut out);
    }
    Reply::Verbatim(out).into()
}

/// Appends lines of names and values.
fn lines(out: &mut String, pairs: &[(&str, &dyn std::fmt::Display)]) {
    for (name, value) in pairs {
        let _ = write!(out, "{name}:{value}\r\n");
    }
}

fn server(context: &Context<'_>, out: &mut String) {
    let server = context.server;
    let port = match &server.address {
        Some(Listen::Tcp(address) | Listen::Tls(address)) => address.rsplit_once(':').map_or("0", |(_, port)| port),
        Some(Listen::Unix(_)) | None => "0",
    };
    let uptime = server.begun.elapsed().as_secs();
    lines(
        out,
        &[
            ("redis_version", &VERSION),
            ("redis_mode", &"standalone"),
            ("server_name", &"larder"),
            ("larder_version", &env!("CARGO_PKG_VERSION")),
            ("os", &std::env::consts::OS),
            ("arch_bits", &usize::BITS),
            ("process_id", &std::process::id()),
            ("run_id", &format!("{:032x}{:08x}", server.run_id, server.run_id >> 96)),
            ("tcp_port", &port),
            ("uptime_in_seconds", &uptime),
            ("uptime_in_days", &(uptime / 86_400)),
        ],
    );
}

fn clients(context: &Context<'_>, out: &mut String) {
    let server = context.server;
    lines(
        out,
        &[
            ("connected_clients", &server.metrics.open_resp_connections()),
            ("maxclients", &server.config.max_connections),
            ("blocked_clients", &0),
        ],
    );
}

fn memory(context: &Context<'_>, out: &mut String) {
    let server = context.server;
    let (used, capacity) = (server.store.memory().usage().1, server.capacity);
    lines(
        out,
        &[
            // The memory tier, which pages share.
            ("used_memory", &used),
            ("used_memory_human", &format_size(used)),
            ("maxmemory", &capacity),
            ("maxmemory_human", &format_size(capacity)),
            ("maxmemory_policy", &"allkeys-lru"),
            ("mem_clients_normal", &server.memory.used()),
        ],
    );
}

fn persistence(_: &Context<'_>, out: &mut String) {
    lines(out, &[("loading", &0), ("rdb_bgsave_in_progress", &0), ("aof_enabled", &0)]);
}

fn stats(context: &Context<'_>, out: &mut String) {
    let total = context.server.metrics.resp_totals();
    lines(
        out,
        &[
            ("total_connections_received", &total.connections),
            ("total_commands_processed", &total.commands),
            ("total_net_input_bytes", &total.bytes_in),
            ("total_net_output_bytes", &total.bytes_out),
            ("rejected_connections", &total.rejected_connections),
            ("keyspace_hits", &total.hits),
            ("keyspace_misses", &total.misses),
        ],
    );
}

fn replication(_: &Context<'_>, out: &mut String) {
    lines(out, &[("role", &"master"), ("connected_slaves", &0)]);
}
