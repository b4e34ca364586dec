//! Finds the key that was meant, and the place of a duplicate, to help mend a mistake.

/// Returns what to do about a key that no section has: the end of a sentence, or nothing.
pub(super) fn hint(known: &[String], key: &str) -> String {
    misplaced(known, key)
        .or_else(|| nearest(known, key).map(|known| format!("the nearest key is \"{known}\"")))
        .map_or_else(String::new, |hint| format!("; {hint}"))
}

/// Returns what to do about a key of an upstream that is in the wrong place: the nearest key would mislead.
fn misplaced(known: &[String], key: &str) -> Option<String> {
    let parts: Vec<&str> = key.split('.').collect();
    Some(match parts[..] {
        ["upstream"] => {
            "[upstream] is one section, in single brackets; further applications are [upstreams.NAME]".to_owned()
        }
        ["upstream", "weight" | "backup"] | ["upstreams", _, "weight" | "backup"] => {
            "it is said of one address, behind its URL: url = [\"http://10.0.0.2:8000\", \
             \"http://10.0.0.3:8000 weight=2\", \"http://10.0.0.9:8000 backup\"]"
                .to_owned()
        }
        ["upstream", name, _] => format!("the section of a further application is [upstreams.{name}]"),
        [rule, name] if rule.starts_with("rule[") && known.iter().any(|known| *known == format!("upstream.{name}")) => {
            format!("an upstream has it, and no rule: set {name} in [upstream] or [upstreams.NAME]")
        }
        _ => return None,
    })
}

/// The known key that is most likely meant by `key`: one of the same section, if there is such a section,
/// unless another one has a key of exactly that name and this one nothing like it.
pub(super) fn nearest<'a>(known: &'a [String], key: &str) -> Option<&'a String> {
    let nearest = |among: &mut dyn Iterator<Item = &'a String>| {
        among.map(|known| (strsim::damerau_levenshtein(known, key), known)).min_by_key(|(distance, _)| *distance)
    };
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let is_of = |known: &String| known.rsplit_once('.').is_some_and(|(of, _)| of == section);
    let Some((distance, same)) = nearest(&mut known.iter().filter(|known| is_of(known))) else {
        // Another section's key helps only if it is much like this one.
        return nearest(&mut known.iter()).filter(|(distance, _)| 2 * distance <= name.len()).map(|(_, known)| known);
    };
    let elsewhere = known.iter().find(|known| known.rsplit_once('.').is_some_and(|(_, other)| other == name));
    Some(elsewhere.filter(|_| 2 * distance > name.len()).unwrap_or(same))
}

/// The number of the line that has the byte at `at`.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + memchr::memchr_iter(b'\n', &text.as_bytes()[..at.min(text.len())]).count()
}

/// Names the key at `at`, which is there for the second time, and where it is for the first.
pub(super) fn duplicate(text: &str, at: std::ops::Range<usize>) -> String {
    let name = text.get(at.clone()).unwrap_or_default().trim_matches(['"', '\'']);
    let line = line_of(text, at.start);
    let header = |line: &str| line.trim_start().starts_with('[');
    let before = || text.lines().take(line - 1).enumerate();
    let place = |found: Option<usize>| found.map_or_else(String::new, |index| format!(", first on line {}", index + 1));
    if text.lines().nth(line - 1).is_some_and(header) {
        let first = before().find(|(_, line)| header(line) && line.trim().trim_matches(['[', ']', ' ']) == name);
        return format!(
            "[{name}] is there twice{}; put its keys under one of them",
            place(first.map(|(index, _)| index))
        );
    }
    let last = before().filter(|(_, line)| header(line)).last();
    let from = last.map_or(0, |(index, _)| index);
    let is_it = |line: &str| {
        let rest = line.trim_start().trim_start_matches(['"', '\'']).strip_prefix(name);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', '.']))
    };
    let first = before().skip(from).find(|(_, line)| is_it(line)).map(|(index, _)| index);
    let section = last.map_or_else(String::new, |(_, line)| {
        let section = line.split('#').next().unwrap_or_default().trim();
        let of_same = before().filter(|(_, line)| line.trim_start().starts_with(section)).count();
        let is_list = section.starts_with("[[");
        let section = section.trim_matches(['[', ']', ' ']);
        if is_list { format!("{section}[{}].", of_same - 1) } else { format!("{section}.") }
    });
    format!("{section}{name} is given twice{}; keep one of them", place(first))
}
