//! The `t3c` command.

fn main() -> std::process::ExitCode {
    t3c::cli::main()
}
