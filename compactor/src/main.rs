//! The compactor's process.

fn main() -> std::process::ExitCode {
    service_kit::service::main(&compactor::DEFINITION, compactor::run)
}
