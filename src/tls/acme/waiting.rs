//! Bounds those that wait for a listing of the pending challenges. Anybody may ask for a token that nobody has ordered, and
//! must keep neither the CA from its answer nor other clients from their requests.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

/// The most that wait.
const MOST: usize = 1024;

/// The most that wait of one client: of one address, or one /64 of IPv6, since that is what one customer is given. A CA
/// asks from a handful of addresses, a few times each.
const MOST_EACH: usize = 16;

/// The clients that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Clients>);

#[derive(Debug, Default)]
struct Clients {
    all: usize,
    /// Clients without an address are not told apart, and share the limit of all.
    each: HashMap<IpAddr, usize>,
}

/// Guard of one that waits.
#[derive(Debug)]
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    client: Option<IpAddr>,
}

impl Waiting {
    /// Lets one of `client` wait; `None`: it, or all together, have as many as may wait.
    pub(super) fn begin(&self, client: Option<IpAddr>) -> Option<Place<'_>> {
        let client = client.map(network);
        let mut clients = self.0.lock();
        let own = client.map_or(0, |client| clients.each.get(&client).copied().unwrap_or(0));
        if clients.all >= MOST || own >= MOST_EACH {
            return None;
        }
        clients.all += 1;
        if let Some(client) = client {
            clients.each.insert(client, own + 1);
        }
        Some(Place { waiting: self, client })
    }
}

/// Returns what tells one client from another.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut clients = self.waiting.0.lock();
        clients.all -= 1;
        let Some(client) = self.client else { return };
        if let Some(own) = clients.each.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                clients.each.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_ipv6() {
        let network_of = |address: &str| network(address.parse().expect("an address")).to_string();
        assert_eq!(network_of("2001:db8::1"), network_of("2001:db8::ffff:0:0:1"));
        assert_ne!(network_of("2001:db8::1"), network_of("2001:db8:0:1::1"));
        assert_eq!(network_of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn one_client_keeps_no_other_from_waiting_and_all_are_bounded() {
        let waiting = Waiting::default();
        let held: Vec<_> = (0..100).filter_map(|_| waiting.begin(Some(client(1)))).collect();
        assert_eq!(held.len(), MOST_EACH);
        assert!(waiting.begin(Some(client(2))).is_some() && waiting.begin(None).is_some());
        let others: Vec<_> = (0..10_000).filter_map(|n| waiting.begin(Some(client(100 + n)))).collect();
        assert_eq!(others.len(), MOST - MOST_EACH);
        assert!(waiting.begin(Some(client(2))).is_none());
        drop((held, others));
        let clients = waiting.0.lock();
        assert!(clients.all == 0 && clients.each.is_empty(), "nothing is left of those that went");
    }
}
