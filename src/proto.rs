//! The generated code of proto/, included once.
#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; its documentation is the .proto files"
)]

/// Package `keybearer.v1`.
pub mod v1 {
    tonic::include_proto!("keybearer.v1");

    /// The descriptors, for reflection where it is switched on.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keybearer.v1.bin"));
}
