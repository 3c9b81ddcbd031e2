//! Bad input and bad days: each gets one clear error that says what to do, and leaves nothing half-done.

mod documents;
mod machines;
mod newcomers;
mod state;
