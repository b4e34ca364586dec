//! The real binary: start, signals, `kill -9`, errors on the command line.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{Answer, Client, Gate, Origin, SOON, eventually, metric};

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
        crate::support::purge(self.admin, url)
    }

    pub(crate) fn kill_9(mut self) {
        self.child.kill().expect("it is there");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill is there");
        assert!(sent.success());
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

fn run(command: &mut Command) -> Output {
    command.output().expect("it runs")
}

fn cacheable() -> Origin {
    Origin::new(|seen, reply| reply.send(200, "Cache-Control: max-age=600", seen.path()))
}

#[test]
fn check_says_ok_or_what_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    std::fs::write(&file, "[server]\nlisen = \"x\"\n[memory]\ncapacity = \"much\"\n").expect("it is written");
    let check = |path: &Path| run(Command::new(env!("CARGO_BIN_EXE_larder")).arg("check").arg("--config").arg(path));
    let wrong = check(&file);
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("server.lisen: there is no such key; the nearest key is \"server.listen\""), "{told}");
    assert!(told.contains("memory.capacity: \"much\" is not a size"), "{told}");
    let shipped = check(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")));
    assert_eq!((shipped.status.code(), shipped.stdout.as_slice()), (Some(0), &b"ok\n"[..]));
    assert_eq!(check(&directory.path().join("none.toml")).status.code(), Some(2));
    let ran = run(&mut larder(&["server.threads=many"]));
    assert_eq!(ran.status.code(), Some(2), "a wrong configuration does not run");
}

#[test]
fn the_environment_configures_too() {
    let origin = cacheable();
    let mut command =
        larder(&["server.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", "durable.url=off", "log.format=json"]);
    command.env("LARDER_UPSTREAM__URL", format!("http://{}", origin.address)).env("LARDER_CACHE__KEY_PREFIX", "x");
    let larder = Process::spawn(command);
    assert_eq!(larder.get("/a", "").text(), "/a");
    assert!(larder.log().lines().all(|line| line.starts_with('{')), "{}", larder.log());
}

#[test]
fn a_port_that_is_taken_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("server.listen={}", taken.local_addr().expect("an address"));
    for threads in ["server.threads=1", "server.threads=4"] {
        let ran = run(&mut larder(&[&address, threads, "durable.url=off", "admin.listen=off"]));
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{told}");
        assert!(told.starts_with("larder: can't listen on 127.0.0.1:"), "{told}");
        assert!(told.contains("(server.listen)") && told.contains("choose another port"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn sigterm_finishes_what_is_under_way_and_refuses_what_is_new() {
    for signal in ["-TERM", "-INT"] {
        let gate = Gate::default();
        let origin = Origin::new({
            let gate = gate.clone();
            move |_, reply| {
                reply.begin("Cache-Control: max-age=60");
                reply.chunk("half");
                gate.wait();
                reply.chunk("rest");
                reply.end();
            }
        });
        let mut larder = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
        let mut idle = larder.client();
        let mut busy = larder.client();
        busy.ask("GET", "/a", "");
        busy.head().expect("a head");
        assert_eq!(busy.chunk().as_deref(), Some("half"));
        larder.signal(signal);
        assert!(idle.is_closed(), "an idle connection is closed at once");
        eventually("new connections are refused", || std::net::TcpStream::connect(larder.address).is_err());
        gate.open();
        assert_eq!(busy.chunk().as_deref(), Some("rest"));
        assert_eq!(busy.chunk().as_deref(), Some(""));
        assert_eq!(larder.wait(), Some(0), "{}", larder.log());
    }
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let gate = Gate::default();
    let origin = Origin::new({
        let gate = gate.clone();
        move |_, _| gate.wait()
    });
    let mut larder =
        Process::start(&format!("http://{}", origin.address), &["durable.url=off", "server.drain_timeout=100ms"]);
    let mut client = larder.client();
    client.ask("GET", "/a", "");
    origin.requests.wait_for(1);
    larder.signal("-TERM");
    assert_eq!(larder.wait(), Some(0));
    gate.open();
}

#[test]
fn kill_9_at_any_moment_leaves_whole_responses_or_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let body = |path: &str| format!("{path}:").repeat(40_000 / (path.len() + 1));
    let origin = Origin::new(move |seen, reply| reply.send(200, "Cache-Control: max-age=600", &body(seen.path())));
    let upstream = format!("http://{}", origin.address);
    let url = file_url(directory.path());
    let sets = [url.as_str(), "durable.inline_size=10KiB"];
    let mut stored = 0;
    let mut round = 0;
    while stored < 200 {
        let larder = Process::start(&upstream, &sets);
        let mut client = larder.client();
        // Each round is killed after another number of stores, with writes under way.
        round += 1;
        for _ in 0..round {
            client.get(&format!("/{stored}"), "");
            stored += 1;
        }
        larder.kill_9();
    }
    let larder = Process::start(&upstream, &sets);
    let mut client = larder.client();
    let mut hits = 0;
    for n in 0..200 {
        let path = format!("/{n}");
        let answer = client.get(&path, "");
        assert_eq!(answer.text(), body(&path), "{}", answer.cache_status());
        hits += usize::from(answer.hit() == Some("durable"));
    }
    assert!(hits > 0, "something had been written");
    assert_eq!(larder.metric("larder_durable_operations_total{op=\"get\",outcome=\"error\"}"), 0);
}

#[test]
fn purge_from_the_command_line() {
    let origin = cacheable();
    let larder = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
    larder.get("/a", "");
    let purge = |url: &str, admin: &str| {
        run(Command::new(env!("CARGO_BIN_EXE_larder")).env_clear().args([
            "purge",
            url,
            "--set",
            &format!("admin.listen={admin}"),
        ]))
    };
    let purged = purge("http://site.example/a", &larder.admin.to_string());
    let told = String::from_utf8_lossy(&purged.stdout).into_owned();
    assert_eq!((purged.status.code(), told.as_str()), (Some(0), "purged http://site.example/a (held in memory)\n"));
    assert_eq!(larder.get("/a", "").hit(), None);
    let wrong = purge("nonsense", &larder.admin.to_string());
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no absolute http or https URL"));
    let nobody = purge("http://site.example/a", "127.0.0.1:1");
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("can't be reached"));
}

#[test]
fn the_access_log_has_a_line_a_request() {
    let origin = cacheable();
    let larder = Process::start(
        &format!("http://{}", origin.address),
        &["durable.url=off", "log.access=true", "log.format=json"],
    );
    larder.get("/a?x=1", "");
    larder.get("/a?x=1", "");
    eventually("two lines", || larder.log().matches("\"uri\":\"/a?x=1\"").count() == 2);
    let log = larder.log();
    let line = log.lines().rfind(|line| line.contains("\"uri\"")).expect("a line");
    for part in
        ["\"status\":200", "\"bytes\":6", "\"method\":\"GET\"", "\"host\":\"site.example\"", "larder; hit; ttl="]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn large_bodies_pass_in_little_memory() {
    // The release binary is held to 2 GiB by `make large`; this is the same in small.
    const SIZE: usize = 192 << 20;
    let origin = Origin::new(|seen, reply| match seen.method() {
        "GET" => {
            reply.raw(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {SIZE}\r\n\r\n"));
            let block = vec![b'x'; 1 << 20];
            for _ in 0..SIZE >> 20 {
                reply.raw(&block);
            }
        }
        _ => reply.send(200, "", &seen.body.len().to_string()),
    });
    let larder = Process::start(&format!("http://{}", origin.address), &["durable.url=off"]);
    larder.get("/warm", "Range: bytes=0-0\nConnection: close");
    let (idle, _) = larder.resident();
    let mut client = larder.client();
    client.ask("GET", "/large", "");
    client.head().expect("a head");
    let read = std::io::copy(&mut client.reader().take(SIZE as u64), &mut std::io::sink()).expect("a body");
    assert_eq!(read, SIZE as u64);
    client.raw(format!("POST /up HTTP/1.1\r\nHost: site.example\r\nContent-Length: {SIZE}\r\n\r\n"));
    let block = vec![b'x'; 1 << 20];
    for _ in 0..SIZE >> 20 {
        client.raw(&block);
    }
    assert_eq!(client.answer().text(), SIZE.to_string());
    let (_, peak) = larder.resident();
    assert!(peak < idle + (100 << 20), "{} MiB above idle", (peak - idle) >> 20);
}
