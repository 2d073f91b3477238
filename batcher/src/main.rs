//! The batcher's process.

fn main() -> std::process::ExitCode {
    service_kit::service::main(&batcher::DEFINITION, batcher::run)
}
