//! Generates messages and stubs from `proto/equerry.proto` with protox, so that no protoc has to be installed.
//!
//! The client and server halves are generated always and compiled only behind the features of those names.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/equerry.proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(["equerry.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .client_mod_attribute("equerry.v1", "#[cfg(feature = \"client\")]")
        .server_mod_attribute("equerry.v1", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
