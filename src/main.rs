//! The command line: load the configuration, start, wait for a signal, stop, exit.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use larder::admin_client;
use larder::clock::Clock;
use larder::config::Config;
use larder::proxy::What;
use larder::units::parse_duration;
use larder::upkeep::{self, Sweep};
use larder::{app, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a mistake in the configuration or on the command line exits with.
const EXIT_CONFIG: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    about = "An HTTP caching reverse proxy with a durable tier",
    args_conflicts_with_subcommands = true
)]
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
    /// Say what is wrong with the configuration, one line each, and exit
    Check(ConfigArgs),
    /// Say that stored responses are no longer to be served, through the admin listener of a running Larder
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
    /// Remove from the durable tier what nothing leads to any more; safe beside running Larders
    Sweep {
        /// What is younger is left alone
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1d")]
        min_age: Duration,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Say why a request is, or is not, a hit, through the admin listener; the application is not asked
    Explain {
        /// An absolute URL, as clients see it
        url: String,
        /// A field of the request, "Name: value"; repeatable
        #[arg(short = 'H', long = "header", value_name = "FIELD")]
        fields: Vec<String>,
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
    /// What URLs begin with, host and all; or a path, of any host; repeatable
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// What is tagged so, to the byte; repeatable
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Everything
    #[arg(long)]
    all: bool,
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
    fn load(&self) -> Result<Config, ExitCode> {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(self.config.as_deref(), environment, &self.set).map_err(|errors| {
            for error in errors.0 {
                eprintln!("larder: {error}");
            }
            ExitCode::from(EXIT_CONFIG)
        })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => run(&cli.config),
        Some(Command::Run(config)) => run(&config),
        Some(Command::Check(config)) => config.load().map(|_| {
            println!("ok");
            ExitCode::SUCCESS
        }),
        Some(Command::Purge { what, config }) => config.load().map(|config| purge(&config, &what)),
        Some(Command::Lifecycle { apply, longest, config }) => {
            config.load().map(|config| told(upkeep::block_on(upkeep::lifecycle(&config, longest, apply))))
        }
        Some(Command::Sweep { min_age, dry_run, config }) => config.load().map(|config| {
            let sweep = Sweep { min_age, is_dry: dry_run };
            let swept = upkeep::block_on(upkeep::sweep(&config, sweep, &Clock::system()));
            told(swept.map(|swept| vec![swept.in_words(dry_run)]))
        }),
        Some(Command::Explain { url, fields, json, config }) => {
            config.load().map(|config| explain(&config, &url, &fields, json))
        }
    };
    outcome.unwrap_or_else(|code| code)
}

fn run(args: &ConfigArgs) -> Result<ExitCode, ExitCode> {
    let config = args.load()?;
    telemetry::init_logs(&config.log);
    let upstream = config.upstream.address.to_string();
    let running = app::start(config, Clock::system()).map_err(|error| {
        eprintln!("larder: {error}");
        ExitCode::FAILURE
    })?;
    // Before anyone is told that it is up: from then on a signal means an orderly stop.
    let signals = running.control().block_on(async { Signals::install() }).map_err(|error| {
        eprintln!("larder: signals can't be waited for: {error}");
        ExitCode::FAILURE
    })?;
    for address in running.addresses() {
        info!("listening on {address}, in front of {upstream}");
    }
    if let Some(address) = running.admin_address() {
        info!("admin on {address}");
    }
    running.control().block_on(signals.stop());
    running.stop();
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the first. A second one ends the process at once.
    async fn stop(mut self) {
        self.next().await;
        info!("stopping: no new connections, requests under way are finished");
        tokio::spawn(async move {
            self.next().await;
            eprintln!("larder: stopped at once by a second signal");
            std::process::exit(1);
        });
    }
}

fn purge(config: &Config, args: &PurgeArgs) -> ExitCode {
    let urls = args.urls.iter().map(|url| What::Url(url));
    let prefixes = args.prefix.iter().map(|prefix| What::Prefix(prefix));
    let tags = args.tag.iter().map(|tag| What::Tag(tag));
    let purges = urls.chain(prefixes).chain(tags).chain(args.all.then_some(What::All));
    let mut purges = purges.peekable();
    if purges.peek().is_none() {
        eprintln!("larder: what is to be purged? URLs, --prefix, --tag, or --all");
        return ExitCode::from(EXIT_CONFIG);
    }
    let mut code = ExitCode::SUCCESS;
    for purge in purges {
        match admin_client::purge(&config.admin, purge, args.soft, &args.wait) {
            Ok(()) => println!("purged {purge}"),
            Err(why) => {
                eprintln!("larder: {purge}: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn told(outcome: Result<Vec<String>, String>) -> ExitCode {
    match outcome {
        Ok(lines) => {
            println!("{}", lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("larder: {why}");
            ExitCode::FAILURE
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a duration such as 12h or 7d".into())
}

fn explain(config: &Config, url: &str, fields: &[String], json: bool) -> ExitCode {
    match admin_client::explain(&config.admin, url, fields) {
        Ok(told) if json => println!("{told:#}"),
        Ok(told) => {
            for line in told["lines"].as_array().into_iter().flatten().filter_map(|line| line.as_str()) {
                println!("{line}");
            }
        }
        Err(why) => {
            eprintln!("larder: {url}: {why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
