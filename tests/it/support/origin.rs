//! The scripted origin: what it saw, and what it answers with.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::message::{Head, lines, read_chunked_with_trailers};
use super::wait::{Count, Gate};

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

    /// Returns whether the request has the field, given as `Name: value`.
    pub(crate) fn has(&self, field: &str) -> bool {
        let (name, value) = field.split_once(": ").expect("a field");
        self.head.get(name) == Some(value)
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

    /// Bytes; `false` once nobody takes them.
    pub(crate) fn try_raw(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
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

    /// The upstream URL that leads here.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
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

    /// Answers each path with itself, fresh for ten minutes.
    pub(crate) fn cacheable() -> Self {
        Self::new(|seen, reply| reply.send(200, "Cache-Control: max-age=600", seen.path()))
    }

    /// Answers each path with itself fifty times over, fresh for a hundred minutes.
    pub(crate) fn long_lived() -> Self {
        Self::new(|seen, reply| reply.send(200, "Cache-Control: max-age=6000", &seen.path().repeat(50)))
    }

    /// Answers each path with itself, fresh for ten minutes, but `/slow` only once the gate is open.
    pub(crate) fn gated() -> (Self, Gate) {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Self::new(move |seen, reply| {
            if seen.path() == "/slow" {
                held.wait();
            }
            reply.send(200, "Cache-Control: max-age=600", seen.path());
        });
        (origin, gate)
    }

    /// Answers each request with its method and path, fresh for a minute.
    pub(crate) fn echo() -> Self {
        Self::new(|seen, reply| {
            reply.send(200, "Cache-Control: max-age=60", &format!("{} {}", seen.method(), seen.path()));
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
