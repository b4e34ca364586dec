//! HTTP caching to the letter, over sockets: what the public test package says nothing of, and what it gets wrong.
//! Its own run is in `conformance/`. A file is named as the module of the rules that it tests, where there is one.

mod cache_status;
mod cookies;
mod corpus;
mod directives;
mod freshness;
mod groups;
mod invalidation;
mod methods;
mod partial;
mod properties;
mod search;
mod stale;
mod storage;
mod tags;
mod targeted;
mod validation;
mod vary;
