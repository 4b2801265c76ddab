//! Compiles `proto/spiffe/workload.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../proto/spiffe");
    let set = protox::compile(["spiffe/workload.proto"], ["../proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // They hold a bearer token: `Debug` is written by hand in `workload/wire.rs`.
        .skip_debug([".JWTSVID", ".ValidateJWTSVIDRequest"])
        .compile_fds(set)?;
    Ok(())
}
