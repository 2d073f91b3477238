//! `endpoints.json`: where everything of a running stack is, for those who did not start it (tests, bench, a person's shell).
//!
//! It holds keys, so nobody but its owner may read it; it is replaced by rename, so a reader never sees half of it.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::S3Access;

/// Addresses, keys and processes of a running stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The edge, which the SDK talks to.
    pub edge_url: String,
    /// The control plane, which customers and the dashboard talk to.
    pub api_url: String,
    /// Bootstrap servers, comma separated.
    pub kafka_brokers: String,
    /// `postgres://…` with user and password.
    pub database_url: String,
    /// The bucket and the way to it.
    pub s3: S3Access,
    /// The workspace that was made for use with this stack.
    pub workspace_id: String,
    /// An API key of that workspace.
    pub api_key: String,
    /// The operator's key.
    pub operator_key: String,
    /// The services that run now.
    pub services: Vec<ServiceEndpoint>,
}

/// A running service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// `ingest-edge`, `batcher-2`, …
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub admin_url: String,
}

impl Endpoints {
    /// The file's name in a stack's home.
    pub const FILE: &str = "endpoints.json";

    /// Writes the file in `home`, in place of an older one.
    pub fn write(&self, home: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("encode endpoints")?;
        text.push(b'\n');
        write_private(&home.join(Endpoints::FILE), &text)
    }

    /// Reads the file in `home`.
    pub fn read(home: &Path) -> anyhow::Result<Endpoints> {
        let path = home.join(Endpoints::FILE);
        let text = std::fs::read(&path)
            .with_context(|| format!("read endpoints: {}\n  is the stack up? start it: make up", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("decode endpoints: {}", path.display()))
    }
}

/// Replaces a file by rename, readable by its owner alone.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("find folder of file to be written")?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write file: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_written_and_private() {
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        let endpoints = Endpoints {
            edge_url: "http://127.0.0.1:1".to_owned(),
            api_url: "http://127.0.0.1:2".to_owned(),
            kafka_brokers: "127.0.0.1:3".to_owned(),
            database_url: "postgres://postgres:x@127.0.0.1:4/postgres".to_owned(),
            s3: S3Access {
                endpoint: "http://127.0.0.1:5".to_owned(),
                region: "us-east-1".to_owned(),
                bucket: "clairvio".to_owned(),
                access_key: "a".to_owned(),
                secret_key: "s".to_owned(),
            },
            workspace_id: "w".to_owned(),
            api_key: "k".to_owned(),
            operator_key: "o".to_owned(),
            services: vec![ServiceEndpoint {
                name: "batcher-1".to_owned(),
                pid: 7,
                admin_url: "http://127.0.0.1:6".to_owned(),
            }],
        };
        for _ in 0..2 {
            endpoints.write(home.path()).expect("endpoints can be written");
            assert_eq!(Endpoints::read(home.path()).expect("endpoints can be read"), endpoints);
        }
        let mode = std::fs::metadata(home.path().join(Endpoints::FILE)).expect("the file exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
