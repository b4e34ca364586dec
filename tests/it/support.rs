//! The scripted origin, the client, and the proxy under test.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use larder::app;
use larder::app::Running;
use larder::base::Clock;
use larder::config::Config;
use larder::downstream::Listen;
use larder::rfc9111::timestamp::Timestamp;

/// Nobody waits longer than that for what processes tell each other.
pub(crate) const SOON: [&str; 2] = ["durable.announce_interval=20ms", "durable.poll_interval=100ms"];

/// Long enough that only something that never happens takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A point that threads wait at until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let (open, _) = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
        assert!(*open, "a gate was never opened");
    }
}

/// A count that can be waited for.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<(Mutex<usize>, Condvar)>);

impl Count {
    pub(crate) fn add(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    pub(crate) fn value(&self) -> usize {
        *self.0.0.lock().unwrap()
    }

    pub(crate) fn wait_for(&self, n: usize) {
        let count = self.0.0.lock().unwrap();
        let (count, _) = self.0.1.wait_timeout_while(count, PATIENCE, |count| *count < n).unwrap();
        assert!(*count >= n, "only {} of {n} happened", *count);
    }
}

/// Asks until it is so. For what has no event of its own, such as another process's state.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came about: {what}");
}

/// The head of a message, as it was on the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub line: String,
    pub fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    fn read(stream: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut head = Self { line: line.trim_end().to_owned(), fields: Vec::new() };
        loop {
            let mut bytes = Vec::new();
            stream.read_until(b'\n', &mut bytes).ok()?;
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end();
            if text.is_empty() {
                return Some(head);
            }
            let (name, value) = text.split_once(':')?;
            head.fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
}

fn read_chunked(stream: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    read_chunked_with_trailers(stream).map(|(body, _)| body)
}

fn read_chunked_with_trailers(stream: &mut impl BufRead) -> std::io::Result<(Vec<u8>, Vec<String>)> {
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::from_str_radix(line.trim().split(';').next().unwrap(), 16).map_err(std::io::Error::other)?;
        let mut chunk = vec![0; len];
        stream.read_exact(&mut chunk)?;
        body.extend_from_slice(&chunk);
        let mut end = String::new();
        if len == 0 {
            while stream.read_line(&mut end)? > 2 {
                trailers.push(std::mem::take(&mut end).trim_end().to_owned());
            }
            return Ok((body, trailers));
        }
        stream.read_line(&mut end)?;
    }
}

/// A request as the origin saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.head.line.split(' ').nth(1).unwrap()
    }

    pub(crate) fn method(&self) -> &str {
        self.head.line.split(' ').next().unwrap()
    }
}

/// The origin's end of a connection, for a script to answer on.
pub(crate) struct Reply {
    stream: TcpStream,
    close: bool,
}

impl Reply {
    pub(crate) fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        // A client that is gone is the test's own doing.
        let _ = self.stream.write_all(bytes.as_ref());
        let _ = self.stream.flush();
    }

    /// A whole response with `Content-Length`.
    pub(crate) fn send(&mut self, status: u16, fields: &str, body: &str) {
        self.raw(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{}\r\n{body}", body.len(), lines(fields)));
    }

    /// The head of a chunked response; [`Reply::chunk`] and [`Reply::end`] follow.
    pub(crate) fn begin(&mut self, fields: &str) {
        self.raw(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{}\r\n", lines(fields)));
    }

    pub(crate) fn chunk(&mut self, data: &str) {
        self.raw(format!("{:x}\r\n{data}\r\n", data.len()));
    }

    /// A chunk; `false` once nobody takes it.
    pub(crate) fn try_chunk(&mut self, data: &str) -> bool {
        self.stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).is_ok()
    }

    pub(crate) fn end(&mut self) {
        self.raw("0\r\n\r\n");
    }

    /// Ends the connection now, in the middle of whatever it is in.
    pub(crate) fn hang_up(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        self.close = true;
    }
}

/// `a: 1; b: 2`, or one field a line, as field lines.
fn lines(fields: &str) -> String {
    fields
        .split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .fold(String::new(), |text, line| text + line + "\r\n")
}

type Script = dyn Fn(&Seen, &mut Reply) + Send + Sync;

/// An origin that answers by a script, on a port of its own.
pub(crate) struct Origin {
    pub address: SocketAddr,
    pub requests: Count,
    pub connections: Count,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Arc<Script>>>,
}

impl Origin {
    /// Binds a free port for an origin that nobody serves yet.
    fn bound(script: Arc<Script>) -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            requests: Count::default(),
            connections: Count::default(),
            seen: Arc::default(),
            script: Arc::new(Mutex::new(script)),
        };
        (listener, origin)
    }

    /// `script` is called for each request, on the connection's own thread.
    pub(crate) fn new(script: impl Fn(&Seen, &mut Reply) + Send + Sync + 'static) -> Self {
        let (listener, origin) = Self::bound(Arc::new(script));
        let script = Arc::clone(&origin.script);
        let (requests, connections, seen) =
            (origin.requests.clone(), origin.connections.clone(), Arc::clone(&origin.seen));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                stream.set_nodelay(true).unwrap();
                connections.add();
                let (requests, seen, script) = (requests.clone(), Arc::clone(&seen), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &requests, &seen, &script));
            }
        });
        origin
    }

    /// One that reads no bodies: what comes behind a head is the next one to it.
    pub(crate) fn without_bodies(script: impl Fn(&Seen, &mut Reply) + Send + Sync + 'static) -> Self {
        let (listener, origin) = Self::bound(Arc::new(script));
        let (requests, script) = (origin.requests.clone(), Arc::clone(&origin.script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (requests, script) = (requests.clone(), Arc::clone(&script.lock().unwrap()));
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut reply = Reply { stream, close: false };
                    while let Some(head) = Head::read(&mut reader) {
                        requests.add();
                        script(&Seen { head, body: Vec::new(), trailers: Vec::new() }, &mut reply);
                    }
                });
            }
        });
        origin
    }

    /// Answers by another script from now on.
    pub(crate) fn script(&self, script: impl Fn(&Seen, &mut Reply) + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// Answers by the script of another origin from now on.
    pub(crate) fn script_of(&self, other: &Self) {
        let script = Arc::clone(&other.script.lock().unwrap());
        *self.script.lock().unwrap() = script;
    }

    /// Answers the n-th request with the n-th of `answers`, and the last one ever after.
    pub(crate) fn answers(answers: Vec<(u16, &'static str, &'static str)>) -> Self {
        let next = AtomicUsize::new(0);
        Self::new(move |_, reply| {
            let (status, fields, body) = answers[next.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
            reply.send(status, fields, body);
        })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("the origin was asked")
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.value()
    }
}

fn serve(stream: TcpStream, requests: &Count, seen: &Mutex<Vec<Seen>>, script: &Mutex<Arc<Script>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut reply = Reply { stream, close: false };
    while let Some(head) = Head::read(&mut reader) {
        let (body, trailers) = if head.get("transfer-encoding").is_some() {
            read_chunked_with_trailers(&mut reader).unwrap_or_default()
        } else {
            let len = head.get("content-length").map_or(0, |len| len.parse().unwrap());
            let mut body = vec![0; len];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            (body, Vec::new())
        };
        let request = Seen { head, body, trailers };
        seen.lock().unwrap().push(request.clone());
        requests.add();
        let script = Arc::clone(&script.lock().unwrap());
        script(&request, &mut reply);
        if reply.close {
            return;
        }
    }
}

/// What the client got.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.head.line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    pub(crate) fn cache_status(&self) -> &str {
        self.get("cache-status").expect("every response has a Cache-Status")
    }

    /// What Larder said, after other caches.
    pub(crate) fn cache_status_of_larder(&self) -> &str {
        self.head.all("cache-status").last().expect("every response has a Cache-Status")
    }

    /// Whether it was answered from a tier: `memory`, `durable`, or `None`.
    pub(crate) fn hit(&self) -> Option<&'static str> {
        let status = self.cache_status();
        if !status.contains("; hit") {
            return None;
        }
        if status.contains("detail=memory") { Some("memory") } else { Some("durable") }
    }

    /// Why it went to the origin.
    pub(crate) fn fwd(&self) -> Option<&str> {
        self.cache_status().split("; ").find_map(|part| part.strip_prefix("fwd="))
    }
}

/// One connection of a client.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
    /// The methods of requests whose answers were not read yet.
    asked: VecDeque<String>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(stream), asked: VecDeque::new() }
    }

    pub(crate) fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.reader.get_mut().write_all(bytes.as_ref());
    }

    /// Sends a request without a body; `fields` as one field a line.
    pub(crate) fn ask(&mut self, method: &str, path: &str, fields: &str) {
        let names_host = fields.lines().any(|line| line.trim().to_ascii_lowercase().starts_with("host:"));
        let host = if names_host { "" } else { "Host: site.example\r\n" };
        self.asked.push_back(method.to_owned());
        self.raw(format!("{method} {path} HTTP/1.1\r\n{host}{}\r\n", lines(fields)));
    }

    /// Reads a head; `None` when the connection ends instead.
    pub(crate) fn head(&mut self) -> Option<Head> {
        Head::read(&mut self.reader)
    }

    /// Reads exactly `len` bytes of a body.
    pub(crate) fn bytes(&mut self, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads one chunk of a chunked body.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let len = usize::from_str_radix(line.trim(), 16).ok()?;
        let data = self.bytes(len + 2).ok()?;
        Some(String::from_utf8_lossy(&data[..len]).into_owned())
    }

    /// Reads a final answer, whole. An error when the body breaks off.
    pub(crate) fn try_answer(&mut self) -> std::io::Result<Answer> {
        let method = self.asked.pop_front().unwrap_or_else(|| "GET".into());
        let head = self.head().ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let mut answer = Answer { head, body: Vec::new() };
        let status = answer.status();
        if method == "HEAD" || status == 204 || status == 304 || status < 200 {
            return Ok(answer);
        }
        if answer.get("transfer-encoding").is_some() {
            answer.body = read_chunked(&mut self.reader)?;
        } else if let Some(len) = answer.get("content-length") {
            answer.body = self.bytes(len.parse().unwrap())?;
        } else {
            self.reader.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().expect("a whole answer")
    }

    pub(crate) fn get(&mut self, path: &str, fields: &str) -> Answer {
        self.send("GET", path, fields)
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, fields: &str) -> Answer {
        self.ask(method, path, fields);
        self.answer()
    }

    /// Whether the server ends the connection without another byte.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub(crate) fn reader(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.reader
    }
}

/// The proxy under test, in this process, with a clock that the test moves.
pub(crate) struct Larder {
    pub clock: Clock,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    running: Option<Running>,
    settles: bool,
}

/// When tests begin: a moment like any other.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_790_000_000);

impl Larder {
    /// In front of `origin`, with `config` (TOML) on top of defaults for a test: no durable tier,
    /// ports of its own, two workers.
    pub(crate) fn new(origin: &Origin, config: &str) -> Self {
        Self::at(&format!("http://{}", origin.address), config, Clock::manual(START))
    }

    pub(crate) fn at(upstream: &str, config: &str, clock: Clock) -> Self {
        let sets = [
            "server.listen=127.0.0.1:0".to_owned(),
            "server.threads=2".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
            format!("upstream.url={upstream}"),
        ];
        let mut sets = sets.to_vec();
        if !config.contains("durable.url") {
            sets.push("durable.url=off".into());
        }
        if !config.contains("admin.hosts") {
            // Clients in the tests call every server by this name.
            sets.push("admin.hosts=site.example".into());
        }
        sets.extend(SOON.map(str::to_owned));
        // One dotted key a line, as `--set` takes them; rules come as one inline array.
        sets.extend(config.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        let config = Config::load(None, std::iter::empty(), &sets).expect("a sound test configuration");
        let running = app::start(config, clock.clone()).expect("it starts");
        let socket = |listen: &Listen| match listen {
            Listen::Tcp(text) => text.parse().unwrap(),
            Listen::Unix(_) => panic!("a TCP listener was asked for"),
        };
        let address = socket(&running.addresses()[0]);
        let admin = socket(running.admin_address().unwrap());
        Self { clock, address, admin, running: Some(running), settles: false }
    }

    pub(crate) fn client(&self) -> Client {
        if self.settles {
            self.settle();
        }
        Client::connect(self.address)
    }

    /// Before each client the durable tier has carried out all that it was asked.
    pub(crate) fn settling(mut self) -> Self {
        self.settles = true;
        self
    }

    /// One GET on a connection of its own.
    pub(crate) fn get(&self, path: &str, fields: &str) -> Answer {
        self.client().get(path, fields)
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Bytes of bodies that pass: in memory, and in temporary files.
    pub(crate) fn buffered(&self) -> (usize, u64) {
        let buffers = self.running().proxy().fetcher.upstream.buffers();
        (buffers.used(), buffers.spools.used())
    }

    /// Waits until the durable tier has carried out all that it was asked.
    pub(crate) fn settle(&self) {
        let running = self.running();
        let durable = running.proxy().fetcher.store.durable().expect("a durable tier");
        assert_eq!(running.control().block_on(durable.drain(PATIENCE)).left(), 0);
    }

    /// The same, where there is a durable tier.
    pub(crate) fn settle_if_durable(&self) {
        if self.running().proxy().fetcher.store.durable().is_some() {
            self.settle();
        }
    }

    pub(crate) fn metric(&self, line_start: &str) -> u64 {
        metric(self.admin, line_start)
    }

    pub(crate) fn purge(&self, url: &str) -> Answer {
        purge(self.admin, url)
    }

    /// Asks for a purge of something else than a URL.
    pub(crate) fn purge_of(&self, what: &str) -> Answer {
        post(self.admin, "/purge", what)
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

pub(crate) fn purge(admin: SocketAddr, url: &str) -> Answer {
    post(admin, "/purge", &format!("{{\"url\": \"{url}\"}}"))
}

/// Posts JSON to the admin listener.
pub(crate) fn post(admin: SocketAddr, path: &str, body: &str) -> Answer {
    let mut client = Client::connect(admin);
    client.raw(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    client.answer()
}

/// The number on the first line of `/metrics` that starts with `line_start`.
pub(crate) fn metric(admin: SocketAddr, line_start: &str) -> u64 {
    let metrics = Client::connect(admin).get("/metrics", "Host: localhost").text();
    let line = metrics
        .lines()
        .find(|line| line.starts_with(line_start))
        .unwrap_or_else(|| panic!("no {line_start} in\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Runs `f` on `n` threads at once and gives back what each came to.
pub(crate) fn at_once<T: Send + 'static>(n: usize, f: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let f = Arc::new(f);
    let threads: Vec<_> = (0..n).map(|i| (i, Arc::clone(&f))).map(|(i, f)| std::thread::spawn(move || f(i))).collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}
