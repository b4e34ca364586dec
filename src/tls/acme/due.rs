//! Decides what is due for a certificate, and by which challenge it is ordered. Pure: `now` is a parameter.

use instant_acme::ChallengeType;
use xxhash_rust::xxh3::xxh3_64;

use super::certificate::Issued;
use super::config::ChallengeChoice;
use super::plan::Dice;
use super::records::{Failures, Plan};
use super::state::Stored;
use crate::rfc9111::timestamp::Timestamp;

/// A process that was just started tries again what was refused no sooner than this after it was: a process that is started
/// again and again makes no more than five attempts an hour.
const AFTER_START: i64 = 12 * 60;

/// A certificate is replaced at this age in milliseconds, or at a tenth of its lifetime, at the soonest.
const LEAST_AGE: i64 = 12 * 3_600_000;

/// A pause that is said to be longer is not believed.
const LONGEST_PAUSE: i64 = 8 * 24 * 3600;

/// The listeners by which a CA may reach this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doors {
    /// There is one of http on port 80.
    pub(crate) has_port_80: bool,
    /// There is one of http.
    pub(crate) has_http: bool,
    /// There is one of https.
    pub(crate) has_https: bool,
}

impl Doors {
    /// Returns the challenge to ask for after `failures`. Where both may do, a failure leads to the other one.
    pub(super) fn challenge(self, choice: ChallengeChoice, failures: u32) -> ChallengeType {
        let first = match choice {
            ChallengeChoice::Http01 => return ChallengeType::Http01,
            ChallengeChoice::TlsAlpn01 => return ChallengeType::TlsAlpn01,
            ChallengeChoice::Auto if !self.has_https => return ChallengeType::Http01,
            ChallengeChoice::Auto if !self.has_http => return ChallengeType::TlsAlpn01,
            ChallengeChoice::Auto => self.has_port_80,
        };
        if first == failures.is_multiple_of(2) { ChallengeType::Http01 } else { ChallengeType::TlsAlpn01 }
    }
}

/// The next thing to do for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// A certificate is to be ordered.
    Order,
    /// The CA is to be asked when to renew.
    Window,
}

/// Decides what there is to do about a certificate.
pub(super) fn due(stored: Option<&Stored>, plan: &Plan, now: Timestamp, since: Timestamp) -> Due {
    if let Some(failures) = &plan.failures
        && now < next_attempt(failures, since)
    {
        return Due::Nothing;
    }
    let Some(stored) = stored else { return Due::Order };
    let issued = &stored.issued;
    let is_over = now >= renew_at(issued, plan) || now >= issued.validity.until;
    if is_over && !is_new(stored, now) {
        return Due::Order;
    }
    let is_of_this = issued.id.is_some() && plan.certificate == issued.id;
    let is_time = |check_at: i64| {
        let ahead = Timestamp::from_secs(check_at).millis_since(now);
        ahead <= 0 || ahead > LONGEST_PAUSE * 1000
    };
    match (&issued.id, plan.check_at.filter(|_| is_of_this)) {
        (None, _) => Due::Nothing,
        (Some(_), Some(check_at)) if !is_time(check_at) => Due::Nothing,
        (Some(_), _) => Due::Window,
    }
}

/// Returns whether a certificate was got just now. It is not replaced then, whatever the CA or this machine's clock says: a
/// clock that is months ahead would order without end.
fn is_new(stored: &Stored, now: Timestamp) -> bool {
    let tenth = stored.issued.validity.until.millis_since(stored.issued.validity.from) / 10;
    (0..tenth.min(LEAST_AGE)).contains(&now.millis_since(stored.since))
}

/// Returns when to try again after failures, for a process that runs `since` then.
fn next_attempt(failures: &Failures, since: Timestamp) -> Timestamp {
    let planned = failures.retry_at;
    // An operator who starts Larder anew has mostly changed something.
    let is_of_another = since.as_secs() > failures.failed_at;
    let soonest = if is_of_another { planned.min(failures.failed_at + AFTER_START) } else { planned };
    let at = soonest.max(failures.not_before.unwrap_or(0)).min(failures.failed_at + LONGEST_PAUSE);
    Timestamp::from_secs(at)
}

/// Returns when to renew a certificate: as the CA suggests, or by its lifetime.
pub(super) fn renew_at(issued: &Issued, plan: &Plan) -> Timestamp {
    let suggested = plan.renew_at.filter(|_| issued.id.is_some() && plan.certificate == issued.id);
    suggested.map_or_else(|| issued.validity.renew_at(dice_of(issued)), Timestamp::from_secs)
}

/// Returns a dice that always falls the same for a certificate, so that all processes come to the same moment.
fn dice_of(issued: &Issued) -> Dice {
    let hash = xxh3_64(issued.id.as_deref().unwrap_or_default().as_bytes());
    #[expect(clippy::cast_precision_loss, reason = "a part of the whole")]
    let dice = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    dice
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::certificate::tests::issued;
    use super::super::plan::Trouble;
    use super::*;

    fn failures(trouble: Trouble, failed_at: i64, retry_at: i64) -> Failures {
        Failures { count: 3, trouble, failed_at, retry_at, not_before: None, told: String::new() }
    }

    #[test]
    fn what_is_due_follows_from_certificate_plan_and_time() {
        let (chain, key) = issued(&["a.example"]);
        let issued = Issued::read(&chain, &key).expect("a pair");
        let (from, until) = (issued.validity.from.as_secs(), issued.validity.until.as_secs());
        let at = |part: i64| Timestamp::from_secs(from + (until - from) / 100 * part);
        let id = issued.id.clone();
        let stored = Stored { issued: Arc::new(issued), account: "https://ca/1".into(), since: at(0) };
        let none = Plan::default();
        let judged = |stored: Option<&Stored>, plan: &Plan, now| due(stored, plan, now, Timestamp::default());
        assert_eq!(judged(None, &none, at(0)), Due::Order);
        assert_eq!(judged(Some(&stored), &none, at(10)), Due::Window);
        assert_eq!(judged(Some(&stored), &none, at(67)), Due::Order, "two thirds");
        assert_eq!(judged(Some(&stored), &none, at(200)), Due::Order, "expired");
        let planned = |renew: i64, check: i64| Plan {
            certificate: id.clone(),
            renew_at: Some(at(renew).as_secs()),
            check_at: Some(at(check).as_secs()),
            ..Plan::default()
        };
        assert_eq!(judged(Some(&stored), &planned(80, 11), at(10)), Due::Nothing);
        assert_eq!(judged(Some(&stored), &planned(80, 11), at(11)), Due::Window);
        assert_eq!(judged(Some(&stored), &planned(80, 71), at(70)), Due::Nothing, "as the CA suggests, later");
        assert_eq!(judged(Some(&stored), &planned(5, 11), at(10)), Due::Order, "as the CA suggests, sooner");
        assert_eq!(judged(Some(&stored), &planned(80, 99), at(10)), Due::Window, "a pause that nobody meant");
        let of_another = Plan { certificate: Some("a.b".into()), ..planned(5, 11) };
        assert_eq!(judged(Some(&stored), &of_another, at(10)), Due::Window, "its plan does not count for this one");
        // A clock that is ahead, or a CA that always says "now", makes no more than two orders a day.
        let just_got = Stored { since: at(300), ..stored.clone() };
        assert_eq!(judged(Some(&just_got), &planned(5, 301), at(300).plus_millis(LEAST_AGE - 1)), Due::Nothing);
        assert_eq!(judged(Some(&just_got), &planned(5, 301), at(300).plus_millis(LEAST_AGE)), Due::Order);
        assert_eq!(judged(Some(&just_got), &none, at(200)), Due::Order, "from a clock that was ahead");
    }

    #[test]
    fn failures_hold_up_attempts_also_of_a_process_that_is_started_again_and_again() {
        let started = |since: i64, failures: &Failures| next_attempt(failures, Timestamp::from_secs(since)).as_secs();
        let refused = failures(Trouble::Refused, 1000, 20_000);
        assert_eq!(started(0, &refused), 20_000, "the process that saw it fail waits");
        assert_eq!(started(1001, &refused), 1000 + AFTER_START, "a new one does not wait so long");
        assert_eq!(started(1001, &failures(Trouble::Unreachable, 1000, 1030)), 1030);
        let limited = Failures { not_before: Some(90_000), ..refused.clone() };
        assert_eq!(started(1001, &limited), 90_000, "what the CA says counts for all");
        let absurd = Failures { retry_at: i64::MAX, not_before: Some(i64::MAX), ..refused };
        assert_eq!(started(0, &absurd), 1000 + LONGEST_PAUSE);
        assert_eq!(
            due(
                None,
                &Plan { failures: Some(absurd), ..Plan::default() },
                Timestamp::from_secs(1001),
                Timestamp::default()
            ),
            Due::Nothing
        );
    }

    #[test]
    fn the_challenge_fits_the_listeners_and_changes_after_a_failure_where_it_may() {
        use ChallengeChoice::{Auto, Http01, TlsAlpn01};
        let (http, tls) = (ChallengeType::Http01, ChallengeType::TlsAlpn01);
        let doors = |has_port_80, has_http, has_https| Doors { has_port_80, has_http, has_https };
        for (doors, choice, first, second) in [
            (doors(true, true, true), Auto, &http, &tls),
            (doors(false, true, true), Auto, &tls, &http),
            (doors(false, false, true), Auto, &tls, &tls),
            (doors(false, true, false), Auto, &http, &http),
            (doors(true, true, true), TlsAlpn01, &tls, &tls),
            (doors(false, false, true), Http01, &http, &http),
        ] {
            assert_eq!(
                (&doors.challenge(choice, 0), &doors.challenge(choice, 1)),
                (first, second),
                "{doors:?} {choice:?}"
            );
        }
    }
}
