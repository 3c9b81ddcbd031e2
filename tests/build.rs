//! Generates messages and stubs of the protocol as version 0.1.0 spoke it, for a hop between today's proxy and control plane
//! that knows nothing newer.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let frozen = "../control-plane/wire/tests";
    println!("cargo:rerun-if-changed={frozen}/equerry-0.1.0.proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(["equerry-0.1.0.proto"], [frozen])?;
    tonic_prost_build::configure().build_transport(false).btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
