//! Turns proto/ into Rust. protox is a protobuf compiler in Rust, so no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["keybearer/v1/credentials.proto", "keybearer/v1/operator.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("keybearer.v1.bin"), descriptors.encode_to_vec())?;
    // What an operator puts in is in no log line, whoever comes to write one.
    tonic_prost_build::configure().skip_debug(["keybearer.v1.SealRequest"]).compile_fds(descriptors)?;
    // A message of ours is small: tonic's buffers of 8 KiB each way would be most of what an open stream costs.
    let generated = out.join("keybearer.v1.rs");
    let text = fs::read_to_string(&generated)?;
    let small = text.replace("tonic_prost::ProstCodec::default()", "crate::proto::Codec::default()");
    assert_ne!(text, small, "the generated code names its codec otherwise: mend this replacement");
    fs::write(generated, small)?;
    // Apart from ours: reflection describes our API only. Its server half is for tests, which stand in for SPIRE.
    tonic_prost_build::configure().compile_fds(protox::compile(["spiffe/workload.proto"], ["proto"])?)?;
    // A file without a package is generated as `_.rs`.
    fs::rename(out.join("_.rs"), out.join("spiffe.rs"))?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
