//! Certificates by ACME, from a CA that validates names for real.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::base::Clock;
use larder::downstream::Listen;

use crate::support::ca::{Ca, names_of, shown};
use crate::support::{Client, Larder, Origin, Place, Process, eventually, larder, out_of, post, run};

const HOUR: u32 = 3600;

/// Starts a Larder that gets certificates from `ca`.
fn start(ca: &Ca, origin: &Origin, domains: &str, more: &[String]) -> Larder {
    let sets = [ca.sets(domains), more.to_vec()].concat();
    Larder::at(&origin.url(), &sets.join("\n"), Clock::system())
}

fn in_directory(path: &Path) -> String {
    format!("tls.acme.state={}", path.display())
}

/// Returns the address of the listener with TLS.
fn https(larder: &Larder) -> SocketAddr {
    let addresses = larder.running().addresses().iter();
    let found = addresses.filter_map(|listen| if let Listen::Tls(text) = listen { Some(text) } else { None });
    found.into_iter().next_back().expect("a listener with TLS").parse().expect("an address")
}

/// Has the CA's connections lead to these Larders in turn.
fn lead_to(ca: &Ca, larders: &[&Larder]) {
    let plain: Vec<SocketAddr> = larders.iter().map(|larder| larder.address).collect();
    ca.lead_to(&plain, &larders.iter().map(|larder| https(larder)).collect::<Vec<_>>());
}

fn wait_for_certificate(larder: &Larder, name: &str) -> Vec<u8> {
    let mut leaf = None;
    eventually("there is a certificate", || {
        // For a name without one the first is shown.
        leaf = shown(https(larder), name).filter(|leaf| names_of(leaf).iter().any(|of| of == name));
        leaf.is_some()
    });
    leaf.expect("as waited for")
}

fn ready(larder: &Larder) -> String {
    let answer = Client::connect(larder.admin).get("/readyz", "Host: localhost");
    assert_eq!(answer.status(), 200, "it is ready without a certificate: the CA comes to who is ready");
    answer.text()
}

#[test]
fn a_certificate_is_issued_by_http_01_and_the_account_and_it_are_used_again_after_a_restart() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let sets =
        [in_directory(state.path()), "tls.acme.challenge=http-01".into(), "server.redirect_to_https=true".into()];
    // Nobody leads to it yet: it starts and serves, and says what it waits for.
    let larder = start(&ca, &origin, "shop.test www.shop.test, other.test", &sets);
    assert_eq!(shown(https(&larder), "shop.test"), None);
    assert!(ready(&larder).contains("{\"waiting_for\":[\"other.test\",\"shop.test\",\"www.shop.test\"]}"));
    eventually("the CA has refused", || larder.metric("larder_acme_orders_total{outcome=\"refused\"}") == 2);
    assert!(larder.metric("larder_acme_last_error_timestamp_seconds") > 0);
    larder.stop();
    // A CA's refusal holds up a new process as well; an operator may take it out of the state.
    remove_plans(state.path());

    let before = ca.counts();
    let larder = start(&ca, &origin, "shop.test www.shop.test, other.test", &sets);
    lead_to(&ca, &[&larder]);
    eventually("all are issued", || larder.metric("larder_acme_missing_names") == 0);
    assert_eq!(names_of(&wait_for_certificate(&larder, "www.shop.test")), ["shop.test", "www.shop.test"]);
    let leaf = wait_for_certificate(&larder, "other.test");
    assert_eq!(names_of(&leaf), ["other.test"]);
    assert!(ready(&larder).contains("\"certificates\":\"issued\""));
    assert_eq!(larder.metric("larder_acme_orders_total{outcome=\"issued\"}"), 2);
    assert!(larder.metric("larder_acme_challenges_total") >= 3);
    assert!(larder.metric("larder_acme_next_renewal_timestamp_seconds") > 1_700_000_000);
    assert_eq!(ca.counts(), (before.0, before.1 + 2, before.2 + 2), "one account, for all processes");
    // Requests that are no challenge are sent to https as ever.
    assert_eq!(larder.get("/", "Host: shop.test").status(), 308);
    larder.stop();

    let before = ca.requests();
    let larder = start(&ca, &origin, "shop.test www.shop.test, other.test", &sets);
    assert_eq!(shown(https(&larder), "other.test").as_ref(), Some(&leaf), "from the first handshake on");
    assert_eq!(ca.requests(), before, "there was nothing to ask for");
    larder.stop();
    all_are_for_their_owner_alone(state.path());
}

/// Removes what is remembered of failures.
fn remove_plans(state: &Path) {
    for ca in std::fs::read_dir(state).expect("the state") {
        let _ = std::fs::remove_dir_all(ca.expect("an entry").path().join("plans"));
    }
}

fn all_are_for_their_owner_alone(directory: &Path) {
    use std::os::unix::fs::MetadataExt;
    let mut found = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let mode = path.metadata().expect("it is there").mode() & 0o7777;
            assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
            found += usize::from(path.is_file());
            if path.is_dir() {
                directories.push(path);
            }
        }
    }
    assert!(found >= 2, "{found}");
}

#[test]
fn a_certificate_is_issued_by_tls_alpn_01() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let sets = [in_directory(state.path()), "tls.acme.challenge=tls-alpn-01".into()];
    let larder = start(&ca, &origin, "shop.test, www.shop.test", &sets);
    ca.lead_to(&[], &[https(&larder)]);
    assert_eq!(names_of(&wait_for_certificate(&larder, "www.shop.test")), ["www.shop.test"]);
    assert!(larder.metric("larder_acme_challenges_total") >= 2);
    assert_eq!(ca.counts(), (1, 2, 2));
}

#[test]
fn certificates_that_last_for_seconds_are_renewed_before_they_expire() {
    let Some(ca) = Ca::start(15) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    let mut leaves = vec![wait_for_certificate(&larder, "shop.test")];
    eventually("it is renewed twice", || {
        let leaf = shown(https(&larder), "shop.test").expect("no handshake fails");
        let until = not_after(&leaf);
        let now = Clock::system().now().as_secs();
        assert!(until > now, "it is renewed {} s too late", now - until);
        if leaves.last() != Some(&leaf) {
            leaves.push(leaf);
        }
        leaves.len() == 3
    });
    assert_eq!(ca.counts().0, 1, "one account");
    larder.stop();
    assert_eq!(files_below(state.path(), "certificates"), 2, "those before the last two are deleted");
}

fn not_after(leaf: &[u8]) -> i64 {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(leaf).expect("a certificate").1.validity().not_after.timestamp()
}

/// Returns the number of files with `part` in their paths.
fn files_below(directory: &Path, part: &str) -> usize {
    let mut found = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found += usize::from(path.display().to_string().contains(part));
            }
        }
    }
    found
}

#[test]
fn a_certificate_is_renewed_when_the_ca_says_and_names_the_one_that_it_replaces() {
    let Some(ca) = Ca::start(60) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let now = Clock::system().now().as_secs();
    ca.suggest("", now + 86_400, now + 90_000);
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    let first = wait_for_certificate(&larder, "shop.test");
    // Past the last tenth of the lifetime nothing is put off, whatever the CA says.
    let most = not_after(&first) - 6;
    let renewal = || i64::try_from(larder.metric("larder_acme_next_renewal_timestamp_seconds")).expect("small");
    eventually("the window counts", || renewal() == most);
    larder.stop();

    // It has been revoked: its window is over.
    let asked = ca.count("GET /ari/");
    let id = id_of(&first);
    ca.suggest(&id, now - 500, now - 400);
    expire_check(state.path());
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    eventually("it is renewed", || shown(https(&larder), "shop.test").is_some_and(|leaf| leaf != first));
    assert!(ca.count("GET /ari/") > asked);
    assert_eq!(ca.replaced(), [id], "the order names the one that it replaces");

    // A CA that does not take the replacement gets an order as any other.
    let second = shown(https(&larder), "shop.test").expect("a certificate");
    larder.stop();
    ca.refuse_replacing("alreadyReplaced", "somebody was faster");
    ca.suggest(&id_of(&second), now - 500, now - 400);
    expire_check(state.path());
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    eventually("it is renewed", || shown(https(&larder), "shop.test").is_some_and(|leaf| leaf != second));
    assert_eq!((ca.replaced().len(), ca.counts().2), (2, 3));
}

/// Returns the CA's name of a certificate (RFC 9773 §4.1).
fn id_of(leaf: &[u8]) -> String {
    instant_acme::CertificateIdentifier::try_from(&leaf.to_vec().into()).expect("an id").to_string()
}

/// Has the CA be asked for its window at once.
fn expire_check(state: &Path) {
    remove_plans(state);
}

#[test]
fn a_directory_that_fails_harms_nothing_and_is_asked_seldom() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    ca.fail(503, "");
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    let failed = "larder_acme_orders_total{outcome=\"unreachable\"}";
    eventually("it has failed", || larder.metric(failed) >= 2);
    assert_eq!(larder.get("/", "").status(), 200);
    let (failures, requests) = (larder.metric(failed), ca.requests());
    assert!(u64::try_from(requests).expect("few") <= failures + 1, "{requests} requests for {failures} attempts");
    ca.work();
    wait_for_certificate(&larder, "shop.test");
    assert_eq!(ca.counts(), (1, 1, 1));
    larder.stop();
}

#[test]
fn a_ca_that_asks_for_a_pause_gets_it_also_from_a_process_that_is_started_again() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    ca.fail(429, "Retry-After: 3600");
    let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
    lead_to(&ca, &[&larder]);
    eventually("it has failed", || larder.metric("larder_acme_last_error_timestamp_seconds") > 0);
    eventually("that is written", || files_below(state.path(), "plans") == 1);
    larder.stop();
    ca.work();
    let before = ca.requests();
    for _ in 0..2 {
        let larder = start(&ca, &origin, "shop.test", &[in_directory(state.path())]);
        lead_to(&ca, &[&larder]);
        // Long enough for several looks at the state.
        let looks = files_below(state.path(), "plans");
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!((ca.requests(), files_below(state.path(), "plans")), (before, looks));
        larder.stop();
    }
}

/// A Larder of its own process, and its address for https.
struct Node {
    process: Process,
    tls: SocketAddr,
}

impl Node {
    fn start(ca: &Ca, origin: &Origin, domains: &str, more: &[String]) -> Self {
        let sets = [ca.sets(domains), more.to_vec()].concat();
        let process = Process::start(&origin.url(), &sets.iter().map(String::as_str).collect::<Vec<_>>());
        let tls = tls_address(&process.log());
        Self { process, tls }
    }

    fn stop(mut self) {
        self.process.signal("-TERM");
        assert_eq!(self.process.wait(), Some(0));
    }

    fn kill_9(mut self) {
        self.process.signal("-KILL");
        self.process.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.process.log());
        }
    }
}

/// Two Larders with one state: one orders, whichever the CA comes to answers, and both use the certificate.
fn two_make_one_order(ca: &Ca, origin: &Origin, sets: &[String]) {
    let domains = "shop.test www.shop.test";
    let nodes: Vec<Node> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..2).map(|_| scope.spawn(|| Node::start(ca, origin, domains, sets))).collect();
        starting.into_iter().map(|one| one.join().expect("it starts")).collect()
    });
    let plain: Vec<SocketAddr> = nodes.iter().map(|node| node.process.address).collect();
    ca.lead_to(&plain, &nodes.iter().map(|node| node.tls).collect::<Vec<_>>());
    let mut leaves = [None, None];
    eventually("both have a certificate", || {
        leaves = [0, 1].map(|n: usize| shown(nodes[n].tls, "shop.test"));
        leaves.iter().all(Option::is_some)
    });
    assert_eq!(leaves[0], leaves[1], "they share it");
    assert_eq!(ca.counts(), (1, 1, 1));
    let answered: Vec<u64> = nodes.iter().map(|node| node.process.metric("larder_acme_challenges_total")).collect();
    assert!(answered.iter().all(|count| *count > 0), "the CA came to both: {answered:?}");
    nodes.into_iter().for_each(Node::stop);
}

#[test]
fn two_processes_with_one_directory_make_one_order_and_answer_for_each_other() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let sets = [in_directory(state.path()), "durable.url=off".into(), "tls.acme.challenge=http-01".into()];
    two_make_one_order(&ca, &origin, &sets);
    assert_eq!(files_below(state.path(), "claims") + files_below(state.path(), "challenges"), 0, "all is given back");
}

#[test]
fn two_processes_with_one_bucket_make_one_order_and_nothing_sweeps_the_state() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, place) = (Origin::echo(), Place::s3());
    let sets = [place.sets.clone(), vec!["tls.acme.challenge=tls-alpn-01".into()]].concat();
    two_make_one_order(&ca, &origin, &sets);
    let kept = || files_below(&place.directory(), "/larder-1/acme/");
    let before = kept();
    assert!(before >= 2, "the account and the certificate: {before}");

    let command = |words: &[&str]| {
        let sets: Vec<&str> = place.sets.iter().map(String::as_str).collect();
        let (code, out, error) = out_of(&run(larder(&sets).args(words)));
        assert_eq!(code, Some(0), "{out}{error}");
        out
    };
    command(&["sweep", "--min-age", "0s"]);
    assert_eq!(kept(), before, "a sweep spares it");
    let rules: serde_json::Value = serde_json::from_str(&command(&["lifecycle"])).expect("JSON");
    let name = "any/prefix/larder-1/acme/";
    for rule in rules["Rules"].as_array().expect("rules") {
        let prefix = rule["Filter"]["Prefix"].as_str().expect("a prefix");
        let spares = !name.starts_with(prefix) || rule["Expiration"]["Days"].is_null();
        assert!(spares, "no rule makes it expire: {rule}");
    }
    // A purge of everything, and a start after it.
    let node = Node::start(&ca, &origin, "shop.test www.shop.test", &sets);
    assert_eq!(post(node.process.admin, "/purge", "{\"all\": true}").status(), 200);
    node.process.settle();
    node.stop();
    let node = Node::start(&ca, &origin, "shop.test www.shop.test", &sets);
    assert!(shown(node.tls, "shop.test").is_some());
    assert_eq!(ca.counts(), (1, 1, 1));
    node.stop();
}

#[test]
fn kill_9_at_any_moment_costs_no_certificate() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let sets = [in_directory(state.path()), "durable.url=off".into()];
    // The next process is killed when the CA gets its n-th request.
    let (due, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((0_usize, usize::MAX))));
    let (is_due, counted) = (Arc::clone(&due), Arc::clone(&asked));
    ca.on_request(move |_| {
        let mut counted = counted.lock().unwrap();
        counted.0 += 1;
        if counted.0 == counted.1 {
            is_due.store(true, Ordering::SeqCst);
            // The answer goes to nobody.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let mut moments = 0;
    for moment in 1.. {
        *asked.lock().unwrap() = (0, moment);
        let node = Node::start(&ca, &origin, "shop.test", &sets);
        ca.lead_to(&[node.process.address], &[node.tls]);
        let mut is_issued = false;
        eventually("it is killed, or has a certificate", || {
            is_issued = shown(node.tls, "shop.test").is_some();
            is_issued || due.swap(false, Ordering::SeqCst)
        });
        node.kill_9();
        if is_issued {
            break;
        }
        moments += 1;
        // Failures that the CA counts would hold up the next process.
        remove_plans(state.path());
    }
    assert!(moments >= 5, "it was killed only {moments} times");
    assert_eq!(ca.counts().2, 1, "the CA signed one certificate");
}

/// Returns the address that the log names for https.
fn tls_address(log: &str) -> SocketAddr {
    let (_, rest) = log.split_once("listening on https://").unwrap_or_else(|| panic!("no https in {log}"));
    rest.split([',', ' ', '"', '\n', '/']).next().expect("an address").parse().expect("an address")
}

#[test]
fn what_nobody_has_ordered_goes_to_the_application() {
    let Some(ca) = Ca::start(HOUR) else { return };
    let (origin, state) = (Origin::echo(), tempfile::tempdir().expect("a directory"));
    let sets = [in_directory(state.path()), "server.redirect_to_https=true".into()];
    let larder = start(&ca, &origin, "shop.test", &sets);
    let path = "/.well-known/acme-challenge/strange";
    let answer = larder.get(path, "");
    assert_eq!((answer.status(), answer.text().contains(path)), (200, true));
    // No application is asked in clear text for anything else, however it reads the path.
    for path in ["", "a%2Fb", "a/b", "../../admin", "%2e%2e/%2e%2e/admin"] {
        assert_eq!(larder.get(&format!("/.well-known/acme-challenge/{path}"), "").status(), 308, "{path}");
    }
    for method in ["PUT", "POST", "DELETE"] {
        let raw = format!("{method} {path} HTTP/1.1\r\nHost: site.example\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(larder.send_raw(raw).status(), 308, "{method}");
    }
    larder.stop();
}

#[test]
fn keys_that_do_not_go_together_are_told_by_check() {
    let state = tempfile::tempdir().expect("a directory");
    let sets = ["tls.acme.domains=shop.test", &in_directory(state.path())];
    let (code, out, error) = out_of(&run(larder(&sets).arg("check")));
    assert_eq!(code, Some(2));
    assert!(format!("{out}{error}").contains("tls.acme.accept_terms: it is false"), "{out}{error}");
}
