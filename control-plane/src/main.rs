//! The control plane's process.

fn main() -> std::process::ExitCode {
    service_kit::service::main(&control_plane::DEFINITION, control_plane::run)
}
