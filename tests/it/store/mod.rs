//! The two tiers, and the purges that both obey.

mod admission;
mod at_hand;
mod bodies;
mod bucket;
mod capacity;
mod damage;
mod directory;
mod faults;
mod format;
mod journal;
mod large;
mod memory;
mod purges;
mod rights;
mod successors;
mod writes;
