//! Tests the real binary in front of the real Flask application under gunicorn.
//!
//! `make test` installs the application and sets `LARDER_TEST_GUNICORN`; without it these tests
//! say so and do nothing.

use std::process::{Child, Command, Stdio};

use crate::support::{Answer, Client, Process, at_once, eventually, file_url};

struct Application {
    child: Child,
    address: std::net::SocketAddr,
    _directory: tempfile::TempDir,
}

impl Application {
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
        let Some(gunicorn) = std::env::var_os("LARDER_TEST_GUNICORN") else {
            eprintln!("LARDER_TEST_GUNICORN does not name gunicorn; `make test` sets it");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let child = Command::new(gunicorn)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/flask-app"))
            .env("BIND", format!("127.0.0.1:{port}"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("gunicorn starts");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let application = Self { child, address, _directory: directory };
        eventually("the application answers", || std::net::TcpStream::connect(address).is_ok());
        Some(application)
    }

    fn upstream(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of requests that the application has answered, but for those to `/count`.
    fn total(&self) -> u64 {
        let text = Client::connect(self.address).get("/count", "Connection: close").text();
        let rest = text.split("\"total\"").nth(1).expect("a total");
        rest.chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .expect("a number")
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cookie(answer: &Answer) -> String {
    answer.get("set-cookie").expect("a cookie").split(';').next().expect("its value").to_owned()
}

fn log_in(larder: &Process, user: &str) -> String {
    let mut client = larder.client();
    let form = format!("user={user}");
    client.raw(format!(
        "POST /login HTTP/1.1\r\nHost: site.example\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    ));
    let answer = client.answer();
    assert_eq!(answer.status(), 303);
    cookie(&answer)
}

#[test]
fn no_field_of_a_client_moves_the_links_of_a_page_for_others() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["server.trusted_proxies=127.0.0.1"]);
    for field in
        ["SCRIPT_NAME", "Script_Name", "X-Script-Name", "X-Forwarded-Prefix", "X_Forwarded_Prefix", "Forwarded"]
    {
        // gunicorn takes SCRIPT_NAME off the path, and Flask puts it before each link.
        let poison = larder.get(&format!("/evil/?{field}"), &format!("{field}: /evil"));
        assert_eq!(poison.status(), 404, "{field}: there is no such page");
        let poison = larder.get("/today", &format!("{field}: /evil"));
        assert_eq!(poison.get("location"), Some("/news"), "{field}");
    }
    let unprotected = Client::connect(application.address).get("/evil/today", "SCRIPT_NAME: /evil");
    assert_eq!(unprotected.get("location"), Some("/evil/news"), "the application itself believes it");
    // The scheme that a trusted proxy tells in an older word arrives, and gunicorn does not find two that differ.
    for field in ["X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl", "X-Forwarded-Proto: https"] {
        assert_eq!(larder.get("/", field).status(), 200, "{field}");
    }
}

#[test]
fn two_sessions_never_see_each_other_in_any_order_nor_after_a_restart() {
    let Some(application) = Application::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let url = file_url(directory.path());
    // min_lifetime zero: whatever may be stored at all is stored durably.
    let sets = [url.as_str(), "durable.min_lifetime=0s", "durable.lookup_timeout=20s"];
    let larder = Process::start(&application.upstream(), &sets);
    let users = ["alice", "bob"].map(|user| (user, log_in(&larder, user)));
    assert_ne!(users[0].1, users[1].1);
    let look = |larder: &Process| {
        for order in [[0, 1, 0], [1, 0, 1], [1, 1, 0]] {
            for (user, cookie) in order.map(|i| &users[i]) {
                let other = if *user == "alice" { "bob" } else { "alice" };
                for path in ["/me", "/account"] {
                    let answer = larder.get(path, &format!("Cookie: {cookie}"));
                    assert!(
                        answer.text().contains(user) && !answer.text().contains(other),
                        "{path} {user}: {}",
                        answer.text()
                    );
                }
                for path in ["/me", "/account"] {
                    let nobody = larder.get(path, "");
                    assert!(
                        !nobody.text().contains("alice") && !nobody.text().contains("bob"),
                        "{path}: {}",
                        nobody.text()
                    );
                    assert!(
                        nobody
                            .get("set-cookie")
                            .is_none_or(|set| !users.iter().any(|(_, cookie)| set.contains(cookie.as_str())))
                    );
                }
            }
        }
    };
    look(&larder);
    larder.settle();
    larder.kill_9();
    let larder = Process::start(&application.upstream(), &sets);
    look(&larder);
    assert!(
        larder.get("/account", &format!("Cookie: {}", users[0].1)).hit().is_some(),
        "a session's page is cached for that session"
    );
}

#[test]
fn a_tracking_cookie_is_never_given_to_another() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["durable.url=off"]);
    let cookies: Vec<String> = (0..5).map(|_| cookie(&larder.get("/tracker", ""))).collect();
    for (n, cookie) in cookies.iter().enumerate() {
        assert!(!cookies[..n].contains(cookie), "{cookies:?}");
    }
}

#[test]
fn hits_do_not_touch_the_application() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["durable.url=off"]);
    let first = larder.get("/page", "");
    assert_eq!((first.status(), first.fwd()), (200, Some("uri-miss")));
    let count = application.total();
    let etag = first.get("etag").expect("an ETag").to_owned();
    for _ in 0..50 {
        assert_eq!(larder.get("/page", "").body, first.body);
        assert_eq!(larder.get("/page", &format!("If-None-Match: {etag}")).status(), 304);
    }
    assert_eq!(application.total(), count);
    for path in ["/missing", "/old"] {
        let (miss, hit) = (larder.get(path, ""), larder.get(path, ""));
        assert_eq!((miss.status(), hit.status(), hit.hit()), (miss.status(), miss.status(), Some("memory")), "{path}");
        assert_eq!(hit.get("location"), miss.get("location"));
    }
    assert_eq!(larder.get("/nowhere", "").status(), 404);
    assert_eq!(larder.get("/nowhere", "").hit(), None);
}

#[test]
fn files_have_validators_and_ranges() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["durable.url=off"]);
    let direct = Client::connect(application.address).get("/files/squares.csv", "Connection: close");
    // A range of what is not stored comes from the application, then from the whole.
    let part = larder.get("/files/squares.csv", "Range: bytes=100-199");
    assert_eq!((part.status(), &part.body[..]), (206, &direct.body[100..200]));
    assert_eq!(larder.get("/files/squares.csv", "").body, direct.body);
    let count = application.total();
    for (range, expected) in
        [("100-199", &direct.body[100..200]), ("-7", &direct.body[direct.body.len() - 7..]), ("0-", &direct.body[..])]
    {
        let part = larder.get("/files/squares.csv", &format!("Range: bytes={range}"));
        assert_eq!((part.status(), part.hit(), &part.body[..]), (206, Some("memory"), expected), "{range}");
    }
    let modified = direct.get("last-modified").expect("a date").to_owned();
    assert_eq!(larder.get("/files/squares.csv", &format!("If-Modified-Since: {modified}")).status(), 304);
    assert_eq!(application.total(), count);
}

#[test]
fn streams_arrive_piece_by_piece_and_uploads_arrive_whole() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["durable.url=off"]);
    let direct = Client::connect(application.address).get("/stream?pieces=3&delay=0", "Connection: close");
    assert_eq!(larder.get("/stream?pieces=3&delay=0", "").body, direct.body);
    let mut client = larder.client();
    client.ask("GET", "/stream?pieces=2&delay=1", "");
    assert_eq!(client.head().expect("a head").get("transfer-encoding"), Some("chunked"));
    assert!(client.chunk().is_some_and(|piece| !piece.is_empty()));
    assert!(client.chunk().is_some());
    let upload = "x".repeat(3_000_000);
    let mut client = larder.client();
    client.raw(format!(
        "POST /upload HTTP/1.1\r\nHost: site.example\r\nContent-Length: {}\r\n\r\n{upload}",
        upload.len()
    ));
    assert!(client.answer().text().contains("3000000"));
    client
        .raw("POST /upload HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(client.answer().text().contains(sha));
}

#[test]
fn post_then_get_shows_what_was_posted() {
    let Some(application) = Application::start() else { return };
    let larder = Process::start(&application.upstream(), &["durable.url=off"]);
    larder.get("/notes", "");
    assert!(larder.get("/notes", "").hit().is_some());
    let mut client = larder.client();
    let form = "text=remember+the+milk";
    client.raw(format!(
        "POST /notes HTTP/1.1\r\nHost: site.example\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    ));
    assert_eq!(client.answer().status(), 303);
    let after = larder.get("/notes", "");
    assert_eq!((after.hit(), after.text().contains("remember the milk")), (None, true));
}

#[test]
fn a_crowd_at_a_slow_page_is_one_request() {
    let Some(application) = Application::start() else { return };
    let larder = std::sync::Arc::new(Process::start(&application.upstream(), &["durable.url=off"]));
    let count = application.total();
    let answers = {
        let larder = std::sync::Arc::clone(&larder);
        at_once(50, move |_| larder.get("/slow?seconds=1", "").status())
    };
    assert_eq!(answers, [200; 50]);
    assert_eq!(application.total(), count + 1);
}
