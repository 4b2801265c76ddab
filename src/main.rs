//! The `spiffe-entra` program.

fn main() {}
