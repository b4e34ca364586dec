//! Places for the durable tier, each behind its real protocol: a directory, a bucket of the S3 server in this
//! process, and one of `moto_server`, where `make test` has installed that.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::support::{Client, Origin, Process, S3, bucket, eventually, file_url, free_port};

/// A place.
pub(crate) struct Place {
    pub name: &'static str,
    /// Its settings in the configuration.
    pub sets: Vec<String>,
    directory: Option<tempfile::TempDir>,
    pub s3: Option<S3>,
    _moto: Option<Moto>,
}

impl Place {
    pub(crate) fn file() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let sets = vec![file_url(directory.path()), "durable.lookup_timeout=20s".into()];
        Self { name: "file", sets, directory: Some(directory), s3: None, _moto: None }
    }

    pub(crate) fn s3() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        bucket(directory.path());
        let s3 = S3::start(directory.path(), 0);
        Self { name: "s3s", sets: s3.sets("larder-bucket"), directory: Some(directory), s3: Some(s3), _moto: None }
    }

    /// `None` where there is no `moto_server`.
    pub(crate) fn moto() -> Option<Self> {
        let moto = Moto::start()?;
        let sets = vec![
            "durable.url=s3://larder-bucket/p".to_owned(),
            format!("durable.endpoint_url=http://{}", moto.address),
            "durable.region=us-east-1".into(),
            "durable.path_style=true".into(),
            "durable.lookup_timeout=20s".into(),
        ];
        Some(Self { name: "moto", sets, directory: None, s3: None, _moto: Some(moto) })
    }

    /// All that there are.
    pub(crate) fn all() -> Vec<Self> {
        [Self::file(), Self::s3()].into_iter().chain(Self::moto()).collect()
    }

    pub(crate) fn start(&self, origin: &Origin, more: &[&str]) -> Process {
        self.start_before(&origin.url(), more)
    }

    pub(crate) fn start_before(&self, upstream: &str, more: &[&str]) -> Process {
        let sets: Vec<&str> = self.sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Process::start(upstream, &sets)
    }

    /// Returns the directory of its files, if it has one.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.as_ref().expect("it keeps files").path().to_owned()
    }

    /// Files of which the names say that they are bodies, or not finished. Of those that are kept as files.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let mut found = Vec::new();
        let Some(root) = &self.directory else { return found };
        let mut directories = vec![root.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let name = path.strip_prefix(root.path()).expect("below it").to_string_lossy().into_owned();
                if path.is_dir() {
                    directories.push(path);
                } else if name.contains("/b/")
                    || (name.contains(".tmp") && !name.contains("larder-1/j"))
                    || name.contains("upload")
                {
                    found.push(path.to_string_lossy().into_owned());
                }
            }
        }
        found
    }
}

/// Returns the files of the packs in a bucket that is kept as files, in the order of their names.
pub(crate) fn packs(place: &Place) -> Vec<PathBuf> {
    let journal = place.directory().join("larder-bucket/any/prefix/larder-1/j");
    let files = std::fs::read_dir(journal).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut packs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "pack")).collect();
    packs.sort();
    packs
}

/// An S3 server of another make.
struct Moto {
    address: SocketAddr,
    process: std::process::Child,
}

impl Moto {
    fn start() -> Option<Self> {
        let Some(moto) = std::env::var_os("LARDER_TEST_MOTO") else {
            eprintln!("LARDER_TEST_MOTO does not name moto_server; `make test` sets it");
            return None;
        };
        let port = free_port();
        let process = std::process::Command::new(moto)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("moto_server starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let this = Self { address, process };
        eventually("moto_server answers", || std::net::TcpStream::connect(address).is_ok());
        let mut client = Client::connect(address);
        client.raw("PUT /larder-bucket HTTP/1.1\r\nHost: s3\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
        Some(this)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
