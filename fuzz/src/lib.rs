//! The bodies of the fuzz targets, by the crate they are about; those of the proxy are in it (`strangers`), because what they
//! read is nobody else's.

pub mod policies;
pub mod traffic;
pub mod wire;
