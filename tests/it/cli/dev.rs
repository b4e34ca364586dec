//! Tests `larder dev` with real servers: Flask's and gunicorn's.
//!
//! `make test` installs them and sets `LARDER_TEST_GUNICORN`; without it these tests say so and do nothing.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{Answer, Client, eventually, signal_to};

const APP: &str = r#"
from flask import Flask, render_template
app = Flask(__name__)
@app.get("/")
def index():
    return "first", {"Cache-Control": "public, max-age=600"}
@app.get("/page")
def page():
    return render_template("page.html"), {"Cache-Control": "public, max-age=600"}
@app.get("/admin")
def admin():
    import os
    return os.environ["LARDER_ADMIN"]
def create_app():
    return app
"#;

/// A WSGI application without Flask.
const PLAIN: &str = r#"
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Cache-Control", "max-age=600")])
    return [b"plain"]
"#;

/// The Python with Flask and gunicorn.
fn python() -> Option<PathBuf> {
    let Some(gunicorn) = std::env::var_os("LARDER_TEST_GUNICORN") else {
        eprintln!("LARDER_TEST_GUNICORN does not name gunicorn; `make test` sets it");
        return None;
    };
    Some(Path::new(&gunicorn).with_file_name("python"))
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(directory.path().join("app/templates")).expect("a directory");
    for (name, text) in [("app.py", APP), ("plain.py", PLAIN), ("templates/page.html", "old page")] {
        std::fs::write(directory.path().join("app").join(name), text).expect("a file");
    }
    directory
}

/// The command in `directory/app`, with `directory` for its temporary files.
fn dev(directory: &Path, python: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.current_dir(directory.join("app")).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("TMPDIR", directory);
    command.arg("dev").args(args).arg("--python").arg(python);
    if !args.contains(&"--port") {
        command.args(["--port", "0"]);
    }
    command.args(["--set", "admin.listen=127.0.0.1:0"]).stdin(Stdio::null());
    command
}

/// A running `larder dev`.
struct Dev {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    directory: tempfile::TempDir,
}

impl Dev {
    fn start(python: &Path, args: &[&str]) -> Self {
        let directory = directory();
        let mut child = dev(directory.path(), python, args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).expect("a line") > 0, "it ended:\n{}", log.lock().unwrap());
            log.lock().unwrap().push_str(&line);
            if let Some(rest) = line.strip_prefix("larder: open http://") {
                break rest.trim().trim_end_matches('/').parse().expect("an address");
            }
        };
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, address, log, directory }
    }

    fn get(&self, path: &str) -> Answer {
        Client::connect(self.address).get(path, "Connection: close")
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Replaces text of a file of the application.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.directory.path().join("app").join(name);
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).expect("it is written");
    }

    /// The processes that serve the application.
    fn servers(&self) -> Vec<String> {
        let here = self.directory.path().join("app").canonicalize().expect("it is there");
        let processes = std::fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
        processes
            .filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == here))
            .filter_map(|process| String::from_utf8(std::fs::read(process.join("cmdline")).ok()?).ok())
            .filter(|command| command.contains("python"))
            .filter(|command| !command.contains("larder\0dev\0"))
            .collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both servers, and the ways to name the application.
const SERVERS: [&[&str]; 3] =
    [&["app:app"], &["app:create_app()", "--server", "flask"], &["app:create_app()", "--server", "gunicorn"]];

#[test]
fn a_change_of_code_or_template_shows_though_the_page_was_stored() {
    let Some(python) = python() else { return };
    for args in SERVERS {
        let dev = Dev::start(&python, args);
        for path in ["/", "/page"] {
            // The first look at the files finds all of them new, which does not count.
            eventually("a hit", || dev.get(path).hit().is_some());
        }
        dev.edit("templates/page.html", "old page", "new page");
        eventually("the new template shows", || dev.get("/page").text() == "new page");
        assert_eq!(dev.get("/").text(), "first");
        eventually("a hit", || dev.get("/").hit().is_some());
        dev.edit("app.py", "\"first\"", "\"second\"");
        eventually("the new code shows", || dev.get("/").text() == "second");
        // From now on no old page comes back, and pages are stored again.
        for _ in 0..20 {
            assert_eq!(dev.get("/").text(), "second", "{args:?}");
        }
        eventually("a hit", || dev.get("/").hit().is_some());
        let log = dev.log();
        assert!(log.contains("larder: app.py changed: purged everything\n"), "{args:?}: {log}");
        eventually("the restart is told", || {
            dev.log().contains("larder: the application started again: purged everything\n")
        });
        assert!(log.contains("\nGET / 200 larder; hit; ttl="), "{args:?}: {log}");
    }
}

#[test]
fn nothing_is_left_of_the_application_however_larder_ends() {
    let Some(python) = python() else { return };
    for args in SERVERS {
        for signal in ["-TERM", "-INT", "-HUP", "-KILL"] {
            let mut dev = Dev::start(&python, args);
            assert_eq!(dev.get("/").status(), 200);
            assert!(!dev.servers().is_empty(), "the test finds them");
            signal_to(&dev.child, signal);
            let code = dev.child.wait().expect("it ends").code();
            assert_eq!(code, (signal != "-KILL").then_some(0), "{args:?} {signal}: {}", dev.log());
            if signal == "-KILL" {
                eventually("the servers have ended", || dev.servers().is_empty());
            } else {
                assert_eq!(dev.servers(), Vec::<String>::new(), "{args:?} {signal}");
            }
        }
    }
}

#[test]
fn a_server_that_dies_is_told_of_and_starts_again_with_the_next_change() {
    let Some(python) = python() else { return };
    let dev = Dev::start(&python, &["app:app", "--server", "gunicorn"]);
    eventually("a hit", || dev.get("/").hit().is_some());
    // Not a mistake of syntax, which gunicorn survives.
    dev.edit("app.py", "app = Flask(__name__)", "app = Flask(__name__)\nraise RuntimeError('a mistake')");
    eventually("the death is told", || {
        dev.log().contains("larder: gunicorn ended by itself (exit code 3); it is started again")
    });
    assert_eq!(dev.get("/").status(), 502, "no old page hides the mistake");
    assert!(dev.log().contains("RuntimeError: a mistake"), "{}", dev.log());
    dev.edit("app.py", "\nraise RuntimeError('a mistake')", "");
    eventually("it is back", || dev.get("/").status() == 200);
}

#[test]
fn any_wsgi_application_runs_under_gunicorn_and_learns_where_to_purge() {
    let Some(python) = python() else { return };
    let dev = Dev::start(&python, &["plain:app"]);
    assert_eq!(dev.get("/").text(), "plain");
    eventually("a hit", || dev.get("/").hit().is_some());
    assert!(dev.log().contains("the application runs on gunicorn"), "{}", dev.log());
    drop(dev);
    let dev = Dev::start(&python, &["app", "--set", "admin.token=a-secret-of-length"]);
    assert!(dev.log().contains("open http://"), "{}", dev.log());
    let admin: SocketAddr = dev.get("/admin").text().strip_prefix("http://").expect("TCP").parse().expect("an address");
    assert_eq!(Client::connect(admin).get("/healthz", "Host: localhost").status(), 200);
    eventually("Flask's server is told", || dev.log().contains("the application runs on Flask's server"));
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let Some(python) = python() else { return };
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = held.local_addr().expect("an address").port().to_string();
    let bare = Path::new("/usr/bin/env");
    for (python, args, code, expected) in [
        (&*python, &["nosuch:app"][..], 2, "larder: there is no module nosuch in this directory, nor in "),
        (&python, &["nosuch.web:app"], 2, "larder: there is no module nosuch in this directory"),
        (&python, &["nosuch.py"], 2, "larder: there is no file nosuch.py"),
        (&python, &["app", "--server", "gunicorn"], 2, "larder: gunicorn needs the application as MODULE:NAME"),
        (&python, &[":app"], 2, "larder: \":app\" names no application"),
        (&python, &["app:nosuch"], 1, "larder: gunicorn ended by itself (exit code 4) before the application answered"),
        (
            &python,
            &["app:nosuch", "--server", "flask"],
            1,
            "larder: Flask's server ended by itself (exit code 2) before",
        ),
        (&python, &["app:app", "--port", &taken], 1, "(server.listen)"),
        (bare, &["app:app"], 2, "larder: /usr/bin/env is no Python that works"),
        (Path::new("/nosuch/python"), &["app:app"], 2, "larder: /nosuch/python can't be run"),
        (&python, &["app:app", "--set", "a.b=1"], 2, "larder: --set a.b: there is no such key"),
    ] {
        let directory = directory();
        let ended = dev(directory.path(), python, args).output().expect("it runs");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(expected), "{args:?}: {told}");
    }
}

#[test]
fn nothing_is_left_in_the_directory_of_temporary_files() {
    let Some(python) = python() else { return };
    let mut running = Dev::start(&python, &["app:app"]);
    let left = |running: &Dev| std::fs::read_dir(running.directory.path()).expect("it is there").count();
    assert_eq!(left(&running), 2, "the application, and the directory of its socket");
    signal_to(&running.child, "-TERM");
    running.child.wait().expect("it ends");
    assert_eq!(left(&running), 1);
    let long = running.directory.path().join("x".repeat(100));
    std::fs::create_dir(&long).expect("a directory");
    let ended = dev(running.directory.path(), &python, &["app:app"]).env("TMPDIR", &long).output().expect("it runs");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("is too long for the path of a unix socket: set TMPDIR"), "{told}");
}

#[test]
fn a_python_without_flask_and_gunicorn_is_told_what_to_install() {
    if python().is_none() {
        return;
    }
    let environment = tempfile::tempdir().expect("a directory");
    let made = Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(environment.path()).status();
    assert!(made.expect("python3 is there").success());
    let python = environment.path().join("bin/python");
    let directory = directory();
    for (args, expected) in [
        (&["plain:app"][..], "has neither gunicorn nor Flask; install one with: "),
        (&["plain:app", "--server", "flask"], "has no Flask; install it with: "),
        (&["plain:app", "--server", "gunicorn"], "has no gunicorn; install it with: "),
    ] {
        let ended = dev(directory.path(), &python, args).output().expect("it runs");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(2) && told.contains(expected), "{told}");
    }
}
