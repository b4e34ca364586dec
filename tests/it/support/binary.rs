//! The real binary: as a running process, and as a command that ends.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use super::admin::{metric, purge};
use super::client::{Answer, Client};
use super::proxy::SOON;
use super::wait::eventually;

/// A running `larder`.
pub(crate) struct Process {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// Credentials for S3 servers on this machine, and nothing else of the environment.
pub(crate) fn larder(sets: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", "larder")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

impl Process {
    pub(crate) fn start(upstream: &str, sets: &[&str]) -> Self {
        let upstream = format!("upstream.url={upstream}");
        let mut all =
            vec!["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "admin.hosts=site.example", &upstream];
        all.extend(SOON);
        all.extend(sets);
        Self::spawn(larder(&all))
    }

    /// Starts `command` and waits until it says where it listens.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let (mut address, mut admin) = (None, None);
        while address.is_none() || admin.is_none() {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).expect("a log line") > 0, "it ended:\n{}", log.lock().unwrap());
            let after = |words: &str| {
                line.split(words).nth(1).and_then(|rest| rest.split([',', '\n', '"']).next()?.trim().parse().ok())
            };
            address = address.or_else(|| after("listening on "));
            admin = admin.or_else(|| after("admin on "));
            log.lock().unwrap().push_str(&line);
        }
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, address: address.expect("just seen"), admin: admin.expect("just seen"), log }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn get(&self, path: &str, fields: &str) -> Answer {
        self.client().get(path, fields)
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn metric(&self, line_start: &str) -> u64 {
        metric(self.admin, line_start)
    }

    pub(crate) fn settle(&self) {
        eventually("the durable queue is empty", || {
            self.metric("larder_durable_uploads ") + self.metric("larder_durable_queue_objects") == 0
        });
    }

    pub(crate) fn purge(&self, url: &str) -> Answer {
        purge(self.admin, url)
    }

    pub(crate) fn kill_9(mut self) {
        self.child.kill().expect("it is there");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn signal(&self, signal: &str) {
        signal_to(&self.child, signal);
    }

    /// Sends several at once, as far as one process can.
    pub(crate) fn signals(&self, signals: &[&str]) {
        let id = self.child.id();
        let script: String = signals.iter().map(|signal| format!("kill {signal} {id};")).collect();
        assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell is there").success());
    }

    /// Waits for the end; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    /// Bytes resident now, and at most so far.
    pub(crate) fn resident(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field of status");
            line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
        };
        (field("VmRSS"), field("VmHWM"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn file_url(directory: &Path) -> String {
    format!("durable.url=file:{}", directory.display())
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().expect("it runs")
}

/// Sends a signal, given as `-NAME`. After `-STOP` nothing of the process runs any more: its threads stop one by one
/// after `kill` has returned, and until then they may still answer.
pub(crate) fn signal_to(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill is there").success());
    if signal == "-STOP" {
        eventually("each thread has stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs");
            threads.flatten().all(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                // The name before the state may have parentheses of its own.
                stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
            })
        });
    }
}

/// Returns the exit code, standard output and standard error of a command that ended.
pub(crate) fn out_of(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
