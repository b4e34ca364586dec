//! Parses the command line and carries the commands out: `run` loads the configuration, starts, waits for a signal,
//! stops, and exits.
//!
//! Nothing here panics because standard output or standard error is closed or full.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing::{info, warn};

use super::dev::{self, DevArgs};
use super::signals::Signals;
use super::tied::{self, TiedArgs};
use super::upkeep::{Sweep, Told, Wanted};
use super::{admin_client, memory_pages, upkeep};
use crate::app;
use crate::base::{Clock, log, parse_duration, readable_size};
use crate::config::{Config, Reading};
use crate::proxy::{Manner, Schemes, What};
use crate::store::Durable;
use crate::tls;

/// The exit code for a mistake in the configuration or on the command line.
pub(super) const EXIT_CONFIG: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "larder", version, about = "An HTTP caching reverse proxy with a durable tier")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default)
    Run(ConfigArgs),
    /// Run an application with reload, and Larder in front: for its developer
    Dev {
        #[command(flatten)]
        dev: DevArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    #[command(hide = true)]
    Tied(TiedArgs),
    /// Check the configuration: print ok, or one line a mistake
    Check(ConfigArgs),
    /// Print the effective values, and the source of each
    Config {
        /// Only these keys, section.key, with what each does and takes
        keys: Vec<String>,
        /// Print JSON
        #[arg(long, conflicts_with = "keys")]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Purge stored responses, through the admin listener of a running Larder
    Purge {
        #[command(flatten)]
        what: PurgeArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the bucket's lifecycle rules that fit the configuration, and what they would replace
    Lifecycle {
        /// Install them
        #[arg(long)]
        apply: bool,
        /// The longest lifetime that the application grants, where that is more than the configuration does
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        longest: Option<Duration>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// List what the durable tier holds: size, age, freshness, pack, variant and tags of each response
    Keys {
        /// Only URLs that begin with this, host and all, under http and https; or a path, of any host
        #[arg(long, value_name = "PREFIX", default_value = "")]
        prefix: String,
        /// Only what has this tag, to the byte
        #[arg(long, value_name = "TAG", default_value = "")]
        tag: String,
        /// Print a JSON object for each, one a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Remove from the durable tier what is of no use any more, and merge small packs; safe beside running Larders
    Sweep {
        /// Leave alone separate bodies that are younger, and packs that were replaced less long ago (ten minutes at most)
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1d")]
        min_age: Duration,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Explain why a URL is a hit or a miss, through the admin listener; the application is not asked
    Explain {
        /// An absolute URL, as clients see it
        url: String,
        /// A field of the request, "Name: value"; repeatable
        #[arg(short = 'H', long = "header", value_name = "FIELD")]
        fields: Vec<String>,
        /// The content of a QUERY: the request is one then; give its Content-Type by -H
        #[arg(long, value_name = "TEXT")]
        content: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Args)]
struct PurgeArgs {
    /// Absolute URLs, as clients see them: every variant of each
    urls: Vec<String>,
    /// The beginning of URLs, host and all; or a path, of any host; repeatable
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// A tag, to the byte; repeatable
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// URLs and prefixes under their own scheme only, and not under both http and https
    #[arg(long)]
    exact_scheme: bool,
    /// Leave it stale: to be validated, and to stand in for an application that fails
    #[arg(long)]
    soft: bool,
    /// Wait so long after the purge is recorded, as "3s", until other processes have it as well
    #[arg(long, value_name = "DURATION", default_value = "")]
    wait: String,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file; without one the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one key, as in upstream.url=http://127.0.0.1:5000; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    /// These, which stand behind the subcommand, after those before it.
    fn after(self, before: Self) -> Result<Self, ExitCode> {
        if let (Some(one), Some(other)) = (&before.config, &self.config) {
            complain(format!("--config is given twice, as {} and {}: give one", one.display(), other.display()));
            return Err(ExitCode::from(EXIT_CONFIG));
        }
        let set = before.set.into_iter().chain(self.set).collect();
        Ok(Self { config: before.config.or(self.config), set })
    }

    /// Reads the file and the `--set` options that these name, and the environment.
    fn read(&self) -> Reading {
        Reading::load(self.config.as_deref(), std::env::vars_os(), &self.set)
    }

    /// For a command that ends: mistakes go to standard error.
    fn load(&self) -> Result<Config, ExitCode> {
        self.read().finish().map_err(|errors| {
            errors.0.iter().for_each(complain);
            ExitCode::from(EXIT_CONFIG)
        })
    }
}

/// Says on standard error what is wrong. Where that takes nothing there is no one to be told.
fn complain(what: impl Display) {
    let _ = writeln!(io::stderr(), "{}", escaped(&format!("larder: {what}")));
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    log::escape(text, &mut out);
    out
}

/// Escapes each line of a text.
fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// Collects the standard output of a command.
#[derive(Default)]
struct Out {
    error: Option<io::Error>,
}

impl Out {
    fn say(&mut self, text: impl Display) {
        if self.error.is_none() {
            let mut out = io::stdout().lock();
            self.error = writeln!(out, "{text}").and_then(|()| out.flush()).err();
        }
    }

    /// The code of a command that would end with `code`. A reader who has read enough, as `head` does, is no
    /// failure; that something could not be said is.
    fn end(self, code: ExitCode) -> ExitCode {
        match self.error {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                complain(format!("standard output can't be written: {error}"));
                ExitCode::FAILURE
            }
            Some(_) | None => code,
        }
    }
}

/// Runs the command that the arguments of the process name, and returns its exit code.
pub fn main() -> ExitCode {
    memory_pages::make_small();
    let Cli { command, config: before } = Cli::parse();
    let outcome = match command {
        None => run(&before),
        Some(Command::Run(config)) => config.after(before).and_then(|config| run(&config)),
        Some(Command::Dev { dev, config }) => {
            config.after(before).map(|config| dev::run(&dev, config.config.as_deref(), &config.set))
        }
        Some(Command::Tied(tied)) => tied::exec(&tied).map_err(|why| {
            complain(why);
            ExitCode::FAILURE
        }),
        Some(Command::Check(config)) => config.after(before).map(|config| check(&config.read())),
        Some(Command::Config { keys, json, config }) => {
            config.after(before).map(|config| show(&config.read(), &keys, json))
        }
        Some(Command::Purge { what, config }) => loaded(config, before).map(|config| purge(&config, &what)),
        Some(Command::Lifecycle { apply, longest, config }) => {
            loaded(config, before).map(|config| told(upkeep::block_on(upkeep::lifecycle(&config, longest, apply))))
        }
        Some(Command::Sweep { min_age, dry_run, config }) => loaded(config, before).map(|config| {
            let sweep = Sweep { min_age, is_dry: dry_run };
            told(upkeep::block_on(upkeep::sweep(&config, sweep, &Clock::system())))
        }),
        Some(Command::Keys { prefix, tag, json, config }) => loaded(config, before).map(|config| {
            let wanted = Wanted { prefix, tag, json };
            told(upkeep::block_on(upkeep::keys(&config, &wanted, &Clock::system())))
        }),
        Some(Command::Explain { url, fields, content, json, config }) => {
            loaded(config, before).map(|config| explain(&config, &url, &fields, content.as_deref(), json))
        }
    };
    outcome.unwrap_or_else(|code| code)
}

fn loaded(behind: ConfigArgs, before: ConfigArgs) -> Result<Config, ExitCode> {
    behind.after(before)?.load()
}

fn run(args: &ConfigArgs) -> Result<ExitCode, ExitCode> {
    let failed = |what: &dyn Display, code: ExitCode| {
        log::tell(&format!("larder: {what}"));
        log::flush();
        code
    };
    // First of all: from here on no signal ends the process without a word, and no word ends it either.
    if let Err(error) = log::start() {
        complain(format!("the thread of the log can't be started: {error}"));
        return Err(ExitCode::FAILURE);
    }
    let signals = Signals::install()
        .map_err(|error| failed(&format!("signals can't be waited for: {error}"), ExitCode::FAILURE))?;
    let config = args.read().finish().map_err(|errors| {
        errors.0.iter().for_each(|error| log::tell(&format!("larder: {error}")));
        log::flush();
        ExitCode::from(EXIT_CONFIG)
    })?;
    log::configure(&config.log);
    for warning in config.warnings() {
        warn!("{warning}");
    }
    memory_pages::fit(config.memory.capacity);
    let upstreams: Vec<String> =
        config.all_upstreams().flat_map(|(_, upstream)| upstream.addresses.iter().map(ToString::to_string)).collect();
    let upstreams = upstreams.join(", ");
    let durable = (config.durable.location.in_words(), config.durable.capacity());
    let running = app::start(config, Clock::system()).map_err(|error| failed(&error, ExitCode::FAILURE))?;
    signals.is_up();
    if let Some(reload) = running.reloader() {
        signals.on_hang_up(reload);
    }
    for address in running.addresses() {
        info!("listening on {address}, in front of {upstreams}");
    }
    if let Some(address) = running.resp_address() {
        info!("Redis clients on {address}");
    }
    if let Some(address) = running.peers_address() {
        info!("peers on {address}");
    }
    if let Some(address) = running.admin_address() {
        info!("admin on {address}");
    }
    if let Some(totals) = running.proxy().store().durable().map(Durable::packs) {
        let (place, capacity) = durable;
        let most =
            if capacity == 0 { "without a limit".into() } else { format!("of at most {}", readable_size(capacity)) };
        info!("the durable tier is in {place}: {} packs, {} {most}", totals.count, readable_size(totals.bytes));
    }
    signals.wait();
    running.stop();
    log::flush();
    Ok(ExitCode::SUCCESS)
}

/// Prints the warnings, what the certificates are for, and the mistakes or `ok`.
fn check(reading: &Reading) -> ExitCode {
    let mut out = Out::default();
    for warning in reading.warnings() {
        out.say(escaped(&format!("warning: {warning}")));
    }
    if !reading.errors().is_empty() {
        reading.errors().iter().for_each(complain);
        return ExitCode::from(EXIT_CONFIG);
    }
    let examined = tls::examine(&reading.config().tls, Clock::system().now());
    for warning in examined.warnings {
        out.say(escaped(&format!("warning: {warning}")));
    }
    for certificate in examined.sound {
        out.say(escaped(&certificate));
    }
    let origins = reading.config().all_upstreams().filter_map(|(name, upstream)| {
        let error = upstream.examine_tls().err()?;
        Some(format!("{}.{error}", Config::section_of(name)))
    });
    let peers = reading.config().peers.examine_tls().err().map(|error| format!("peers.{error}"));
    let mistakes: Vec<String> = examined.mistakes.iter().map(ToString::to_string).chain(origins).chain(peers).collect();
    if !mistakes.is_empty() {
        mistakes.iter().for_each(complain);
        return ExitCode::from(EXIT_CONFIG);
    }
    out.say("ok");
    out.end(ExitCode::SUCCESS)
}

/// Prints the effective values, or those of `keys`.
fn show(reading: &Reading, keys: &[String], json: bool) -> ExitCode {
    if !reading.errors().is_empty() {
        reading.errors().iter().for_each(complain);
        return ExitCode::from(EXIT_CONFIG);
    }
    let (mut out, mut code) = (Out::default(), ExitCode::SUCCESS);
    if json {
        out.say(format!("{:#}", reading.to_json()));
    } else if keys.is_empty() {
        out.say(reading.to_text().trim_end());
    }
    for key in keys {
        match reading.explain(key) {
            Ok(told) => out.say(told),
            Err(why) => {
                complain(why);
                code = ExitCode::from(EXIT_CONFIG);
            }
        }
    }
    out.end(code)
}

fn purge(config: &Config, args: &PurgeArgs) -> ExitCode {
    let urls = args.urls.iter().map(|url| What::Url(url));
    let prefixes = args.prefix.iter().map(|prefix| What::Prefix(prefix));
    let tags = args.tag.iter().map(|tag| What::Tag(tag));
    let purges = urls.chain(prefixes).chain(tags).chain(args.all.then_some(What::All));
    let mut purges = purges.peekable();
    if purges.peek().is_none() {
        complain("what is to be purged? URLs, --prefix, --tag, or --all");
        return ExitCode::from(EXIT_CONFIG);
    }
    let schemes = if args.exact_scheme { Schemes::Exact } else { Schemes::Both };
    let manner = Manner { is_soft: args.soft, schemes };
    let (mut out, mut code) = (Out::default(), ExitCode::SUCCESS);
    for purge in purges {
        match admin_client::purge(&config.admin, purge, manner, &args.wait) {
            Ok(held) => out.say(escaped(&format!("purged {purge} ({held})"))),
            Err(why) => {
                complain(format!("{purge}: {why}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    out.end(code)
}

fn told(outcome: Result<Told, String>) -> ExitCode {
    match outcome {
        Ok(Told { lines, notes }) => {
            let mut out = Out::default();
            for line in lines {
                out.say(escaped_lines(&line));
            }
            for note in notes {
                let _ = writeln!(io::stderr(), "{}", escaped(&note));
            }
            out.end(ExitCode::SUCCESS)
        }
        Err(why) => {
            complain(why);
            ExitCode::FAILURE
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a duration such as 12h or 7d".into())
}

fn explain(config: &Config, url: &str, fields: &[String], content: Option<&str>, json: bool) -> ExitCode {
    let told = match admin_client::explain(&config.admin, url, fields, content) {
        Ok(told) => told,
        Err(why) => {
            complain(format!("{url}: {why}"));
            return ExitCode::FAILURE;
        }
    };
    let mut out = Out::default();
    if json {
        out.say(format!("{told:#}"));
    } else {
        for line in told["lines"].as_array().into_iter().flatten().filter_map(|line| line.as_str()) {
            out.say(escaped(line));
        }
    }
    out.end(ExitCode::SUCCESS)
}
