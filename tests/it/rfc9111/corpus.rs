//! Runs the fuzz targets (the rules, the encodings of the durable tier, and what Redis clients and load balancers send)
//! on the corpora that are committed with them.

use std::path::Path;

#[path = "../../../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_seed_passes_its_target() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let all: [(&str, fn(&[u8])); 10] = [
        ("directives", targets::directives),
        ("dates", targets::dates),
        ("vary", targets::vary),
        ("ranges", targets::ranges),
        ("structured", targets::structured),
        ("object", targets::object),
        ("entry", targets::entry),
        ("footer", targets::footer),
        ("resp", targets::resp),
        ("proxy_header", targets::proxy_header),
    ];
    for (name, target) in all {
        let seeds: Vec<_> = std::fs::read_dir(corpora.join(name)).expect("a corpus").collect();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            let bytes = std::fs::read(seed.expect("a seed").path()).expect("readable");
            target(&bytes);
            // Cut off, and with a byte changed, at every place.
            for at in 0..bytes.len() {
                target(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 0x11;
                target(&changed);
            }
        }
    }
}
