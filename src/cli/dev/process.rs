//! The process that serves the application: started, watched, and ended with all that it started.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Server, ServerCommand};
use crate::base::Stopwatch;

/// The time that the server has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// The wait between two looks at a process that is to end.
const LOOK: Duration = Duration::from_millis(10);
/// The wait for the first bytes of an answer, in one look.
const READ_WAIT: Duration = Duration::from_millis(100);

/// The running server of the application.
#[derive(Debug)]
pub(super) struct ServerProcess {
    child: Child,
    server: Server,
    /// True if the process leads a group of its own, and false if it shares Larder's, and with it the terminal.
    leads_group: bool,
    /// The request that asks whether the application answers yet.
    probe: Option<UnixStream>,
}

impl ServerProcess {
    /// Starts the server. The thread that calls this must not end before the server: the kernel ends the server then.
    pub(super) fn start(command: &ServerCommand) -> Result<Self, String> {
        // Left behind by a server that was killed.
        let _ = std::fs::remove_file(&command.socket);
        // `larder` again, which ties itself to this process, and starts the server.
        let own = std::env::current_exe().map_err(|error| format!("the path of larder is not known: {error}"))?;
        let mut starting = Command::new(own);
        starting
            .args(["tied", "--once"])
            .arg(std::process::id().to_string())
            .arg(&command.python)
            .args(&command.arguments);
        starting.envs(command.environment.iter().map(|(name, value)| (name, value)));
        // At a terminal the server stays in the group that may read from it: a breakpoint() works.
        let leads_group = !std::io::stdin().is_terminal();
        if leads_group {
            starting.process_group(0);
        }
        let child = starting.spawn().map_err(|error| format!("larder can't start itself again: {error}"))?;
        Ok(Self { child, server: command.server, leads_group, probe: None })
    }

    /// Returns how it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} ended by itself ({})", self.server.name(), describe(status)))
    }

    /// Returns the processes that it started, which serve the application. Empty where the system does not tell.
    pub(super) fn workers(&self) -> Vec<u32> {
        // Between this process and the server is `larder tied`.
        let mut workers: Vec<u32> = children_of(self.child.id()).into_iter().flat_map(children_of).collect();
        workers.sort_unstable();
        workers
    }

    /// Returns whether the application has answered a request, which this sends. Waits for a moment.
    pub(super) fn answers(&mut self, socket: &Path) -> bool {
        let mut probe = match self.probe.take() {
            Some(probe) => probe,
            None => match ask(socket) {
                Ok(probe) => probe,
                Err(_) => return false,
            },
        };
        let mut start = [0; 5];
        match probe.read(&mut start) {
            Ok(read) => read > 0,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                self.probe = Some(probe);
                false
            }
            Err(_) => false,
        }
    }

    /// Ends it: SIGTERM, and SIGKILL for what is left of it after [`GRACE`].
    pub(super) fn end(mut self) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let watch = Stopwatch::start();
        while matches!(self.child.try_wait(), Ok(None)) && watch.elapsed() < GRACE {
            std::thread::sleep(LOOK);
        }
        if self.leads_group {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children_of(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Sends a request that changes nothing and that Flask answers without the code of a page.
fn ask(socket: &Path) -> std::io::Result<UnixStream> {
    let mut probe = UnixStream::connect(socket)?;
    probe.set_read_timeout(Some(READ_WAIT))?;
    probe.write_all(b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: larder-dev\r\nConnection: close\r\n\r\n")?;
    Ok(probe)
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
