//! Runs the commands that the documentation tells a reader to type, and compares what they print.
//!
//! The commands of README.md form one story: the same directory, the same ports, jobs as a shell numbers them.
//! `…` in an output stands for what varies; the numbers of `ttl` and `age` are not compared. Every command is
//! run, or is in [`NOT_RUN`] with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Client, eventually};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = "README.md";
const PAGES: [&str; 4] = [README, "docs/reference.md", "docs/performance.md", "docs/durable-format.md"];

/// Commands that this test does not run, and why.
const NOT_RUN: [(&str, &str); 30] = [
    ("pip install ./", "builds with cargo; python/tests/test_distribution.py installs a wheel"),
    ("larder dev app:app", "stays up; README.md runs one, and tests/it/cli/dev.rs"),
    ("larder dev 'app:create_app()'", "stays up; tests/it/cli/dev.rs runs it"),
    ("larder dev app --server flask", "stays up; tests/it/cli/dev.rs runs it"),
    ("larder dev app:app --port 8000 --config larder.toml --set cache.status_key=true", "stays up"),
    ("make demo", "builds with cargo; `make test` runs the demo"),
    ("cargo build --release --locked", "builds with cargo"),
    ("export PATH=\"$PWD/target/release:$PATH\"", "the test puts the binary under test there"),
    ("export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…", "sets a reader's own secrets"),
    (
        "larder --set durable.url=s3://my-bucket/any/prefix --set durable.region=eu-central-1",
        "needs the network and a bucket; tests/it/s3.rs has a bucket",
    ),
    ("make test", "runs cargo, and this test"),
    ("make conformance", "needs the network, for node's packages"),
    ("make check", "runs cargo, and this test"),
    ("make bench", "runs cargo, and measures for minutes"),
    ("make instructions", "builds with cargo, and needs valgrind"),
    ("make large", "builds with cargo; `make test` runs it"),
    ("make scan", "takes minutes; `make test` runs it"),
    ("bench/tls.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/origins.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/crowds.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/durable.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/hit_ratio.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/scale.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/tier.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/flood.py --larder target/release/larder", "measures the release binary for minutes"),
    ("bench/start.py --larder target/release/larder", "measures the release binary for minutes"),
    ("nginx", "its configuration needs nginx and a certificate"),
    ("caddy", "its configuration needs Caddy and a name in the DNS"),
    ("ini", "a unit of systemd"),
    ("text", "a diagram"),
];

/// The text between two fences.
struct Block {
    page: &'static str,
    line: usize,
    language: String,
    lines: Vec<String>,
}

impl Block {
    fn text(&self) -> String {
        self.lines.join("\n") + "\n"
    }

    /// The file that its first line names, as in `# app.py`.
    fn file_name(&self) -> Option<&str> {
        let name = self.lines.first()?.strip_prefix("# ")?;
        let extension = Path::new(name).extension()?.to_str()?;
        (["py", "toml"].contains(&extension) && !name.contains(' ')).then_some(name)
    }

    /// Its commands, each with the output that follows it; a block of `sh` shows none.
    fn commands(&self) -> Vec<(String, Option<Vec<String>>)> {
        let mut commands: Vec<(String, Option<Vec<String>>)> = Vec::new();
        for line in &self.lines {
            match (self.language.as_str(), line.strip_prefix("$ ")) {
                ("console", Some(command)) => commands.push((without_comment(command), Some(Vec::new()))),
                ("console", None) => {
                    let (_, output) = commands.last_mut().expect("a console block begins with a command");
                    output.as_mut().expect("a console block has outputs").push(line.clone());
                }
                _ if line.trim().is_empty() || line.starts_with('#') => {}
                _ => commands.push((without_comment(line), None)),
            }
        }
        commands
    }
}

fn without_comment(command: &str) -> String {
    command.split(" #").next().expect("there is a first part").trim().to_owned()
}

fn read(page: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(page)).expect("the page is there")
}

fn blocks(page: &'static str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in read(page).lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(language), false) => {
                blocks.push(Block { page, line: number + 1, language: language.to_owned(), lines: Vec::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => blocks.last_mut().expect("it was opened").lines.push(line.to_owned()),
            (None, false) => {}
        }
    }
    assert!(!open, "{page}: a block is not closed");
    blocks
}

fn is_listed(what: &str) -> bool {
    NOT_RUN.iter().any(|(listed, _)| *listed == what)
}

/// The line with what varies from run to run made the same.
fn plain(line: &str) -> String {
    let mut plain = line.trim_end().to_owned();
    for name in ["ttl=", "age: "] {
        if let Some((before, after)) = plain.split_once(name) {
            plain = format!("{before}{name}N{}", after.trim_start_matches(|c: char| c.is_ascii_digit()));
        }
    }
    plain
}

/// Returns whether `line` is `pattern`, in which `…` stands for any characters.
fn line_matches(pattern: &str, line: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == line,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|line| {
            line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| line_matches(rest, &line[at..]))
        }),
    }
}

/// Returns whether `lines` are `patterns`, in which a line `…` stands for any lines.
fn output_matches(patterns: &[String], lines: &[String]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "…" => (0..=lines.len()).any(|skipped| output_matches(rest, &lines[skipped..])),
        Some((pattern, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_matches(pattern, line) && output_matches(rest, others)),
    }
}

/// A reader's shell: a directory, ports of its own in place of those in the text, and jobs.
struct Shell {
    directory: tempfile::TempDir,
    path: String,
    ports: [(&'static str, u16); 4],
    jobs: BTreeMap<usize, (String, Child)>,
}

impl Shell {
    /// `None` where Flask is not installed.
    fn new() -> Option<Self> {
        let Some(gunicorn) = std::env::var_os("LARDER_TEST_GUNICORN").map(PathBuf::from) else {
            eprintln!("LARDER_TEST_GUNICORN does not name gunicorn; `make test` sets it");
            return None;
        };
        let held = [(); 4].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [app, public, admin, tls] = held.each_ref().map(|held| held.local_addr().expect("an address").port());
        let larder = Path::new(env!("CARGO_BIN_EXE_larder")).parent().expect("it is in a directory");
        let python = gunicorn.parent().expect("it is in a directory");
        let directory = tempfile::tempdir().expect("a directory");
        // Commands name files of the repository from its root.
        std::os::unix::fs::symlink(Path::new(ROOT).join("tests"), directory.path().join("tests")).expect("a link");
        Some(Self {
            directory,
            path: format!("{}:{}:/usr/local/bin:/usr/bin:/bin", larder.display(), python.display()),
            ports: [("5000", app), ("8080", public), ("9090", admin), ("8443", tls)],
            jobs: BTreeMap::new(),
        })
    }

    fn port(&self, of: &str) -> u16 {
        self.ports.iter().find(|(written, _)| *written == of).expect("it is one of these").1
    }

    fn address(&self, of: &str) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port(of)).into()
    }

    /// The text with the ports that are written in it replaced by free ones.
    fn with_ports(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (written, port)| {
            text.replace(&format!("127.0.0.1:{written}"), &format!("127.0.0.1:{port}"))
                .replace(&format!("--port {written}"), &format!("--port {port}"))
        })
    }

    fn save(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, self.with_ports(text)).expect("it is written");
        path
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.directory.path())
            .env("LANG", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Stands for what `pip install` would have installed.
            .env("PYTHONPATH", Path::new(ROOT).join("python"))
            .env("LARDER_BINARY", env!("CARGO_BIN_EXE_larder"))
            .env("LARDER_ADMIN", format!("http://{}", self.address("9090")))
            // The defaults, on ports that are free.
            .env("LARDER_ADMIN__LISTEN", self.address("9090").to_string())
            .stdin(Stdio::null());
        if !self.names_listeners(script) {
            command.env("LARDER_SERVER__LISTEN", self.address("8080").to_string());
        }
        command
    }

    /// Returns whether a command has a configuration file that says where to listen.
    fn names_listeners(&self, script: &str) -> bool {
        let file = script.split_once("--config ").and_then(|(_, rest)| rest.split(' ').next());
        let text = file.and_then(|file| std::fs::read_to_string(self.directory.path().join(file)).ok());
        text.is_some_and(|text| text.lines().any(|line| line.starts_with("listen = [\"http")))
    }

    /// Runs a command of the text; gives back what it printed.
    fn run(&mut self, text: &str, at: &str) -> Vec<String> {
        let script = self.with_ports(text);
        if let Some(script) = script.strip_suffix(" &") {
            self.start(script, at);
            return Vec::new();
        }
        for (command, is_gentle) in [("kill", true), ("kill -9", false)] {
            let rest = text.strip_prefix(command).and_then(|rest| rest.strip_prefix(" %"));
            if let Some(number) = rest.and_then(|rest| rest.split_once("; wait %")?.1.parse().ok()) {
                assert_eq!(text, format!("{command} %{number}; wait %{number}"), "{at}");
                self.stop(number, is_gentle, at);
                return Vec::new();
            }
        }
        let ran = self.command(&script).output().expect("a shell is there");
        let told = String::from_utf8_lossy(&ran.stdout).into_owned();
        let errors = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{at}: `{text}` ended with {}:\n{told}\n{errors}", ran.status);
        // A terminal shows both. What curl says there of its progress is left out.
        let errors = if text.starts_with("larder ") { errors } else { "".into() };
        told.lines().chain(errors.lines()).map(plain).collect()
    }

    /// Starts a job and waits until it serves.
    fn start(&mut self, script: &str, at: &str) {
        let number = self.jobs.last_key_value().map_or(1, |(last, _)| last + 1);
        let log = std::fs::File::create(self.directory.path().join(format!("job-{number}.log"))).expect("a file");
        let mut child = self
            .command(&format!("exec {script}"))
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("a shell is there");
        let name = script.split(' ').next().expect("a word").to_owned();
        let (app, admin) = (self.address("5000"), self.address("9090"));
        eventually(&format!("{at}: `{script}` serves"), || {
            let ended = child.try_wait().expect("it is ours");
            assert!(ended.is_none(), "{at}: `{script}` ended:\n{}", self.log(number));
            match name.as_str() {
                "larder" if script.starts_with("larder dev ") => self.log(number).contains("larder: open http://"),
                "flask" => std::net::TcpStream::connect(app).is_ok(),
                "larder" => {
                    std::net::TcpStream::connect(admin).is_ok()
                        && Client::connect(admin).get("/readyz", "Host: localhost").status() == 200
                }
                _ => panic!("{at}: nobody knows when {name} serves"),
            }
        });
        self.jobs.insert(number, (name, child));
    }

    fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.directory.path().join(format!("job-{number}.log"))).unwrap_or_default()
    }

    fn stop(&mut self, number: usize, is_gentle: bool, at: &str) {
        let (name, mut child) = self.jobs.remove(&number).unwrap_or_else(|| panic!("{at}: there is no job {number}"));
        if !is_gentle {
            child.kill().expect("it is ours");
            child.wait().expect("it is ours");
            return;
        }
        let sent = Command::new("kill").arg(child.id().to_string()).status().expect("kill is there");
        assert!(sent.success(), "{at}");
        let ended = child.wait().expect("it is ours");
        assert!(name != "larder" || ended.success(), "{at}: Larder ended with {ended}:\n{}", self.log(number));
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for (_, child) in self.jobs.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let Some(mut shell) = Shell::new() else { return };
    let mut modules = Vec::new();
    for block in PAGES.into_iter().flat_map(blocks) {
        let at = format!("{}:{}", block.page, block.line);
        match block.language.as_str() {
            "python" | "toml" => {
                if let Some(name) = block.file_name() {
                    shell.save(name, &block.text());
                    modules.extend(name.strip_suffix(".py").map(str::to_owned));
                } else {
                    assert_eq!(block.language, "toml", "{at}: the first line of a Python block names its file");
                }
            }
            "sh" | "console" => {
                for (command, output) in block.commands() {
                    if is_listed(&command) {
                        continue;
                    }
                    let told = shell.run(&command, &at);
                    let Some(output) = output else { continue };
                    let expected: Vec<_> = output.iter().map(|line| plain(&shell.with_ports(line))).collect();
                    assert!(
                        output_matches(&expected, &told),
                        "{at}: `{command}` prints\n{}\nand not\n{}",
                        told.join("\n"),
                        expected.join("\n")
                    );
                }
            }
            other => assert!(is_listed(other), "{at}: a block of {other:?} is neither run nor listed"),
        }
    }
    for module in modules {
        shell.run(&format!("python3 -c 'import {module}'"), &module);
    }
}

#[test]
fn every_configuration_of_the_readme_is_sound() {
    let directory = tempfile::tempdir().expect("a directory");
    for block in PAGES.into_iter().flat_map(blocks).filter(|block| block.language == "toml") {
        let file = directory.path().join("config.toml");
        std::fs::write(&file, block.text()).expect("it is written");
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(directory.path().join("chain.pem"), pair.cert.pem()).expect("it is written");
        let key = directory.path().join("key.pem");
        std::fs::write(&key, pair.signing_key.serialize_pem()).expect("it is written");
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        let checked = Command::new(env!("CARGO_BIN_EXE_larder"))
            .env_clear()
            .current_dir(directory.path())
            .arg("check")
            .arg("--config")
            .arg(&file)
            .output()
            .expect("it runs");
        let errors = String::from_utf8_lossy(&checked.stderr);
        let told = String::from_utf8_lossy(&checked.stdout);
        let is_sound = told.ends_with("ok\n") && !told.contains("warning: ");
        assert!(is_sound, "{}:{}: {told}{errors}", block.page, block.line);
    }
}

#[test]
fn what_is_not_run_is_in_the_readme() {
    let mut written: Vec<String> = Vec::new();
    for block in PAGES.into_iter().flat_map(blocks) {
        if ["sh", "console"].contains(&block.language.as_str()) {
            written.extend(block.commands().into_iter().map(|(command, _)| command));
        }
        written.push(block.language);
    }
    for (listed, reason) in NOT_RUN {
        assert!(written.iter().any(|written| written == listed), "{listed:?} ({reason}) is in no page any more");
    }
}

#[test]
fn the_readme_names_the_rust_that_it_needs() {
    let needed = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"));
    assert!(read(README).contains(needed), "{needed}");
}

/// The name that a heading has in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in PAGES {
        let from = Path::new(ROOT).join(page);
        for target in read(page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { from.clone() } else { from.with_file_name("").join(file) };
            let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{page}: {target}: {error}"));
            let headings = text.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
            assert!(
                wanted.is_empty() || headings.map(anchor).any(|heading| heading == wanted),
                "{page}: {target}: there is no such heading"
            );
        }
    }
}
