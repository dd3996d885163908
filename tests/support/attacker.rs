//! Performs what an attacker on this host would; see tests/attackers.rs.

fn main() {}
