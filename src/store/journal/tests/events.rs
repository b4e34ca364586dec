//! The events of a world: fetches, purges, faults, restarts, and what has to hold after each.

use super::*;

impl World {
    pub(super) async fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let time = Clock::manual(START);
        let bucket = Arc::new(SimulatedBucket::new(time.clone(), random.u64(..)));
        // Five seconds apart, both ways.
        let skews = match random.u32(0..3) {
            0 => vec![0, 5000, -5000],
            1 => vec![-5000, 5000],
            _ => vec![5000, 0],
        };
        let mut world = Self {
            random,
            time,
            bucket,
            pages: pages(),
            nodes: Vec::new(),
            lives: vec![0; skews.len()],
            skews,
            made: Vec::new(),
            under_way: Vec::new(),
            fetched: HashMap::new(),
            killed: Vec::new(),
            step: 0,
            next_node: 1,
        };
        for node in 0..world.skews.len() {
            let started = world.start(node).await;
            world.nodes.push(started);
        }
        world
    }

    pub(super) async fn start(&mut self, node: usize) -> Node {
        let clock = Clock::manual(self.time.now().plus_millis(self.skews[node]));
        self.next_node += 1;
        let mut started = Node::start(&self.bucket, clock, self.next_node * 0x1_0001);
        // Until the journal is read, nothing durable is served.
        started.tail(self.step).await;
        started
    }

    pub(super) async fn pass(&mut self, time: Duration) {
        self.time.advance(time);
        for node in &self.nodes {
            node.clock.advance(time);
        }
        tokio::time::advance(time).await;
        // What waits behind gets its turn.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.note_records();
    }

    fn note_records(&mut self) {
        for made in &mut self.made {
            let node = &self.nodes[made.node];
            if !made.is_local && made.recorded.is_none() && self.lives[made.node] == made.life {
                let is_written = *node.journal().written.borrow() >= made.position;
                made.recorded = is_written.then_some(self.step);
                made.is_late |= self.time.now().millis_since(made.time) > 9000;
            }
        }
    }

    /// Returns whether a node knows of a purge for certain.
    fn knows(&self, node: usize, made: &Made) -> bool {
        (made.node == node && made.life == self.lives[node])
            || made.recorded.is_some_and(|recorded| recorded < self.nodes[node].read_at)
    }

    pub(super) async fn act(&mut self) {
        self.step += 1;
        let node = self.random.usize(0..self.nodes.len());
        match self.random.u32(0..100) {
            0..25 => self.begin_fetch(node),
            25..50 if !self.under_way.is_empty() => self.end_fetch(),
            50..60 => self.purge(node),
            60..75 => {
                let step = self.step;
                self.nodes[node].tail(step).await;
            }
            75..80 => {
                let _ = self.nodes[node].journal().write().await;
            }
            80..82 => self.restart(node).await,
            82..84 => {
                let journal = self.nodes[node].journal();
                if journal.is_loaded() {
                    let from = journal.tail.lock().await.from;
                    let _ = journal.write_snapshot(from, 0, true).await;
                }
            }
            84..86 => {
                let faults = match self.random.u32(0..3) {
                    0 => Faults::default(),
                    1 => Faults { fail: 100, lost_answer: 50, late: 100, ..Faults::default() },
                    _ => Faults { fail: 300, lost_answer: 100, late: 200, ..Faults::default() },
                };
                self.bucket.set_faults(faults);
            }
            86..87 => {
                let long = self.random.u64(60..5000);
                self.pass(Duration::from_secs(long)).await;
            }
            _ => {}
        }
        let time = Duration::from_millis(self.random.u64(0..1500));
        self.pass(time).await;
        let (node, page) = (self.random.usize(0..self.nodes.len()), self.random.usize(0..self.pages.len()));
        self.look(node, page).await;
    }

    fn begin_fetch(&mut self, node: usize) {
        let page = self.random.usize(0..self.pages.len());
        let began = self.nodes[node].now();
        let known = (0..self.made.len()).filter(|made| self.knows(node, &self.made[*made])).collect();
        let (variant, what) = (self.random.usize(0..3), self.nodes[node].store.known(&self.pages[page].key));
        let (life, at) = (self.lives[node], self.step);
        self.under_way.push(Fetch { page, variant, what, node, life, at, began, known });
    }

    fn end_fetch(&mut self) {
        let fetch = self.under_way.swap_remove(self.random.usize(0..self.under_way.len()));
        if self.lives[fetch.node] == fetch.life {
            let at = &self.nodes[fetch.node];
            let stored = response(&self.pages[fetch.page], fetch.variant, fetch.at, at, fetch.began);
            at.store.insert(&stored, Durability::Durable, fetch.what.as_ref(), None);
            self.fetched.insert(fetch.at, (fetch.known, (fetch.node, fetch.life)));
        }
    }

    pub(super) fn purge(&mut self, node: usize) {
        let page = &self.pages[self.random.usize(0..self.pages.len())];
        let target = match self.random.u32(0..10) {
            0..4 => PurgeTarget::Url(page.key.hash()),
            4..6 => PurgeTarget::Prefix(["http://h/a/", "/b", "http://h/", "/a/b/"][self.random.usize(0..4)].into()),
            6..9 => PurgeTarget::Tag(["x", "y", "z"][self.random.usize(0..3)].into()),
            _ => PurgeTarget::All,
        };
        let key = page.key.clone();
        let purge = Purge { target, is_soft: self.random.u32(0..4) == 0 };
        let (life, at) = (self.lives[node], self.step);
        if self.random.u32(0..4) == 0 {
            // What an unsafe request does: in force here, and nowhere else for certain.
            let position = self.nodes[node].store.position();
            let purge = Purge::hard(PurgeTarget::Url(key.hash()));
            self.nodes[node].store.invalidate(&key);
            let is_late = true;
            let time = self.time.now();
            self.made.push(Made { purge, node, life, at, position, recorded: None, time, is_late, is_local: true });
            return;
        }
        let made = self.nodes[node].store.purge(purge.clone(), Some(&key));
        self.made.push(Made {
            purge,
            node,
            life,
            at,
            position: made.position,
            recorded: None,
            time: self.time.now(),
            is_late: false,
            is_local: false,
        });
    }

    async fn restart(&mut self, node: usize) {
        if self.random.bool() {
            self.nodes[node].durable().drain(Duration::from_secs(60)).await;
            self.note_records();
        } else {
            self.killed.push((node, self.lives[node]));
        }
        self.nodes[node].cut();
        self.lives[node] += 1;
        let started = self.start(node).await;
        self.nodes[node] = started;
    }

    /// Checks that a node serves nothing of a page that was purged.
    pub(super) async fn look(&mut self, node: usize, page: usize) {
        let page = self.pages[page].clone();
        let variant = self.random.usize(0..3);
        let found = self.nodes[node].look(&page, variant).await;
        let Some((fetched_at, is_fresh)) = found else { return };
        let of_it = || self.made.iter().filter(|made| made.is_of(&page) && made.at >= fetched_at);
        for made in of_it().filter(|made| self.knows(node, made)) {
            let what = &made.purge;
            assert!(
                what.is_soft,
                "step {}: {} of step {fetched_at} in spite of {what:?} of {}",
                self.step, page.url, made.at
            );
            assert!(!is_fresh, "step {}: {} of step {fetched_at} is fresh in spite of {what:?}", self.step, page.url);
        }
    }

    /// Lets everything be written and read. Checks that every process, and a new one, finds what is in the bucket and was
    /// not purged.
    pub(super) async fn settle(&mut self) {
        self.bucket.set_faults(Faults::default());
        self.step += 1;
        self.pass(Duration::from_secs(10)).await;
        for node in 0..self.nodes.len() {
            // Nothing is written before earlier purges are known; in service that follows behind.
            let step = self.step;
            assert!(self.nodes[node].tail(step).await);
            // A deletion that has failed for long is tried again only after a while.
            let mut left = self.nodes[node].durable().drain(Duration::from_secs(600)).await.left();
            for _ in 0..20 {
                if left > 0 {
                    self.pass(Duration::from_secs(30)).await;
                    left = self.nodes[node].durable().drain(Duration::from_secs(600)).await.left();
                }
            }
            assert_eq!(left, 0);
        }
        self.note_records();
        self.step += 1;
        for node in 0..self.nodes.len() {
            let step = self.step;
            assert!(self.nodes[node].tail(step).await);
        }
        let anew = self.start(0).await;
        self.nodes.push(anew);
        self.lives.push(0);
        self.skews.push(0);
        let last = self.nodes.len() - 1;
        self.step += 1;
        for page in 0..self.pages.len() {
            let there = self.in_bucket(&self.pages[page]).await;
            for node in [last, self.random.usize(0..last)] {
                self.look(node, page).await;
                let found = self.nodes[node].look(&self.pages[page], 0).await;
                let Some(fetched_at) = there else { continue };
                let Some((known, by)) = self.fetched.get(&fetched_at) else { continue };
                let is_of = |made: &usize| self.made[*made].is_of(&self.pages[page]);
                let unknown =
                    (0..self.made.len()).filter(is_of).any(|made| !known.contains(&made) || self.made[made].is_late);
                let may_hold = self.nodes[node].durable().may_hold(&self.pages[page].key);
                let why = if may_hold { "purges" } else { "the index" };
                // A process that is killed before it announces a key costs a request to the origin.
                let is_unannounced = !may_hold && self.killed.contains(by);
                assert!(
                    unknown || is_unannounced || found.is_some(),
                    "{} of step {fetched_at} is lost to {why}",
                    self.pages[page].url
                );
            }
        }
    }

    async fn in_bucket(&self, page: &Page) -> Option<usize> {
        let (names, index) = (ObjectNames::new("", ""), Index::default());
        let place = &*self.nodes[0].place;
        for name in self.bucket.names() {
            let Some(JournalObject::Pack(pack)) = ObjectNames::parse_journal(&name) else { continue };
            let object = Place::get(place, &name, u64::MAX).await.ok()?;
            let footer = packs::read_footer(place, &name, object.len() as u64).await.expect("a pack of ours");
            index.insert_all(&index.add_pack(pack), &footer.entries);
        }
        let found = index.find(index.fingerprint(&page.key, 0))?;
        let name = names.pack(found.pack.name);
        let mut bytes = Place::read_pack(place, &name, found.place.offset, found.place.len).await.ok()?;
        let object = Entry::take(&mut bytes).expect("an entry of ours").object;
        let policy = crate::rfc9111::freshness::LifetimePolicy::default();
        match crate::entry::encoding::decode(&object, &page.key, &policy).expect("an object of ours") {
            crate::entry::encoding::Object::Response { body, .. } => match body {
                crate::entry::encoding::DurableBody::Inline(text) => std::str::from_utf8(&text).ok()?.parse().ok(),
                crate::entry::encoding::DurableBody::Separate { .. } => None,
            },
            // Does not follow records: a variant may be of another generation.
            crate::entry::encoding::Object::Vary(_) => None,
        }
    }
}
