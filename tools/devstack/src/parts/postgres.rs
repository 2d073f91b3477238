//! A Postgres cluster of its own, from the server programs that the system has.
//!
//! Postgres refuses to run as root, and the user that it then runs as cannot enter a folder below `/root` or one that only its
//! owner may enter. Then the data lies in a short folder below `/var/tmp` that carries the stack's id. It listens on TCP alone: a
//! socket's path must be shorter than many a home is deep.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use schemas::codec::hex;
use sha2::{Digest, Sha256};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::guard::{Guard, StopSignal};
use crate::home::{Home, Kept};
use crate::places;
use crate::process::{Launch, Managed, User};
use crate::until;

const OLDEST: u32 = 14;
const INITDB_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Whom Postgres runs as when we are root: the first of these that exists.
const USERS: [&str; 2] = ["postgres", "nobody"];
const ELSEWHERE: &str = "/var/tmp";

#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    folder: PathBuf,
    user: Option<User>,
    log: PathBuf,
    port: u16,
    password: String,
}

impl Postgres {
    /// Finds the programs and a folder, and makes a cluster in a new home.
    pub(crate) async fn prepare(home: &Home, kept: &Kept, guard: &Guard) -> anyhow::Result<Postgres> {
        let programs = find_programs()?;
        let user = if rustix::process::geteuid().is_root() { Some(find_user()?) } else { None };
        let folder = folder(home, user)?;
        let postgres = Postgres {
            programs,
            folder,
            user,
            log: home.log("postgres"),
            port: kept.postgres_port,
            password: kept.postgres_password.clone(),
        };
        postgres.own_folder(kept)?;
        if postgres.folder.starts_with(ELSEWHERE) && !home.path.starts_with(ELSEWHERE) {
            let note = format!("{}\n", postgres.folder.display());
            std::fs::write(home.path.join("postgres.elsewhere"), note)
                .context("note where the data of postgres lies")?;
        }
        postgres.make_cluster(home, guard).await?;
        Ok(postgres)
    }

    /// Where the data lies, to be removed along with the home.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn launch(&self) -> Launch {
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            "unix_socket_directories=".to_owned(),
            "max_connections=300".to_owned(),
            "shared_buffers=128MB".to_owned(),
            "log_timezone=UTC".to_owned(),
            "timezone=UTC".to_owned(),
        ];
        let mut launch = self.launch_program("postgres", "postgres", self.log.clone()).args(["-D"]).args([self.data()]);
        for setting in settings {
            launch = launch.args(["-c".to_owned(), setting]);
        }
        launch.stop = StopSignal::Interrupt;
        launch
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn launch_program(&self, name: &str, program: &str, log: PathBuf) -> Launch {
        let mut launch = Launch::new(name, self.programs.join(program), log).env("LC_ALL", "C");
        launch.user = self.user;
        // These would have a say in a server's settings, or in where its data lies.
        launch.env_remove = ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGOPTIONS"].map(str::to_owned).to_vec();
        launch
    }

    /// Makes the folder, or makes sure that the one that exists is this stack's.
    fn own_folder(&self, kept: &Kept) -> anyhow::Result<()> {
        let folder = self.folder.display();
        let id_file = self.folder.join("stack-id");
        match std::fs::symlink_metadata(&self.folder) {
            Ok(metadata) => {
                let me = rustix::process::geteuid().as_raw();
                let is_ours = metadata.is_dir()
                    && (metadata.uid() == me || Some(metadata.uid()) == self.user.map(|user| user.uid));
                if !is_ours {
                    bail!(
                        "use folder of postgres: {folder} belongs to somebody else; remove it, or choose another home"
                    );
                }
                if std::fs::read_to_string(&id_file).is_ok_and(|id| id == kept.id) {
                    return self.give(&self.folder);
                }
                // Left by a home of the same path that is gone.
                std::fs::remove_dir_all(&self.folder)
                    .with_context(|| format!("remove data of a former stack: {folder}"))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("look at folder of postgres: {folder}"));
            }
        }
        std::fs::create_dir(&self.folder).with_context(|| format!("make folder of postgres: {folder}"))?;
        std::fs::set_permissions(&self.folder, Permissions::from_mode(0o700)).context("close folder of postgres")?;
        std::fs::write(id_file, &kept.id).context("write id into folder of postgres")?;
        self.give(&self.folder)
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = self.user else { return Ok(()) };
        chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("give to the user of postgres: {}", path.display()))
    }

    async fn make_cluster(&self, home: &Home, guard: &Guard) -> anyhow::Result<()> {
        if self.data().exists() {
            return Ok(());
        }
        // It gets its name when it is whole: an interrupted initdb leaves a folder that no server takes.
        let half_made = self.folder.join("data.new");
        if half_made.exists() {
            std::fs::remove_dir_all(&half_made).context("remove half-made cluster of postgres")?;
        }
        let password_file = self.folder.join("password");
        std::fs::write(&password_file, &self.password).context("write password for initdb")?;
        std::fs::set_permissions(&password_file, Permissions::from_mode(0o600)).context("close password for initdb")?;
        self.give(&password_file)?;
        let initdb = self
            .launch_program("initdb", "initdb", home.log("postgres-initdb"))
            .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .args([format!("--pwfile={}", password_file.display())])
            .args(["-D"])
            .args([&half_made]);
        Managed::run(guard, &initdb, INITDB_TIMEOUT).await.context("make cluster of postgres")?;
        std::fs::remove_file(&password_file).context("remove password for initdb")?;
        std::fs::rename(&half_made, self.data()).context("move cluster of postgres into place")
    }
}

/// Waits until the server answers a query.
pub(crate) async fn answers(url: &str, timeout: Duration) -> anyhow::Result<()> {
    // The address holds the password.
    let shown = url.rsplit_once('@').map_or("DATABASE_URL", |(_, address)| address);
    until(&format!("query postgres at {shown}"), timeout, async || {
        let query = async {
            let mut connection = PgConnection::connect(url).await?;
            sqlx::query("SELECT 1").execute(&mut connection).await?;
            connection.close().await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, query).await.context("no answer")?.context("connect")
    })
    .await
}

/// One of the programs that come with the server: `pg_dump`, `psql`, …
pub fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(find_programs()?.join(name))
}

/// In the path, else the newest of those that distributions and Homebrew keep out of it.
fn find_programs() -> anyhow::Result<PathBuf> {
    if let Some(initdb) = places::find_program("initdb", &[]) {
        // A link in the path may stand alone; its target has the other programs beside it.
        let initdb = initdb.canonicalize().context("follow link to initdb")?;
        if let Some(folder) = initdb.parent().filter(|folder| folder.join("postgres").is_file()) {
            return Ok(folder.to_path_buf());
        }
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (base, prefix, below) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version =
                name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|version| version.parse().ok());
            let programs = entry.path().join(below);
            if let Some(version) = version.filter(|version| *version >= OLDEST && programs.join("initdb").is_file()) {
                found.push((version, programs));
            }
        }
    }
    let newest = found.into_iter().max();
    newest.map(|(_, programs)| programs).with_context(|| {
        format!("find postgres: no initdb in PATH, /usr/lib/postgresql/*/bin or Homebrew's folders\n  install Postgres {OLDEST} or newer: tools/setup")
    })
}

fn find_user() -> anyhow::Result<User> {
    let id = |flag: &str, name: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, name]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let user = USERS.iter().find_map(|name| Some(User { uid: id("-u", name)?, gid: id("-g", name)? }));
    user.context("find user for postgres, which does not run as root: there is neither a user postgres nor nobody")
}

fn folder(home: &Home, user: Option<User>) -> anyhow::Result<PathBuf> {
    if user.is_none() || home.path.ancestors().all(anybody_may_enter) {
        return Ok(home.path.join("postgres"));
    }
    let hash = hex(&Sha256::digest(home.path.as_os_str().as_encoded_bytes())[..8]);
    let me = rustix::process::geteuid().as_raw();
    let folder = Path::new(ELSEWHERE).join(format!("clairvio-devstack-{me}-{hash}"));
    Ok(folder)
}

fn anybody_may_enter(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
}
