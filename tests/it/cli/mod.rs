//! The command line: commands, signals, and upkeep of the durable tier.

mod commands;
mod dev;
mod signals;
mod upkeep;
