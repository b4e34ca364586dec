//! The client: it sends bytes exactly as they are given, and reads whole answers or parts of them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::message::{Head, lines, read_chunked};
use super::wait::PATIENCE;

/// An answer, as the client got it.
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

    /// Returns Larder's own member of `Cache-Status`, behind those of other caches.
    pub(crate) fn cache_status_of_larder(&self) -> &str {
        self.head.all("cache-status").last().expect("every response has a Cache-Status")
    }

    /// Returns the tier that answered: `memory`, `durable`, or `None`.
    pub(crate) fn hit(&self) -> Option<&'static str> {
        let status = self.cache_status();
        if !status.contains("; hit") {
            return None;
        }
        if status.contains("detail=memory") { Some("memory") } else { Some("durable") }
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.hit().is_some()
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

    /// Returns whether the server ends the connection without another byte.
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
