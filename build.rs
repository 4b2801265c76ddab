//! Compiles `proto/spiffe_entra/v1` with protox, so that no `protoc` is needed.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let set = protox::compile(["spiffe_entra/v1/token.proto"], ["proto"])?;
    // The descriptors go into the binary for gRPC reflection.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("spiffe_entra.v1.bin");
    fs::write(descriptors, prost::Message::encode_to_vec(&set))?;
    tonic_prost_build::configure()
        .build_client(true)
        // Holds a bearer token: `Debug` is written by hand beside the service.
        .skip_debug(["spiffe_entra.v1.GetTokenResponse"])
        .compile_fds(set)?;
    Ok(())
}
