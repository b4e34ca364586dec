//! Tests of values, each of which goes into the entry of the one before.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::entry::ValueKey;

fn value_key(name: &str) -> ValueKey {
    ValueKey::new("", 0, name.as_bytes())
}

fn value(name: &str, body: &[u8]) -> Arc<StoredResponse> {
    let head = StoredHead::of_value(&value_key(name), None, NOW, 0, Arc::default());
    Arc::new(StoredResponse::with_own_body(head, body.into()))
}

fn bytes_of(memory: &Memory, name: &str) -> Option<Vec<u8>> {
    match memory.lookup(value_key(name).key(), &HeaderMap::new()) {
        Lookup::Found(stored) => stored.own_body().map(<[u8]>::to_vec),
        Lookup::OtherVariants(_) | Lookup::Nothing => None,
    }
}

#[test]
fn a_value_takes_the_entry_of_the_one_before() {
    let memory = with(MemoryPolicy::TinyLfu, 1 << 20);
    let hash = value_key("a").key().hash();
    let set = |byte: u8, len: usize| assert!(memory.put_value(&value("a", &vec![byte; len]), &|| true));
    set(b'1', 10);
    let (entry, bytes) = (memory.entries.place_of_value(hash).expect("there"), memory.usage().1);
    set(b'2', 2010);
    let same = memory.entries.place_of_value(hash).expect("there");
    assert!(Arc::ptr_eq(&entry, &same) && bytes_of(&memory, "a") == Some(vec![b'2'; 2010]));
    assert_eq!(memory.usage(), (1, bytes + 2000));
    memory.entries.audit();
    // A value that comes after a removal has an entry of its own, which no reader of the old one sees.
    memory.remove(hash, || ());
    set(b'3', 10);
    let other = memory.entries.place_of_value(hash).expect("there");
    assert!(!Arc::ptr_eq(&entry, &other) && entry.lock().own_body() == Some(&[b'2'; 2010][..]));
    // One that may not be kept leaves nothing.
    assert!(!memory.put_value(&value("a", b"4"), &|| false));
    assert_eq!((bytes_of(&memory, "a"), memory.usage()), (None, (0, 0)));
    memory.entries.audit();
}

/// One that is written over and over, and not read, is no less recent than others that are.
#[test]
fn a_value_that_is_written_all_the_time_stays() {
    let memory = full(MemoryPolicy::TinyLfu);
    assert!(memory.put_value(&value("a", &[b'x'; 1000]), &|| true));
    bytes_of(&memory, "a");
    bytes_of(&memory, "a");
    for round in 0..100 {
        (0..20).for_each(|n| put(&memory, &format!("/scan/{round}/{n}"), 4096));
        assert!(memory.put_value(&value("a", &[b'x'; 1000]), &|| true));
        assert!(memory.holds(value_key("a").key().hash()), "{round}");
    }
    memory.entries.audit();
}

/// Many threads write, purge and read the same values in a memory that is too small for them.
#[test]
fn no_value_comes_back_after_a_purge() {
    const KEYS: usize = 16;
    for policy in POLICIES {
        let memory = with(policy, 12_000);
        let begun: [AtomicU64; KEYS] = std::array::from_fn(|_| AtomicU64::new(0));
        let returned: [AtomicU64; KEYS] = std::array::from_fn(|_| AtomicU64::new(0));
        std::thread::scope(|scope| {
            for seed in 0..6 {
                let (memory, begun, returned) = (&memory, &begun, &returned);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..5000 {
                        let n = random.usize(..KEYS);
                        let name = n.to_string();
                        match random.u32(..20) {
                            0..2 => {
                                let purge = || begun[n].fetch_add(1, Ordering::SeqCst) + 1;
                                let made = memory.remove(value_key(&name).key().hash(), purge);
                                returned[n].fetch_max(made, Ordering::SeqCst);
                            }
                            2..12 => {
                                let asked = begun[n].load(Ordering::SeqCst);
                                let body = format!("{asked:>len$}", len = random.usize(10..1500));
                                let may_keep = || begun[n].load(Ordering::SeqCst) == asked;
                                memory.put_value(&value(&name, body.as_bytes()), &may_keep);
                            }
                            _ => {
                                let purged = returned[n].load(Ordering::SeqCst);
                                if let Some(body) = bytes_of(memory, &name) {
                                    let body = std::str::from_utf8(&body).expect("a number").trim();
                                    assert!(body.parse::<u64>().expect("a number") >= purged, "{policy:?}: {name}");
                                }
                            }
                        }
                    }
                });
            }
        });
        assert!(memory.usage().1 <= 12_000, "{policy:?}");
        memory.entries.audit();
    }
}

#[test]
fn a_value_that_is_overwritten_is_never_absent() {
    for policy in POLICIES {
        let memory = with(policy, 1 << 20);
        memory.put_value(&value("a", b"0"), &|| true);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20_000_usize {
                    memory.put_value(&value("a", &vec![b'x'; 1 + n % 300]), &|| true);
                }
                is_done.store(true, Ordering::SeqCst);
            });
            while !is_done.load(Ordering::SeqCst) {
                assert!(bytes_of(&memory, "a").is_some(), "{policy:?}");
            }
        });
    }
}
