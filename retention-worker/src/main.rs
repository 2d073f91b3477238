//! The retention worker's process.

fn main() -> std::process::ExitCode {
    service_kit::service::main(&retention_worker::DEFINITION, retention_worker::run)
}
