//! Puts the CA's errors into words: what it said, cut and cleaned, and what the operator can do about it.

use std::error::Error as _;
use std::time::Duration;

use instant_acme::{ChallengeType, Error, Problem};

use super::plan::Trouble;
use crate::store::StoreError;

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    /// The rest of a sentence that says what happened, and what to do.
    pub(super) told: String,
    /// The pause that the CA asks for.
    pub(super) said: Option<Duration>,
    /// True if the CA does not know the account any more.
    pub(super) is_account_gone: bool,
    /// True if the CA does not take this order as the replacement of an older certificate.
    pub(super) is_no_replacement: bool,
}

/// The most characters that are quoted of what others say.
const MOST_QUOTED: usize = 300;

impl Failure {
    pub(super) fn new(trouble: Trouble, told: impl Into<String>) -> Self {
        Self { trouble, told: told.into(), said: None, is_account_gone: false, is_no_replacement: false }
    }

    pub(super) fn of_state(error: &StoreError) -> Self {
        Self::new(Trouble::State, format!("the state (tls.acme.state) can't be used: {error}"))
    }

    /// The failure of a request. `said` is the `Retry-After` of the answer, if it had one.
    pub(super) fn of(error: &Error, said: Option<Duration>) -> Self {
        match error {
            Error::Api(problem) => Self { said, ..Self::of_problem(problem, None) },
            Error::Str("invalid order state") | Error::Unsupported(_) => Self {
                said,
                ..Self::new(Trouble::Refused, format!("the CA's answer is not what was asked for: {error}"))
            },
            Error::Other(_) | Error::Str(_) if error.to_string().contains("replaces field mismatch") => Self {
                is_no_replacement: true,
                ..Self::new(Trouble::Unreachable, "the CA ignores which certificate is replaced")
            },
            Error::Timeout(_) => Self {
                said,
                ..Self::new(
                    Trouble::Unreachable,
                    "the CA has not come to a decision yet; the order goes on at the next attempt",
                )
            },
            error => {
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    let cause_text = cause.to_string();
                    if !text.contains(&cause_text) {
                        text = format!("{text}: {cause_text}");
                    }
                    source = cause.source();
                }
                let told = format!("the CA (tls.acme.directory) can't be asked: {}", clean(&text));
                Self { said, ..Self::new(Trouble::Unreachable, told) }
            }
        }
    }

    /// The failure that the CA tells by a problem document, about `name` if that is known.
    pub(super) fn of_problem(problem: &Problem, about: Option<(&str, &ChallengeType)>) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
        let mut detail = problem.detail.clone().unwrap_or_default();
        for part in &problem.subproblems {
            detail = format!("{detail}; {part}");
        }
        let said = if detail.is_empty() { format!("({kind})") } else { format!("\"{}\" ({kind})", clean(&detail)) };
        let name = about.map_or_else(String::new, |(name, _)| format!(" about {name}"));
        let hint = hint(kind, about).map_or_else(String::new, |hint| format!(". {hint}"));
        let trouble = match kind {
            "rateLimited" => Trouble::TooOften,
            "serverInternal" | "badNonce" | "orderNotReady" | "accountDoesNotExist" => Trouble::Unreachable,
            _ if problem.status.is_some_and(|status| status >= 500) => Trouble::Unreachable,
            _ if problem.status == Some(429) => Trouble::TooOften,
            _ => Trouble::Refused,
        };
        let text = detail.to_ascii_lowercase();
        let speaks_of_it = ["replace", "ari "].iter().any(|word| text.contains(word));
        Self {
            is_account_gone: kind == "accountDoesNotExist",
            is_no_replacement: kind == "alreadyReplaced"
                || (matches!(kind, "malformed" | "unauthorized" | "conflict") && about.is_none() && speaks_of_it),
            ..Self::new(trouble, format!("the CA says{name}: {said}{hint}"))
        }
    }
}

/// Returns what an operator can do about a problem of this kind (RFC 8555 §6.7).
fn hint(kind: &str, about: Option<(&str, &ChallengeType)>) -> Option<String> {
    let (name, challenge) = about.map_or(("the name", None), |(name, challenge)| (name, Some(challenge)));
    let door = match challenge {
        Some(ChallengeType::TlsAlpn01) => {
            "port 443, which has to lead to an https listener of Larder without another TLS before it"
        }
        Some(_) | None => "port 80, which has to lead to an http listener of Larder",
    };
    Some(match kind {
        "connection" => format!(
            "The CA connects to {door}: open it to the internet (firewall, NAT, load balancer, all addresses of {name}, IPv6 too), \
             or choose the other tls.acme.challenge"
        ),
        "dns" => format!("Give {name} an A or AAAA record that leads here, and wait until it is known everywhere"),
        "caa" => format!(
            "A CAA record of {name}, or of a domain above it, forbids this CA: add it there, or name another directory"
        ),
        "unauthorized" | "incorrectResponse" => {
            format!(
                "Something else than this Larder answered for {name}: check where its A and AAAA records and {door} lead"
            )
        }
        "tls" => format!("The handshake failed: check that {door}"),
        "rateLimited" => "Use the staging directory until all else works; see docs/acme.md for the limits".into(),
        "rejectedIdentifier" => "This CA gives no certificate for the name: take it out of tls.acme.domains".into(),
        "externalAccountRequired" => {
            "This CA wants accounts that are bound to a customer's (EAB), which Larder can't do".into()
        }
        "userActionRequired" => "Visit the address that the CA names, and agree to its new terms".into(),
        "accountDoesNotExist" => "A new account is made at the next attempt".into(),
        "invalidProfile" => "See tls.acme.profile".into(),
        _ => return None,
    })
}

/// Returns a text of others on one line, without control characters, and cut.
pub(super) fn clean(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_QUOTED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, detail: &str, status: u16) -> Problem {
        let told = serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status});
        serde_json::from_value(told).expect("a problem")
    }

    #[test]
    fn what_the_ca_says_is_quoted_in_one_short_line() {
        assert_eq!(clean("a\r\nlevel=error \u{1b}[31m\tb"), "a level=error [31m b");
        let long = clean(&"é".repeat(1000));
        assert_eq!(long.chars().count(), MOST_QUOTED + 1);
        let failure = Failure::of_problem(&problem("malformed", "one\ntwo", 400), None);
        assert_eq!(failure.told, "the CA says: \"one two\" (malformed)");
    }

    #[test]
    fn each_kind_of_problem_is_tried_again_in_its_own_time_with_what_to_do() {
        let http = Some(("a.example", &ChallengeType::Http01));
        for (kind, status, about, trouble, said) in [
            ("connection", 400, http, Trouble::Refused, "port 80"),
            ("connection", 400, Some(("a.example", &ChallengeType::TlsAlpn01)), Trouble::Refused, "port 443"),
            ("dns", 400, http, Trouble::Refused, "A or AAAA record"),
            ("caa", 403, http, Trouble::Refused, "CAA"),
            ("unauthorized", 403, http, Trouble::Refused, "Something else"),
            ("rateLimited", 429, None, Trouble::TooOften, "staging"),
            ("rateLimited", 400, None, Trouble::TooOften, "staging"),
            ("serverInternal", 500, None, Trouble::Unreachable, "the CA says"),
            ("anything", 503, None, Trouble::Unreachable, "the CA says"),
            ("anything", 429, None, Trouble::TooOften, "the CA says"),
            ("externalAccountRequired", 403, None, Trouble::Refused, "EAB"),
        ] {
            let failure = Failure::of_problem(&problem(kind, "so", status), about);
            assert_eq!(failure.trouble, trouble, "{kind}");
            assert!(failure.told.contains(said), "{kind}: {}", failure.told);
        }
        assert!(Failure::of_problem(&problem("accountDoesNotExist", "", 400), None).is_account_gone);
    }

    #[test]
    fn an_order_that_may_not_replace_is_told_from_others() {
        for (kind, detail, is_no_replacement) in [
            ("alreadyReplaced", "it has already been replaced", true),
            ("malformed", "Could not validate ARI 'replaces' field", true),
            ("unauthorized", "Could not validate ARI 'replaces' field :: requester account did not request it", true),
            ("malformed", "the CSR is bad", false),
            ("rateLimited", "too many certificates; no replacement", false),
        ] {
            let failure = Failure::of_problem(&problem(kind, detail, 400), None);
            assert_eq!(failure.is_no_replacement, is_no_replacement, "{kind} {detail}");
        }
    }
}
