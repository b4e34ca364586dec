//! `larder dev`: one command for the developer of an application. It runs Flask's or gunicorn's server with reload,
//! and Larder in front.
//!
//! * The application listens on a unix socket in a directory of this user alone, so nothing else can take its place.
//! * Everything is purged when a file of the application changes and when its process starts again, so that a page
//!   made by old code is not served once the new code answers.
//! * Only memory is used, whatever the configuration file says: the purges would empty a bucket that others share.
//!   `--set durable.url=…` says otherwise.
//! * The application ends with Larder, also after `kill -9` of Larder (on Linux).

mod command;
mod files;
mod process;
mod python;
mod supervisor;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

pub(super) use self::command::run;

/// The options of `larder dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// The application, as `app:app` or `app:create_app()`; Flask's server finds the name in `app` by itself
    app: String,
    /// The server that runs it; without this gunicorn where it is installed, and else Flask's
    #[arg(long, value_enum)]
    server: Option<Server>,
    /// The Python that runs the server; without this the environment that is active, or beside larder, or in .venv
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// The port of 127.0.0.1 that Larder listens on; 0: any free one
    #[arg(long)]
    port: Option<u16>,
}

/// The server that runs the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Server {
    /// `flask run --debug`, with its debugger
    Flask,
    /// `gunicorn --reload`, for any WSGI application
    Gunicorn,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Flask => "Flask's server",
            Self::Gunicorn => "gunicorn",
        }
    }
}

/// The command line of a server, and what it needs of its environment.
#[derive(Clone, Debug)]
struct ServerCommand {
    server: Server,
    python: PathBuf,
    arguments: Vec<OsString>,
    environment: Arc<[(&'static str, OsString)]>,
    socket: PathBuf,
}
