//! Messages as they are on the wire: heads, chunked bodies, and field lines.

use std::io::BufRead;

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

    pub(super) fn read(stream: &mut impl BufRead) -> Option<Self> {
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

pub(super) fn read_chunked(stream: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    read_chunked_with_trailers(stream).map(|(body, _)| body)
}

pub(super) fn read_chunked_with_trailers(stream: &mut impl BufRead) -> std::io::Result<(Vec<u8>, Vec<String>)> {
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

/// `a: 1; b: 2`, or one field a line, as field lines.
pub(super) fn lines(fields: &str) -> String {
    fields
        .split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .fold(String::new(), |text, line| text + line + "\r\n")
}
