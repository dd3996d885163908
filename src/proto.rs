//! The generated code of proto/, included once, and the codec it uses.

use std::{fmt, marker::PhantomData};

use tonic::codec::BufferSettings;
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Package `keybearer.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; its documentation is the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("keybearer.v1");

    /// The descriptors, for reflection where it is switched on.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keybearer.v1.bin"));
}

impl fmt::Debug for v1::SealRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealRequest({}.{})", self.identity, self.credential)
    }
}

/// The SPIFFE Workload API, as far as this agent asks it.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; its documentation is the .proto file"
)]
pub mod spiffe {
    tonic::include_proto!("spiffe");
}

/// What a call's buffers hold before they grow. tonic's own 8 KiB each way would be most of what an open stream costs.
const BUFFER: usize = 512;

/// How much is gathered before it is handed on.
const YIELD: usize = 32 << 10;

/// Protobuf messages over gRPC, in buffers that fit ours.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: prost::Message + 'static,
    U: prost::Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER, YIELD))
    }
}

#[cfg(test)]
mod tests {
    use super::v1::SealRequest;

    #[test]
    fn what_an_operator_puts_in_is_not_told_by_debug() {
        // AUD-05
        let values = [("password".to_owned(), b"canary".to_vec())].into();
        let request =
            SealRequest { identity: "shop".into(), credential: "smtp".into(), values, remove: false };
        assert_eq!(format!("{request:?}"), "SealRequest(shop.smtp)");
    }
}
