//! The admin listener: its door and its purges.

mod gate;
mod purge;
