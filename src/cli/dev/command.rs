//! Carries out `larder dev`: configuration, Larder, the application's server, and their end.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::supervisor::{Cache, Supervisor};
use super::{DevArgs, ServerCommand, python};
use crate::app::{self, Running};
use crate::base::{Clock, log};
use crate::cli::commands::EXIT_CONFIG;
use crate::cli::signals::Signals;
use crate::config::{Config, Reading};
use crate::downstream::Listen;
use crate::store::Location;

/// Settings that a developer wants otherwise than an operator. The configuration file overrides it.
const DEFAULTS: [&str; 6] = [
    // A failure is to be seen, and not an old page or a pause in its place.
    "cache.stale_if_unreachable=0s",
    "upstream.breaker_failures=0",
    // A breakpoint holds the answer up.
    "upstream.response_timeout=1h",
    "upstream.body_timeout=1h",
    "log.format=short",
    "log.access=true",
];

/// The socket that the application listens on.
const SOCKET_NAME: &str = "app.sock";
/// The most bytes that the path of a unix socket has.
const MAX_SOCKET_PATH: usize = 107;

/// Says `why` on standard error, and returns the exit code.
fn failed(why: impl std::fmt::Display, code: ExitCode) -> ExitCode {
    log::tell(&format!("larder: {why}"));
    log::flush();
    code
}

/// Runs the application and Larder until a signal comes, or until the application fails to start.
pub(in crate::cli) fn run(args: &DevArgs, file: Option<&Path>, sets: &[String]) -> ExitCode {
    match try_to_run(args, file, sets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

fn try_to_run(args: &DevArgs, file: Option<&Path>, sets: &[String]) -> Result<(), ExitCode> {
    log::start()
        .map_err(|error| failed(format!("the thread of the log can't be started: {error}"), ExitCode::FAILURE))?;
    let mistake = |why: String| failed(why, ExitCode::from(EXIT_CONFIG));
    let broken = |why: String| failed(why, ExitCode::FAILURE);
    let signals = Signals::of_a_terminal().map_err(|error| broken(format!("signals can't be waited for: {error}")))?;
    let app = python::App::read(&args.app).map_err(mistake)?;
    let directory = private_directory().map_err(broken)?;
    let socket = directory.path().join(SOCKET_NAME);
    let config = configuration(args, file, sets, &socket)?;
    let python = python::find(args);
    let server = python::choose(&python, app, args.server).map_err(mistake)?;
    log::configure(&config.log);
    let is_durable = config.durable.location != Location::Off;
    let token = config.admin.token.clone();
    // Before the application: whether its ports are free is known at once.
    let running = app::start(config, Clock::system()).map_err(|error| broken(error.to_string()))?;
    let environment = environment(&running, &token);
    let command = python::command(python, &args.app, server, socket, environment);
    let outcome = serve(&signals, &running, command, is_durable);
    running.stop();
    log::flush();
    outcome.map_err(broken)
}

/// Makes the directory of the application's socket, which this user alone may enter.
fn private_directory() -> Result<TempDir, String> {
    let parent = std::env::temp_dir();
    let failed = |error| format!("{} can't be written to: {error}; set TMPDIR to another directory", parent.display());
    let directory = tempfile::Builder::new().prefix("larder-dev-").tempdir_in(&parent).map_err(failed)?;
    if directory.path().as_os_str().len() + SOCKET_NAME.len() >= MAX_SOCKET_PATH {
        return Err(format!(
            "{} is too long for the path of a unix socket: set TMPDIR to a directory with a shorter path",
            parent.display()
        ));
    }
    std::fs::write(directory.path().join(python::GUNICORN_CONFIG), python::GUNICORN_SETTINGS).map_err(failed)?;
    Ok(directory)
}

/// Reads the configuration with what `larder dev` itself decides.
fn configuration(args: &DevArgs, file: Option<&Path>, sets: &[String], socket: &Path) -> Result<Config, ExitCode> {
    let mut all = vec!["durable.url=off".to_owned()];
    all.extend_from_slice(sets);
    if let Some(port) = args.port {
        all.push(format!("server.listen=127.0.0.1:{port}"));
    }
    all.push(format!("upstream.url=unix:{}", socket.display()));
    let read = Reading::load_over(&DEFAULTS, file, std::env::vars_os(), &all);
    read.finish().map_err(|errors| {
        for error in &errors.0 {
            log::tell(&format!("larder: {error}"));
        }
        log::flush();
        ExitCode::from(EXIT_CONFIG)
    })
}

/// Returns what the application is told: that it is being developed, and where Larder takes its purges.
fn environment(running: &Running, token: &str) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![("FLASK_DEBUG", OsString::from("1")), ("PYTHONUNBUFFERED", OsString::from("1"))];
    match running.admin_address() {
        Some(Listen::Tcp(address) | Listen::Tls(address)) => {
            environment.push(("LARDER_ADMIN", format!("http://{address}").into()));
        }
        Some(Listen::Unix(path)) => environment.push(("LARDER_ADMIN", format!("unix:{}", path.display()).into())),
        None => {}
    }
    if !token.is_empty() {
        environment.push(("LARDER_TOKEN", token.into()));
    }
    environment
}

/// Serves until a signal comes, or the application fails to start, for the reason that is returned.
fn serve(signals: &Signals, running: &Running, command: ServerCommand, is_durable: bool) -> Result<(), String> {
    let cache = Cache { proxy: Arc::clone(running.proxy()), runtime: running.control().handle().clone() };
    // A durable tier may hold pages that older code made.
    cache.purge();
    let root = std::env::current_dir().map_err(|error| format!("the current directory is not known: {error}"))?;
    let told = introduction(running, &command, &root, is_durable);
    let on_up = move || told.iter().for_each(|line| log::tell(&format!("larder: {line}")));
    let failure = Arc::new(Mutex::new(None));
    let (seen, stopper) = (Arc::clone(&failure), signals.stopper());
    let on_failure = move |why| {
        *seen.lock() = Some(why);
        let _ = stopper.send(());
    };
    signals.is_up();
    let supervisor = Supervisor::start(command, cache, root, on_up, on_failure)
        .map_err(|error| format!("a thread can't be started: {error}"))?;
    signals.wait();
    supervisor.end();
    let why = failure.lock().take();
    why.map_or(Ok(()), Err)
}

/// Returns the lines that are shown once the application answers.
fn introduction(running: &Running, command: &ServerCommand, root: &Path, is_durable: bool) -> Vec<String> {
    let mut lines: Vec<String> = running
        .addresses()
        .iter()
        .map(|address| match address {
            Listen::Tcp(address) => format!("open http://{address}/"),
            Listen::Tls(address) => format!("open https://{address}/"),
            Listen::Unix(path) => format!("open unix:{}", path.display()),
        })
        .collect();
    let runner = format!("{} under {}", command.server.name(), command.python.display());
    lines.push(format!("the application runs on {runner}, and is reloaded when its code changes"));
    if let Some(admin) = running.admin_address() {
        lines.push(format!("the admin listener is on {admin}; the application finds it in LARDER_ADMIN"));
    }
    let root = root.display();
    lines.push(format!("everything is purged when a file below {root} changes, and when the application starts again"));
    if is_durable {
        lines.push("the durable tier is on, and purged with the rest".to_owned());
    }
    lines
}
