//! When a certificate is renewed, and when something that failed is tried again. Pure: `now` and the dice are parameters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rfc9111::timestamp::Timestamp;

/// The time for which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

/// The window in which the CA suggests to renew (RFC 9773 §4.2), in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// A number from 0 up to 1, which spreads what many would do at the same moment.
pub(super) type Dice = f64;

impl Validity {
    fn millis(self) -> i64 {
        self.until.millis_since(self.from).max(0)
    }

    /// Returns when to renew where the CA suggests nothing: at two thirds of the lifetime, or up to a twentieth of it sooner.
    pub(super) fn renew_at(self, dice: Dice) -> Timestamp {
        let spread = scaled(self.millis() / 20, dice);
        self.from.plus_millis(self.millis() / 3 * 2 - spread)
    }

    /// Returns when to renew within the window that the CA suggests. A window that ends too late for a second attempt is
    /// obeyed only up to the last tenth of the lifetime.
    pub(super) fn renew_within(self, window: Window, dice: Dice) -> Timestamp {
        let (start, end) = (Timestamp::from_secs(window.start), Timestamp::from_secs(window.end));
        let chosen = start.plus_millis(scaled(end.millis_since(start).max(0), dice));
        chosen.min(self.until.plus_millis(-(self.millis() / 10)))
    }
}

fn scaled(millis: i64, dice: Dice) -> i64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "milliseconds within a lifetime")]
    let scaled = (millis as f64 * dice) as i64;
    scaled
}

/// Returns the pause before the CA is asked again for the window that it suggests: what it says, within the bounds of RFC 9773
/// §4.3.2.
pub(super) fn pause_of_window(said: Duration) -> Duration {
    said.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600))
}

/// The kinds of failures, by how soon it makes sense to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Trouble {
    /// The directory can't be reached, or fails by itself. Nothing was counted against the account.
    Unreachable,
    /// The CA refuses, such as because it could not validate a name. CAs count that: Let's Encrypt allows five an hour.
    Refused,
    /// The CA says that it was asked too often.
    TooOften,
    /// The state can't be read or written.
    State,
}

/// The longest pause after failures of each kind.
const LONGEST_UNREACHABLE: Duration = Duration::from_secs(30 * 60);
const LONGEST_REFUSED: Duration = Duration::from_secs(6 * 3600);
const LONGEST_TOO_OFTEN: Duration = Duration::from_secs(12 * 3600);

/// The longest pause that a CA is granted.
const LONGEST_SAID: Duration = Duration::from_secs(7 * 24 * 3600);

/// The first pause after a refusal: at most four attempts are made in the first hour.
const AFTER_REFUSAL: Duration = Duration::from_secs(6 * 60);

/// The first pause after the CA said that it was asked too often, and did not say until when.
const AFTER_TOO_OFTEN: Duration = Duration::from_secs(3600);

/// Returns the pause after the `failures`-th failure on end, the first being 1: it doubles up to a bound, and is up to a
/// quarter longer by the dice. `unit` is the first pause while the directory can't be reached; `said` is what the CA said
/// (`Retry-After`), which is never cut short but by a week.
pub(super) fn pause(trouble: Trouble, failures: u32, unit: Duration, said: Option<Duration>, dice: Dice) -> Duration {
    let (first, longest) = match trouble {
        Trouble::Unreachable | Trouble::State => (unit, LONGEST_UNREACHABLE.max(unit)),
        Trouble::Refused => (AFTER_REFUSAL, LONGEST_REFUSED),
        Trouble::TooOften => (AFTER_TOO_OFTEN, LONGEST_TOO_OFTEN),
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let spread = doubled.mul_f64(dice / 4.0);
    (doubled + spread).max(said.unwrap_or_default().min(LONGEST_SAID))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn of_days(days: i64) -> Validity {
        Validity { from: Timestamp::from_secs(0), until: Timestamp::from_secs(days * DAY) }
    }

    #[test]
    fn without_a_suggestion_two_thirds_of_any_lifetime_are_used() {
        for (days, latest) in [(90, 60 * DAY), (6, 4 * DAY), (398, 398 * DAY / 3 * 2)] {
            let validity = of_days(days);
            let (last, first) = (validity.renew_at(0.0), validity.renew_at(0.999));
            assert!((last.as_secs() - latest).abs() <= 1, "{last:?}");
            assert!(first < last && first.as_secs() > latest - days * DAY / 20 - 1, "{first:?}");
        }
    }

    #[test]
    fn a_suggestion_is_obeyed_up_to_the_last_tenth_of_the_lifetime() {
        let validity = of_days(90);
        let window = |start: i64, end: i64| Window { start: start * DAY, end: end * DAY };
        assert_eq!(validity.renew_within(window(40, 42), 0.5), Timestamp::from_secs(41 * DAY));
        assert_eq!(validity.renew_within(window(-9, -7), 0.5), Timestamp::from_secs(-8 * DAY), "revoked: at once");
        assert_eq!(validity.renew_within(window(200, 300), 0.0), Timestamp::from_secs(81 * DAY));
        assert_eq!(validity.renew_within(window(42, 40), 0.9), Timestamp::from_secs(42 * DAY), "the wrong way round");
        for (said, taken) in [(0, 60), (21_600, 21_600), (u64::MAX, 86_400)] {
            assert_eq!(pause_of_window(Duration::from_secs(said)), Duration::from_secs(taken));
        }
    }

    #[test]
    fn pauses_grow_have_a_bound_and_never_undercut_the_ca() {
        let unit = Duration::from_secs(30);
        let secs = |trouble, failures, said| pause(trouble, failures, unit, said, 0.0).as_secs();
        let of = |trouble| [1, 2, 3, 20, u32::MAX].map(|failures| secs(trouble, failures, None));
        assert_eq!(of(Trouble::Unreachable), [30, 60, 120, 1800, 1800]);
        assert_eq!(of(Trouble::State), of(Trouble::Unreachable));
        assert_eq!(of(Trouble::Refused), [360, 720, 1440, 21_600, 21_600]);
        assert_eq!(of(Trouble::TooOften), [3600, 7200, 14_400, 43_200, 43_200]);
        assert_eq!(secs(Trouble::Unreachable, 1, Some(Duration::from_secs(90_000))), 90_000);
        assert_eq!(secs(Trouble::Unreachable, 1, Some(Duration::from_secs(u64::MAX))), 604_800);
        assert_eq!(pause(Trouble::Refused, 1, unit, None, 1.0).as_secs(), 450, "spread");
        // Let's Encrypt counts failed validations of a name, and allows five an hour.
        let hour: u64 = (1..=3).map(|failures| secs(Trouble::Refused, failures, None)).sum();
        assert!(hour + secs(Trouble::Refused, 4, None) > 3600, "at most four attempts in the first hour");
    }
}
