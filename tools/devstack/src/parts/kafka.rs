//! Apache Kafka, one node that is broker and controller, from jars that Maven lays into the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::guard::Guard;
use crate::home::{Home, Kept};
use crate::places;
use crate::process::{Launch, Managed};
use crate::until;

const VERSION: &str = "4.1.1";
/// What to download: compiled in, so that a binary that was moved elsewhere still knows it.
const POM: &str = include_str!("../../kafka/pom.xml");
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
/// For one answer of the broker.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Kafka {
    java: PathBuf,
    jars: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Kafka {
    /// Gets the jars if need be, and formats the storage of a new home.
    pub(crate) async fn prepare(home: &Home, kept: &Kept, guard: &Guard) -> anyhow::Result<Kafka> {
        let java = find_java()?;
        let jars = jars(home, guard).await?;
        let folder = home.path.join("kafka");
        let kafka = Kafka { java, jars, folder, log: home.log("kafka"), port: kept.kafka_port };
        std::fs::create_dir_all(&kafka.folder)
            .with_context(|| format!("make folder of kafka: {}", kafka.folder.display()))?;
        let properties = kafka.properties(kept.kafka_controller_port);
        std::fs::write(kafka.properties_file(), properties).context("write kafka's properties")?;
        kafka.format(home, kept, guard).await?;
        Ok(kafka)
    }

    async fn format(&self, home: &Home, kept: &Kept, guard: &Guard) -> anyhow::Result<()> {
        let formatted = self.folder.join("formatted");
        if formatted.exists() {
            return Ok(());
        }
        // What a format that was interrupted left behind would make the next one fail.
        let data = self.data();
        if data.exists() {
            std::fs::remove_dir_all(&data).context("remove half-formatted storage of kafka")?;
        }
        let format = Launch::new("kafka storage format", &self.java, home.log("kafka-format"))
            // A program of one second: what a long-running one gains from these costs more than it does.
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .args(self.class_path())
            .args([
                "kafka.tools.StorageTool",
                "format",
                "--standalone",
                "--cluster-id",
                &kept.kafka_cluster_id,
                "--config",
            ])
            .args([self.properties_file()]);
        Managed::run(guard, &format, FORMAT_TIMEOUT)
            .await
            .context("format storage of kafka, which needs Java 17 or newer")?;
        std::fs::write(formatted, "").context("note that kafka's storage is formatted")
    }

    pub(crate) fn launch(&self) -> Launch {
        Launch::new("kafka", &self.java, &self.log)
            .args(["-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Djava.awt.headless=true"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"])
            .args(["-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX"])
            .args(self.class_path())
            .args(["kafka.Kafka"])
            .args([self.properties_file()])
    }

    pub(crate) fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn class_path(&self) -> [String; 2] {
        ["-cp".to_owned(), format!("{}/*", self.jars.display())]
    }

    fn properties_file(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn properties(&self, controller_port: u16) -> String {
        let port = self.port;
        // In a properties file a backslash begins an escape.
        let data = self.data().display().to_string().replace('\\', "\\\\");
        format!(
            "# Written by devstack at each start.
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}

# A broker that was killed may register again after three seconds instead of nine.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000

# Consumers notice a lost member, and a test the consequences, within seconds.
group.consumer.heartbeat.interval.ms=1000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.session.timeout.ms=6000
group.consumer.min.session.timeout.ms=3000
group.min.session.timeout.ms=1000
group.initial.rebalance.delay.ms=0

# One node holds all copies there are.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
auto.create.topics.enable=false

# A record is 8 MiB at most; the rest is room for its header.
message.max.bytes=9437184
replica.fetch.max.bytes=9437184
log.message.timestamp.type=LogAppendTime

# A benchmark must not fill the disk: 2 GiB per partition.
log.retention.bytes=2147483648
log.segment.bytes=134217728
log.retention.check.interval.ms=30000
"
        )
    }
}

/// Waits until the broker serves metadata that names a broker, which it does once the controller has admitted it.
pub(crate) async fn answers(brokers: &str, timeout: Duration) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        // It is expected to be unreachable for a while; the error below says so once, if it stays so.
        .set("log_level", "0")
        .create()
        .context("make kafka client")?;
    let consumer = Arc::new(consumer);
    until(&format!("ask kafka at {brokers} for its metadata"), timeout, async || {
        let asking = Arc::clone(&consumer);
        let metadata = tokio::task::spawn_blocking(move || asking.fetch_metadata(None, METADATA_TIMEOUT));
        let metadata = metadata.await.context("ask for metadata")?.context("ask for metadata")?;
        anyhow::ensure!(!metadata.brokers().is_empty(), "no broker is admitted yet");
        Ok(())
    })
    .await
}

/// macOS has a `java` in its path that does nothing but say that there is none, so what Homebrew installed comes before the path.
fn find_java() -> anyhow::Result<PathBuf> {
    let mut folders = Vec::new();
    if let Some(java_home) = places::variable("JAVA_HOME") {
        folders.push(Path::new(&java_home).join("bin"));
    }
    for prefix in ["/opt/homebrew/opt", "/usr/local/opt"] {
        for formula in ["openjdk", "openjdk@21", "openjdk@17"] {
            folders.push(Path::new(prefix).join(formula).join("bin"));
        }
    }
    places::find_program("java", &folders)
        .context("find java: neither in JAVA_HOME nor in PATH\n  install Java 17 or newer: tools/setup")
}

/// The folder of Kafka's jars, downloaded if need be. Two who need it at once download once.
async fn jars(home: &Home, guard: &Guard) -> anyhow::Result<PathBuf> {
    let cache = places::cache()?;
    let jars = cache.join(format!("kafka-{VERSION}"));
    if jars.is_dir() {
        return Ok(jars);
    }
    let _turn = places::lock_cache(&cache, "kafka").await?;
    if jars.is_dir() {
        return Ok(jars);
    }
    let Some(maven) = places::find_program("mvn", &[]) else {
        bail!("download kafka {VERSION}: mvn is not in PATH\n  install Maven: tools/setup");
    };
    let download = tempfile::tempdir_in(&cache).context("make folder for the download of kafka")?;
    let pom = download.path().join("pom.xml");
    std::fs::write(&pom, POM).context("write kafka's pom.xml")?;
    let target = download.path().join("jars");
    let fetch = Launch::new("maven", maven, home.log("kafka-download"))
        .args(["-q", "-B", "-f"])
        .args([&pom])
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .args([format!("-DoutputDirectory={}", target.display())]);
    Managed::run(guard, &fetch, DOWNLOAD_TIMEOUT).await.with_context(|| format!("download kafka {VERSION}"))?;
    places::publish_folder(&target, &jars)?;
    Ok(jars)
}
