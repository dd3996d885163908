//! Keybearer, a per-host agent that ends shared secrets.
//!
//! It finds out which local program is calling, holds that program's private key, obtains a short-lived
//! credential from an issuer with it, and serves the credential over a Unix socket. Applications never store
//! a secret, and every exchange is on record before its answer leaves.
//!
//! A request walks through the rooms once and is handed a slip in each, which only that room can make:
//!
//! ```text
//!  wire ──Peer──▶ attest ──Workload──▶ policy ──Grant──▶ broker ──Order──▶ issuer ◀──Signer── keys
//!    ▲                                                      │ Credential
//!    └───────── Answer ◀── journey ◀──Receipt── audit ◀─────┘
//! ```
//!
//! Invariants, each held by the compiler or by a test:
//!
//! - No answer, yes or no, without a `Receipt`; no fetch without a `Grant`; no `Grant` without a `Workload`; no
//!   `Workload` without a `Peer`.
//! - Private keys never leave `keys`, and nothing signs bytes that a caller chose.
//! - A room imports only rooms declared above it in this file (`tests/layers.rs`).
//! - Time and chance come from `clock`, as arguments.
//!
//! The rooms, in order of dependency:

pub mod clock;
pub mod secret;
pub mod journal;
pub mod jose;
pub mod keys;
pub mod proof;
pub mod credential;
pub mod proto;
pub mod deliver;
pub mod issuer;
pub mod api;
pub mod attest;
pub mod policy;
pub mod audit;
pub mod broker;
pub mod journey;
pub mod wire;
pub mod serve;
pub mod client;
pub mod shim;
pub mod scan;
pub mod config;
pub mod posture;
pub mod daemon;
pub mod doctor;
pub mod dev;
pub mod cli;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
