//! The thread that runs the application's server: it purges when the code changes, and starts a server that died again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;

use super::ServerCommand;
use super::files::Files;
use super::process::ServerProcess;
use crate::base::{Stopwatch, log};
use crate::proxy::{Manner, Proxy, Schemes, What};

/// The pause between two looks at the processes. Shorter than any start of Python, so that what old code made is purged
/// before new code answers.
const LOOK: Duration = Duration::from_millis(50);
/// The application is said to be slow to start after this long.
const SLOW_START: Duration = Duration::from_secs(10);

/// The parts of Larder that the thread uses.
pub(super) struct Cache {
    pub(super) proxy: Arc<Proxy>,
    pub(super) runtime: Handle,
}

impl Cache {
    /// Purges everything.
    pub(super) fn purge(&self) {
        let manner = Manner { is_soft: false, schemes: Schemes::Both };
        if let Err(error) = self.runtime.block_on(self.proxy.purge(What::All, manner)) {
            log::tell(&format!("larder: what is stored could not be purged, and may be old: {error:?}"));
        }
    }
}

/// The thread, which must run as long as the server: the server is tied to it.
pub(super) struct Supervisor {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the thread and the server. `on_up` is called when the application first answers. If the server ends before
    /// that, `on_failure` is called with the reason.
    pub(super) fn start(
        command: ServerCommand,
        cache: Cache,
        root: PathBuf,
        on_up: impl FnOnce() + Send + 'static,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("larder-dev".into()).spawn(move || {
            let mut watch = Watch { command, cache, files: Files::new(root), stopped };
            match watch.first_start() {
                Ok(Some(process)) => {
                    on_up();
                    if let Some(limit) = watch.files.limit() {
                        log::tell(&format!(
                            "larder: there are more than {limit} files here: changes of the others are not seen; purge by hand, or start larder dev in a smaller directory"
                        ));
                    }
                    watch.run(process);
                }
                Ok(None) => {}
                Err(why) => on_failure(why),
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the server, and waits until it has ended.
    pub(super) fn end(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

struct Watch {
    command: ServerCommand,
    cache: Cache,
    files: Files,
    stopped: Receiver<()>,
}

/// The event that ended a watch over one process.
enum Ended {
    /// Larder is to stop.
    Stopped,
    /// The process died, for this reason.
    Died(String),
}

impl Watch {
    /// Pauses. Returns true if Larder is to stop.
    fn pause(&self, pause: Duration) -> bool {
        !matches!(self.stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
    }

    /// Starts the server and waits until the application answers; `None` if Larder is to stop before.
    fn first_start(&mut self) -> Result<Option<ServerProcess>, String> {
        let mut process = ServerProcess::start(&self.command)?;
        let (watch, mut is_told) = (Stopwatch::start(), false);
        while !process.answers(&self.command.socket) {
            if let Some(why) = process.ended() {
                return Err(format!("{why} before the application answered; what it said is above"));
            }
            if self.pause(Duration::from_millis(20)) {
                process.end();
                return Ok(None);
            }
            if watch.elapsed() > SLOW_START && !is_told {
                is_told = true;
                log::tell("larder: the application does not answer yet: it still starts, or waits for something");
            }
        }
        Ok(Some(process))
    }

    /// Watches over the server until Larder is to stop, and starts it again after it died and a file changed.
    fn run(&mut self, first: ServerProcess) {
        let mut process = first;
        loop {
            match self.watch(&mut process) {
                Ended::Stopped => return process.end(),
                Ended::Died(why) => {
                    let root = self.files.root().display();
                    log::tell(&format!(
                        "larder: {why}; it is started again when a file below {root} changes, and Ctrl-C ends larder dev"
                    ));
                    // Its workers may live on.
                    process.end();
                }
            }
            process = match self.start_again() {
                Some(process) => process,
                None => return,
            };
        }
    }

    /// Purges whenever a file changes or a worker is another than before.
    fn watch(&mut self, process: &mut ServerProcess) -> Ended {
        let mut workers = process.workers();
        let mut since_files = Stopwatch::start();
        loop {
            if self.pause(LOOK) {
                return Ended::Stopped;
            }
            if let Some(why) = process.ended() {
                self.cache.purge();
                return Ended::Died(why);
            }
            let now = process.workers();
            if now != workers {
                self.cache.purge();
                if now.iter().any(|worker| !workers.contains(worker)) {
                    log::tell("larder: the application started again: purged everything");
                }
                workers = now;
            }
            if since_files.elapsed() < self.files.pause() {
                continue;
            }
            if let Some(file) = self.files.changed() {
                self.cache.purge();
                log::tell(&format!("larder: {} changed: purged everything", file.display()));
            }
            since_files = Stopwatch::start();
        }
    }

    /// Waits for a change, and starts the server; `None` if Larder is to stop before.
    fn start_again(&mut self) -> Option<ServerProcess> {
        loop {
            while self.files.changed().is_none() {
                if self.pause(self.files.pause()) {
                    return None;
                }
            }
            self.cache.purge();
            match ServerProcess::start(&self.command) {
                Ok(process) => {
                    log::tell(&format!("larder: {} is started again", self.command.server.name()));
                    return Some(process);
                }
                Err(why) => log::tell(&format!("larder: {why}")),
            }
        }
    }
}
