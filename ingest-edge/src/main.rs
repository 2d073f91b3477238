//! The edge's process.

fn main() -> std::process::ExitCode {
    service_kit::service::main(&ingest_edge::DEFINITION, ingest_edge::run)
}
