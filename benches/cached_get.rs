//! The cached `Get` of the agent beside a bare tonic server.

fn main() {}
