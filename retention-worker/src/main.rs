//! The program.

use std::process::ExitCode;

use service_kit::service::Instead;

fn main() -> ExitCode {
    let dry_run = Instead {
        flag: "--dry-run",
        about: "list what would go right now, and why; change nothing",
        run: |config| Box::pin(retention_worker::dry_run::run(config)),
    };
    service_kit::service::main_or(&retention_worker::DEFINITION, retention_worker::run, Some(dry_run))
}
