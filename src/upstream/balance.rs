//! Chooses one of an upstream's addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::config::Balance;
use super::endpoint::Endpoint;

/// Those that can be asked.
pub(super) type Candidates<'a> = SmallVec<[&'a Arc<Endpoint>; 8]>;

/// Chooses by the configured way.
#[derive(Debug)]
pub(super) struct Balancer {
    balance: Balance,
    /// The time for which an address that was down is given less than its share.
    slow_start: Duration,
    turn: AtomicUsize,
}

impl Balancer {
    pub(super) fn new(balance: Balance, slow_start: Duration) -> Self {
        Self { balance, slow_start, turn: AtomicUsize::new(fastrand::usize(..1024)) }
    }

    /// Chooses one of `candidates`, of which there is at least one. `affinity` is the hash of what the choice goes by,
    /// under `balance = "hash"`.
    pub(super) fn choose<'a>(&self, candidates: &Candidates<'a>, affinity: u64) -> Option<&'a Arc<Endpoint>> {
        if let [] | [_] = candidates[..] {
            return candidates.first().copied();
        }
        match self.balance {
            Balance::P2c => Some(self.less_loaded(candidates)),
            Balance::RoundRobin => Some(self.next(candidates)),
            Balance::Hash => {
                let score = |endpoint: &Endpoint| rendezvous(affinity, endpoint, endpoint.share(self.slow_start));
                candidates.iter().copied().max_by(|one, other| score(one).total_cmp(&score(other)))
            }
        }
    }

    /// Draws two by their shares, and takes the one with less under way for its weight.
    fn less_loaded<'a>(&self, candidates: &Candidates<'a>) -> &'a Arc<Endpoint> {
        let first = self.draw(candidates, None);
        let second = self.draw(candidates, Some(first));
        // Among idle ones the draw decides, which goes by the weights.
        let load = |at: usize| f64::from(candidates[at].under_way()) / f64::from(candidates[at].weight);
        // One that recovers has the least under way. Of two addresses it is always drawn, so that it would get all requests.
        if load(second) < load(first) && self.takes_its_turn(candidates[second]) {
            candidates[second]
        } else {
            candidates[first]
        }
    }

    /// Returns whether an address takes a request that it is chosen for. One that recovers misses some.
    fn takes_its_turn(&self, endpoint: &Endpoint) -> bool {
        let part = endpoint.share(self.slow_start) / f64::from(endpoint.weight);
        part >= 1.0 || fastrand::f64() < part
    }

    /// Draws one by the shares, but not `except`.
    fn draw(&self, candidates: &Candidates<'_>, except: Option<usize>) -> usize {
        let share = |at: usize| if Some(at) == except { 0.0 } else { candidates[at].share(self.slow_start) };
        let total: f64 = (0..candidates.len()).map(share).sum();
        let mut left = fastrand::f64() * total;
        let mut drawn = usize::from(except == Some(0));
        for at in (0..candidates.len()).filter(|at| Some(*at) != except) {
            drawn = at;
            left -= share(at);
            if left < 0.0 {
                break;
            }
        }
        drawn
    }

    /// Takes them in turn, each as often as its weight says. One that recovers misses some of its turns.
    fn next<'a>(&self, candidates: &Candidates<'a>) -> &'a Arc<Endpoint> {
        let total: usize = candidates.iter().map(|endpoint| endpoint.weight as usize).sum();
        let mut chosen = candidates[0];
        for _ in 0..candidates.len() {
            // Steps that spread the turns of heavy ones: the next multiple of a number without a common divisor.
            let mut at = self.turn.fetch_add(1, Ordering::Relaxed) % total;
            for endpoint in candidates {
                let weight = endpoint.weight as usize;
                if at < weight {
                    chosen = endpoint;
                    break;
                }
                at -= weight;
            }
            if self.takes_its_turn(chosen) {
                break;
            }
        }
        chosen
    }
}

/// Returns how high `endpoint` is placed for `affinity` (weighted rendezvous hashing). The place of the others stays when
/// one comes or goes, or its share grows.
fn rendezvous(affinity: u64, endpoint: &Endpoint, share: f64) -> f64 {
    let hash = xxh3_64_with_seed(endpoint.name.as_bytes(), affinity);
    // Uniform in (0, 1): the upper 53 bits, and a half.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -share / uniform.ln()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::config::{Address, Listed};
    use super::super::endpoint::Target;
    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let one = |(n, weight): (usize, &u32)| {
            let port = 1000 + u16::try_from(n).expect("few");
            let address = Address::Tcp { host: "192.0.2.1".into(), port, is_tls: false };
            let target = Target::Socket(([192, 0, 2, 1], port).into());
            let listed = Listed { address, weight: *weight, is_backup: false };
            Endpoint::new(n, &listed, target, 5, Duration::from_secs(1))
        };
        weights.iter().enumerate().map(one).collect()
    }

    fn choices(balancer: &Balancer, all: &[Arc<Endpoint>], count: u64) -> BTreeMap<String, u64> {
        let mut chosen = BTreeMap::new();
        for n in 0..count {
            let endpoint = balancer.choose(&all.iter().collect(), n).expect("there are some");
            *chosen.entry(endpoint.name.clone()).or_default() += 1;
        }
        chosen
    }

    #[test]
    fn each_is_chosen_as_often_as_its_weight_says() {
        let all = endpoints(&[1, 2, 5]);
        for balance in [Balance::RoundRobin, Balance::Hash] {
            let balancer = Balancer::new(balance, Duration::from_secs(10));
            let chosen: Vec<u64> = choices(&balancer, &all, 80_000).into_values().collect();
            for (count, expected) in chosen.iter().zip([10_000, 20_000, 50_000]) {
                assert!(count.abs_diff(expected) < expected / 20, "{balance:?}: {chosen:?}");
            }
        }
    }

    #[test]
    fn idle_ones_are_chosen_as_often_as_their_weights_say() {
        let all = endpoints(&[1, 2]);
        let balancer = Balancer::new(Balance::P2c, Duration::from_secs(10));
        let chosen: Vec<u64> = choices(&balancer, &all, 30_000).into_values().collect();
        assert!(chosen[0].abs_diff(10_000) < 1000, "{chosen:?}");
    }

    #[test]
    fn who_has_less_under_way_is_asked() {
        let all = endpoints(&[1, 1]);
        let balancer = Balancer::new(Balance::P2c, Duration::from_secs(10));
        assert!(all[0].begin(0));
        assert_eq!(choices(&balancer, &all, 100).get(&all[1].name), Some(&100));
        all[0].end();
        let even = choices(&balancer, &all, 10_000);
        assert!(even.values().all(|count| count.abs_diff(5000) < 500), "{even:?}");
    }

    #[test]
    fn one_that_goes_moves_nobody_elses_choice() {
        let all = endpoints(&[1, 1, 1, 1]);
        let balancer = Balancer::new(Balance::Hash, Duration::from_secs(10));
        let some = |affinity, all: &[Arc<Endpoint>]| {
            balancer.choose(&all.iter().collect(), affinity).expect("there are some").name.clone()
        };
        for affinity in 0..1000 {
            let before = some(affinity, &all);
            let after = some(affinity, &all[..3]);
            assert!(before == after || before == all[3].name);
        }
    }

    #[test]
    fn one_that_comes_back_is_spared_at_first() {
        let all = endpoints(&[1, 1]);
        for balance in [Balance::P2c, Balance::RoundRobin, Balance::Hash] {
            let balancer = Balancer::new(balance, Duration::from_secs(3600));
            all[0].begin_slowly();
            let chosen = choices(&balancer, &all, 10_000);
            assert!((200..2500).contains(&chosen[&all[0].name]), "{balance:?}: {chosen:?}");
        }
    }

    #[test]
    fn one_that_comes_back_is_spared_although_it_has_the_least_under_way() {
        for others in 1..4 {
            let all = endpoints(&vec![1; others + 1]);
            let balancer = Balancer::new(Balance::P2c, Duration::from_secs(3600));
            all[0].begin_slowly();
            for busy in &all[1..] {
                assert!((0..5).all(|_| busy.begin(0)));
            }
            let chosen = choices(&balancer, &all, 10_000);
            assert!((200..2500).contains(&chosen[&all[0].name]), "{others} others: {chosen:?}");
        }
    }

    #[test]
    fn a_choice_moves_once_to_one_that_comes_back() {
        let all = endpoints(&[1, 1, 1, 1]);
        let places = |affinity| {
            [0.1, 0.5, 1.0].map(|share| {
                let score = |at: usize| rendezvous(affinity, &all[at], if at == 0 { share } else { 1.0 });
                (0..all.len()).max_by(|one, other| score(*one).total_cmp(&score(*other))).expect("there are some")
            })
        };
        for affinity in 0..1000 {
            let [early, later, last] = places(affinity);
            assert!(early == later || later == 0, "{affinity}: {early} {later}");
            assert!(later == last || last == 0, "{affinity}: {later} {last}");
        }
    }
}
