//! `keyring-kms`: the keyring program of AWS KMS. A service starts it and asks it; `docs/keyring-program.md` says how.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use keyring_kms::{KmsConfig, KmsKeyring};
use service_kit::config::{self, Env};

/// The command line or the environment is wrong, and trying again will not help. As the services say it.
const EXIT_USAGE: u8 = 64;

const HELP: &str = "keyring-kms: the keyring program of AWS KMS

A service that is configured with CLAIRVIO_KEYRING_PROGRAM=<path of this program> starts it, and asks it for keys in lines
on its standard input. By hand:

  echo '{\"id\":1,\"ask\":\"versions\"}' | keyring-kms

All settings are environment variables; --print-config shows them with their values.

Options:
  --print-config  show the settings and stop
  --version       show the version and stop";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let lookup = |name: &str| std::env::var(name).ok();
    let mut env = Env::new(&lookup);
    let config = KmsConfig::load(&mut env);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {}
        ["--print-config"] => print!("{}", config::print(env.settings())),
        ["--version"] => println!("keyring-kms {}", env!("CARGO_PKG_VERSION")),
        ["--help" | "-h"] => println!("{HELP}"),
        _ => {
            eprintln!("keyring-kms: unknown argument\n  hint: see keyring-kms --help");
            return ExitCode::from(EXIT_USAGE);
        }
    }
    if !arguments.is_empty() {
        return ExitCode::SUCCESS;
    }
    if !env.errors().is_empty() {
        for error in env.errors() {
            eprintln!("keyring-kms: {error}");
        }
        return ExitCode::from(EXIT_USAGE);
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyring-kms: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &KmsConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start runtime")?;
    let served = runtime.block_on(async {
        let keyring = Arc::new(KmsKeyring::new(config));
        let (questions, answers) = (open(std::io::stdin())?, open(std::io::stdout())?);
        keyring_kms::serve(keyring, questions, answers).await
    });
    // A read that still waits for questions is not waited for.
    runtime.shutdown_background();
    served.context("answer questions")
}

fn open(stream: impl AsFd) -> std::io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(File::from(stream.as_fd().try_clone_to_owned()?)))
}
