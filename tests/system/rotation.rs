//! An operator rotates, retires and destroys keys while everything runs, with the operator's own tool.

use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, find_binary};
use schemas::http::StoredAs;
use sealing::keyring::KeyVersion;
use service_kit::keys::transport::TransportKeys;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::harness::{LATER, SOON, System, run, wait_for_metric};
use crate::load::{self, small_batch};
use crate::unsealed;

/// The operator's tool with the settings of a service.
fn clairvio(system: &System<'_>, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(find_binary("clairvio")?);
    command.args(arguments).envs(system.settings(&system.service("batcher", 1))?);
    command.output().with_context(|| format!("run clairvio {arguments:?}"))
}

/// The same, and it must succeed; gives what it said.
fn does(system: &System<'_>, arguments: &[&str]) -> Result<String> {
    let output = clairvio(system, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "clairvio {arguments:?} failed: {said}{errors}");
    Ok(said)
}

/// The same, and it must refuse, with this in its reason.
fn refuses(system: &System<'_>, arguments: &[&str], reason: &str) -> Result<()> {
    let output = clairvio(system, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(reason), "clairvio {arguments:?} does not refuse: {said}");
    Ok(())
}

/// Goal: keys are rotated, retired and destroyed while everything runs, and nobody notices: nothing is lost, what was sealed
/// before is read, and nothing needs what is gone. What is still needed is not given up. Method: the operator's commands under
/// load, without a restart; afterwards records and rows say which keys they are under, and every object is verified by the tool.
#[test]
fn keys_are_rotated_retired_and_destroyed_under_load() -> Result<()> {
    let options = DeploymentOptions::named("rotation")
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 500)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 2_000);
    run(options, &[], async |system| {
        let (link, sdk) = (system.link("rotation").await?, system.sdk(1)?);
        let early = load::begin(system, &sdk, &link).await?;
        load::send(system, &sdk, &early, &small_batch(early.id, 0, 0, true, 100)?, Form::Lines, Encoding::Zstd).await?;
        load::wait_stored(&system.api, early.id, StoredAs::Object, LATER).await?;
        let checked = does(system, &["topics", "--partitions", "4", "--replication", "1", "--min-insync", "1"])?;
        ensure!(checked.matches("is as it should be").count() == 2, "the tool does not find the topics: {checked}");
        let listed = does(system, &["keys", "list"])?;
        ensure!(listed.contains("epoch"), "keys list tells nothing of epochs: {listed}");

        let stop = AtomicBool::new(false);
        let rotating = async {
            does(system, &["keys", "rotate", "transport"])?;
            wait_for_epoch(system, 2).await?;
            refuses(system, &["keys", "retire", "keyring", "1"], "current")?;
            does(system, &["keys", "rotate", "keyring"])?;
            // A version is spread before it is used.
            tokio::time::sleep(service_kit::keys::LOOK_INTERVAL * 2).await;
            refuses(system, &["keys", "retire", "keyring", "1"], "current")?;
            does(system, &["keys", "rotate", "keyring", "--use"])?;
            Ok(())
        };
        load::load_during(load::load(system, std::slice::from_ref(&sdk), &link, 2, 20, &stop), &stop, rotating).await?;
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;

        let epochs: Vec<u32> = unsealed::records(system).await?.iter().map(|record| record.envelope.epoch).collect();
        ensure!(epochs.contains(&1) && epochs.contains(&2), "records are of one epoch only");
        // Whoever had not read the file yet has wrapped under the version before; by now all go by the new one. Objects that were
        // sealed under the old one go, by and by; then nothing needs it.
        does(system, &["keys", "rewrap"])?;
        let versions = system.keystore.versions().await?;
        ensure!(versions.iter().all(|(version, _)| *version == KeyVersion(2)), "keys are wrapped under {versions:?}");
        until("the old version of the keyring is retired", LATER, || async {
            match does(system, &["keys", "retire", "keyring", "1"]) {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        refuses(system, &["keys", "destroy", "epoch", "1"], "until")?;
        refuses(system, &["keys", "destroy", "epoch", "2"], "has not ended")?;
        let file: TransportKeys =
            service_kit::keys::read(&system.deployment.keys.join(service_kit::keys::TRANSPORT_FILE))?;
        ensure!(file.epochs().len() == 3, "a refused command has changed the file");

        // By now every process goes by the files as they are.
        tokio::time::sleep(service_kit::keys::LOOK_INTERVAL * 2).await;
        let late = load::begin(system, &sdk, &link).await?;
        load::send(system, &sdk, &late, &small_batch(late.id, 0, 0, true, 100)?, Form::Array, Encoding::Gzip).await?;
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        verify_all(system).await
    })
}

async fn wait_for_epoch(system: &System<'_>, epoch: u32) -> Result<()> {
    wait_for_metric(system, "ingest-edge", &format!("edge_transport_epoch {epoch}")).await
}

/// The tool finds every object whole, and shows the events of a session as they are read.
async fn verify_all(system: &System<'_>) -> Result<()> {
    let mut verified = 0;
    for key in system.objects.list("").await? {
        let key = key.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        let checked = does(system, &["object", "inspect", &key.to_string()])
            .and_then(|_| does(system, &["object", "verify", &key.to_string()]));
        // One that was removed meanwhile cannot be verified.
        if checked.is_err() && system.objects.get(&key).await.is_err() {
            continue;
        }
        checked?;
        verified += 1;
        if let schemas::paths::ObjectKey::Session { key: session, .. } = key {
            let shown = does(system, &["object", "cat", &key.to_string()])?;
            ensure!(!shown.is_empty(), "the tool shows no event of session {}", session.session);
        }
    }
    ensure!(verified > 3, "{verified} objects were verified");
    Ok(())
}
