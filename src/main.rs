//! The `pgbaton` program: arguments in, exit code out.

fn main() {}
