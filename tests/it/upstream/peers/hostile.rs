//! Tests peers that keep no promise: in time, and in what they answer.

use super::*;

/// A peer that greets as one does, by passing each greeting on to a node, and answers each question by a script.
struct Impostor {
    /// The listener that the other node knows.
    listener: Origin,
    /// The node that is greeted in its place.
    _node: Larder,
    asking: Larder,
}

impl Impostor {
    fn new(origin: &Origin, config: &str, script: impl Fn(&Seen, &mut Reply) + Send + Sync + 'static) -> Self {
        let addresses = free_addresses(2);
        let greeted = addresses[1].parse().expect("an address");
        let listener = Origin::new(move |seen, reply| {
            let Some(number) = seen.head.get("larder-peer-hello") else { return script(seen, reply) };
            let proof = seen.head.get("larder-peer-proof").expect("a proof");
            let fields = format!("larder-peer-hello: {number}\nlarder-peer-proof: {proof}");
            let answer = Client::connect(greeted).get("/", &fields);
            let told =
                |name: &str| format!("larder-peer-{name}: {}", answer.get(&format!("larder-peer-{name}")).unwrap());
            reply.send(200, &["verdict", "id", "proof"].map(told).join("\n"), "");
        });
        let strange = listener.url().replace("http://", "");
        let node = |address: &String, list: &[String]| {
            let list = list_of(list);
            let sets = format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\n{config}");
            Larder::at(&origin.url(), &sets, Clock::manual(START))
        };
        let relayed = node(&addresses[1], &addresses[1..]);
        wait_for_peers(relayed.admin, &addresses[1..], 1);
        let asking = node(&addresses[0], &[addresses[0].clone(), strange.clone()]);
        wait_for_peers(asking.admin, &[addresses[0].clone(), strange], 1);
        Self { listener, _node: relayed, asking }
    }

    /// Returns paths in its share.
    fn paths(&self) -> impl Iterator<Item = String> {
        let strange = self.listener.url().replace("http://", "");
        (0..10_000).map(|n| format!("/{n}")).filter(move |path| named(self.asking.admin, path).ends_with(&strange))
    }
}

/// The fields of a shared answer, with no purge known.
const SHARED: &str =
    "larder-peer-verdict: shared\nlarder-peer-known: 00000000000000000000\nlarder-peer-tags:\nlarder-peer-held-for: 0";

#[test]
fn a_peer_that_only_ever_says_that_it_waits_costs_nobody_an_answer() {
    let origin = Origin::cacheable();
    let config = "upstream.connect_timeout=500ms\nupstream.response_timeout=500ms\npeers.timeout=5s";
    let impostor = Impostor::new(&origin, config, |_, reply| {
        while reply.try_raw("HTTP/1.1 102 X\r\nlarder-peer-verdict: waits\r\n\r\n") {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let paths: Vec<String> = impostor.paths().take(2).collect();
    let asking = &impostor.asking;
    assert_eq!(asking.get(&paths[0], "").status(), 200, "the origin is asked");
    assert_eq!(asked(asking, "silent"), 1);
    // It answers greetings all the while.
    let greetings = impostor.listener.requests.value();
    impostor.listener.requests.wait_for(greetings + 2);
    assert_eq!(asking.get(&paths[1], "").status(), 200);
    assert_eq!(asked(asking, "silent"), 1, "it is not asked again soon");
    assert_eq!(origin.count(), 2);
}

/// An application that gives no answer before the gate is open, and breaks off then.
fn hanging() -> (Origin, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::new(move |_, reply| {
        held.wait();
        reply.hang_up();
    });
    (origin, gate)
}

#[test]
fn an_application_that_is_slow_for_a_peer_is_not_asked_once_more() {
    let (origin, gate) = hanging();
    let nodes =
        Nodes::start(&origin, 2, "peers.timeout=10s\nupstream.response_timeout=1s\nupstream.connect_timeout=20s");
    let (_, others) = nodes.named("/slow");
    assert_eq!(nodes.nodes[others[0]].get("/slow", "").status(), 504);
    assert_eq!(origin.count(), 1);
    gate.open();
}

#[test]
fn a_peer_ends_its_wait_when_the_asking_node_would() {
    let (origin, gate) = hanging();
    let addresses = free_addresses(2);
    let list = list_of(&addresses);
    let node = |address: &String, more: &str| {
        let sets = format!("peers.listen={address}\n{list}\n{TOKEN}\npeers.interval=100ms\npeers.timeout=10s\n{more}");
        Larder::at(&origin.url(), &sets, Clock::manual(START))
    };
    // The one that is asked would wait for longer.
    let (short, long) =
        (node(&addresses[0], "upstream.response_timeout=1s\nupstream.connect_timeout=1s"), node(&addresses[1], ""));
    for admin in [short.admin, long.admin] {
        wait_for_peers(admin, &addresses, 1);
    }
    let path = path_of(short.admin, &addresses[1]);
    assert_eq!(short.get(path, "").status(), 504);
    assert_eq!((origin.count(), asked(&short, "declined"), asked(&short, "silent")), (1, 1, 0));
    wait_for_peers(short.admin, &addresses, 1);
    gate.open();
}

#[test]
fn an_answer_of_a_peer_that_answers_another_question_reaches_no_client() {
    let origin = Origin::cacheable();
    let answers: [(&str, String); 10] = [
        ("304", format!("HTTP/1.1 304 X\n{SHARED}\n\n")),
        ("304 of its own", "HTTP/1.1 304 X\nlarder-peer-verdict: own\n\n".into()),
        ("206", format!("HTTP/1.1 206 X\nContent-Range: bytes 0-0/9\nContent-Length: 1\n{SHARED}\n\nx")),
        (
            "206 of its own",
            "HTTP/1.1 206 X\nContent-Range: bytes 0-0/9\nContent-Length: 1\nlarder-peer-verdict: own\n\nx".into(),
        ),
        ("412", "HTTP/1.1 412 X\nContent-Length: 0\nlarder-peer-verdict: own\n\n".into()),
        ("416", "HTTP/1.1 416 X\nContent-Length: 0\nlarder-peer-verdict: own\n\n".into()),
        ("401 of something before it", "HTTP/1.1 401 X\nContent-Length: 0\n\n".into()),
        ("502 of something before it", "HTTP/1.1 502 X\nContent-Length: 0\n\n".into()),
        ("no end", format!("HTTP/1.1 200 X\nConnection: close\nCache-Control: max-age=60\n{SHARED}\n\nx")),
        ("half of what is told", "HTTP/1.1 200 X\nContent-Length: 1\nlarder-peer-verdict: shared\n\nx".into()),
    ];
    let next = Arc::new(AtomicUsize::new(0));
    let impostor = Impostor::new(&origin, "peers.timeout=10s", {
        let (next, answers) = (Arc::clone(&next), answers.clone());
        move |_, reply| {
            reply.raw(answers[next.load(Ordering::SeqCst)].1.replace('\n', "\r\n"));
            reply.hang_up();
        }
    });
    for ((n, (case, _)), path) in answers.iter().enumerate().zip(impostor.paths()) {
        next.store(n, Ordering::SeqCst);
        let answer = impostor.asking.get(&path, "");
        assert_eq!((answer.status(), answer.text()), (200, path.clone()), "{case}: {:?}", answer.head);
        assert_eq!(asked(&impostor.asking, "strange"), n as u64 + 1, "{case}");
    }
    assert_eq!(origin.count(), answers.len());
}
