//! The command line: load the configuration, start, wait for a signal, stop, exit.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use larder::clock::Clock;
use larder::config::Config;
use larder::{app, purge_client, telemetry};
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
    /// Forget what is stored for URLs, through the admin listener of a running Larder
    Purge {
        /// Absolute URLs, as clients see them
        #[arg(required = true)]
        urls: Vec<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
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
        Some(Command::Purge { urls, config }) => config.load().map(|config| purge(&config, &urls)),
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

fn purge(config: &Config, urls: &[String]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for url in urls {
        match purge_client::purge(&config.admin, url) {
            Ok(()) => println!("purged {url}"),
            Err(why) => {
                eprintln!("larder: {url}: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
