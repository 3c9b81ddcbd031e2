//! A control plane that dies at any moment loses nothing it acknowledged, and leaves nothing half done; and a store of an older
//! version is taken over whole.

mod killed;
mod upgraded;
