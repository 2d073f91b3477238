//! The stack over real processes: that it starts anywhere, keeps data through faults, and leaves nothing behind.
//!
//! Method: what is promised is checked from outside, by the process table and by clients of Kafka, Postgres and S3.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::primitives::ByteStream;
use devstack::{
    Given, Guard, Part, Parts, S3Kind, ServiceSpec, Stack, StackOptions, Supervisor, free_port, process_table, until,
};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};

const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "kept";

/// Goal: stacks do not collide, also where Postgres' user cannot enter the home. Method: two at once in private folders, the same
/// names used in both, different values read back; then nothing of them is left.
#[tokio::test(flavor = "multi_thread")]
async fn two_stacks_at_once_share_nothing_and_leave_nothing() -> Result<()> {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [first, second] = [0, 1].map(|which| Stack::start_with(temporary(folders[which].path()), Given::default()));
    let (first, second) = tokio::try_join!(first, second)?;
    let [a, b] = [&first, &second].map(|stack| stack.parts().clone());
    assert_ne!(a.kafka_brokers, b.kafka_brokers);
    assert_ne!(a.database_url, b.database_url);
    assert_ne!(a.s3.endpoint, b.s3.endpoint);

    put(&a, "of the first").await?;
    put(&b, "of the second").await?;
    assert_eq!(get(&a).await?, "of the first");
    assert_eq!(get(&b).await?, "of the second");

    let mut pids = Vec::new();
    for stack in [&first, &second] {
        for part in Part::ALL {
            pids.push(stack.pid(part).await.context("each part has a process")?);
        }
    }
    let homes = [&first, &second].map(|stack| stack.home().to_path_buf());
    tokio::try_join!(first.stop(), second.stop())?;
    assert_eq!(alive(&pids), Vec::<u32>::new());
    assert!(homes.iter().all(|home| !home.exists()), "a temporary home goes with its stack: {homes:?}");
    Ok(())
}

/// Goal: faults do what they say, and no fault loses data. Method: in a very deep home, write once, then kill, terminate and pause
/// each part and read after each.
#[tokio::test(flavor = "multi_thread")]
async fn parts_keep_address_and_data_through_faults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let mut home = folder.path().to_path_buf();
    while home.as_os_str().len() < 200 {
        home.push("a-deep-folder");
    }
    let stack = Stack::start_with(kept(&home), Given::default()).await?;
    let parts = stack.parts().clone();
    put(&parts, "kept").await?;

    for part in Part::ALL {
        let before = stack.pid(part).await.context("it runs")?;
        stack.kill(part).await?;
        assert_eq!(stack.pid(part).await, None);
        assert_eq!(alive(&[before]), Vec::<u32>::new());
        stack.restart(part).await?;
        assert_ne!(stack.pid(part).await, Some(before));
        assert_eq!(get(&parts).await.with_context(|| format!("after a kill of {part}"))?, "kept");
    }
    for part in Part::ALL {
        stack.terminate(part).await?;
        assert_eq!(stack.pid(part).await, None);
        stack.restart(part).await?;
    }
    assert_eq!(get(&parts).await.context("after a restart of each")?, "kept");
    for part in Part::ALL {
        stack.pause(part).await?;
        let answer = tokio::time::timeout(Duration::from_millis(500), get(&parts)).await;
        assert!(!matches!(answer, Ok(Ok(_))), "{part} answers while it is paused");
        stack.resume(part).await?;
    }
    assert_eq!(get(&parts).await.context("after a pause of each")?, "kept");

    let given = Given {
        kafka_brokers: Some(parts.kafka_brokers.clone()),
        database_url: Some(parts.database_url.clone()),
        s3: Some(parts.s3.clone()),
    };
    check_given(given, &parts).await?;

    stack.stop().await?;
    let again = Stack::start_with(kept(&home), Given::default()).await?;
    assert_eq!(again.parts(), &parts, "addresses are kept");
    assert_eq!(get(&parts).await.context("after a stop of all")?, "kept");
    again.stop().await
}

/// Addresses that are given are used, nothing is started for them, and they survive the stack that used them.
async fn check_given(given: Given, parts: &Parts) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let user = Stack::start_with(temporary(folder.path()), given).await?;
    assert_eq!(user.parts(), parts);
    for part in Part::ALL {
        assert_eq!(user.pid(part).await, None);
        let error = user.kill(part).await.expect_err("what was not started here is not killed");
        assert!(error.to_string().contains(part.variable()), "{error}");
    }
    user.stop().await?;
    assert_eq!(get(parts).await?, "kept");
    Ok(())
}

/// Goal: a parent that is killed leaves no process, a second one is refused while the first lives, and the next one finds the
/// data. Method: the real binary, its family from the process table.
#[test]
fn a_killed_parent_leaves_nothing_running() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut first = Up::start(folder.path())?;
    let family = first.family();
    assert!(family.len() >= 13, "a guard, kafka, s3, postgres with its helpers, five services: {family:?}");

    let refused = devstack_up(folder.path()).output()?;
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains(&format!("process {}", first.child.id())) && message.contains("--home"), "{message}");

    first.child.kill()?;
    first.child.wait()?;
    // At once: it waits for the guard of the first.
    let mut second = Up::start(folder.path())?;
    assert_eq!(alive(&family), Vec::<u32>::new());
    assert_eq!(parts_of(&first.addresses), parts_of(&second.addresses));

    let family = second.family();
    signal(second.child.id(), Signal::INT)?;
    assert!(second.child.wait()?.success());
    assert_eq!(alive(&family), Vec::<u32>::new());
    Ok(())
}

/// What `up` says of the parts, which keep their addresses; services are new processes each time.
fn parts_of(lines: &[String]) -> Vec<&String> {
    let parts: Vec<&String> =
        lines.iter().filter(|line| ["kafka ", "postgres ", "s3 "].iter().any(|part| line.starts_with(part))).collect();
    assert_eq!(parts.len(), 3, "{lines:?}");
    parts
}

/// Goal: an interrupt while starting leaves nothing either. Method: interrupt once a part's log has appeared.
#[test]
fn an_interrupted_start_leaves_nothing_running() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut child = devstack_up(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("the start of a part", || folder.path().join("logs/kafka-format.log").exists())?;
    let family = descendants(child.id());
    signal(child.id(), Signal::INT)?;
    assert!(!child.wait()?.success());
    assert_eq!(alive(&family), Vec::<u32>::new());
    Ok(())
}

/// Goal: a part that cannot start says what, where and why. Method: a cluster that is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_names_the_part_its_log_and_the_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let state = serde_json::json!({
        "id": "fixed",
        "kafka_port": free_port()?,
        "kafka_controller_port": free_port()?,
        "kafka_cluster_id": "unused",
        "postgres_port": free_port()?,
        "postgres_password": "unused",
        "s3_port": free_port()?,
        "s3_access_key": "key",
        "s3_secret_key": "secret",
    });
    std::fs::write(folder.path().join("stack.json"), state.to_string())?;
    let data = folder.path().join("postgres/data");
    std::fs::create_dir_all(&data)?;
    std::fs::write(folder.path().join("postgres/stack-id"), "fixed")?;
    let nowhere = format!("127.0.0.1:{}", free_port()?);
    let given = Given { kafka_brokers: Some(nowhere), ..Given::default() };
    let error =
        Stack::start_with(kept(folder.path()), given).await.map(drop).expect_err("an empty folder is no cluster");
    let message = format!("{error:#}");
    for expect in ["start postgres", "logs/postgres.log", "postgresql.conf"] {
        assert!(message.contains(expect), "{expect:?} is missing in: {message}");
    }
    Ok(())
}

/// Goal: a service that dies comes back, one that must not does not, each change is told, and readiness is what the service says.
/// Method: `sleep` as the service, an admin port that this test answers itself.
#[tokio::test(flavor = "multi_thread")]
async fn services_are_kept_running_and_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guard = Guard::start(&folder.path().join("guard.log"), std::fs::File::create(folder.path().join("lock"))?)?;
    let told: Arc<Mutex<Vec<Option<u32>>>> = Arc::default();
    let hook = Arc::clone(&told);
    let supervisor = Supervisor::new(guard.clone(), folder.path().to_path_buf(), move |services| {
        hook.lock().expect("no test panics in the hook").push(services.first().map(|service| service.pid));
    })?;
    let is_ready = Arc::new(AtomicBool::new(false));
    let admin_url = serve_readyz(Arc::clone(&is_ready))?;
    let spec = ServiceSpec {
        name: "sleeper".to_owned(),
        binary: folder.path().join("sleeper"),
        env: vec![("SECONDS_TO_SLEEP".to_owned(), "1000".to_owned())],
        admin_url,
        restart: true,
    };
    std::fs::write(&spec.binary, "#!/bin/sh\nexec sleep \"$SECONDS_TO_SLEEP\"\n")?;
    std::fs::set_permissions(&spec.binary, PermissionsExt::from_mode(0o755))?;
    supervisor.start(spec).await?;
    let first = supervisor.pid("sleeper").context("it runs")?;

    let error =
        supervisor.wait_ready("sleeper", Duration::from_millis(100)).await.expect_err("it says that it is not ready");
    assert!(format!("{error:#}").contains("503"), "{error:#}");
    is_ready.store(true, Ordering::SeqCst);
    supervisor.wait_ready("sleeper", SOON).await?;

    supervisor.kill("sleeper").await?;
    let second =
        until("see it again", SOON, async || supervisor.pid("sleeper").filter(|pid| *pid != first).context("down"))
            .await?;
    supervisor.pause("sleeper").await?;
    supervisor.resume("sleeper").await?;
    supervisor.restart("sleeper").await?;
    let third = supervisor.pid("sleeper").context("it runs")?;
    assert_eq!(alive(&[first, second]), Vec::<u32>::new());
    assert_eq!(alive(&[third]), [third]);

    supervisor.set_restart("sleeper", false)?;
    supervisor.kill("sleeper").await?;
    is_ready.store(false, Ordering::SeqCst);
    let error = supervisor.wait_ready("sleeper", SOON).await.expect_err("it is down");
    assert!(format!("{error:#}").contains("not restarted"), "{error:#}");
    supervisor.restart("sleeper").await?;
    let fourth = supervisor.pid("sleeper").context("it runs")?;
    supervisor.stop_all().await?;
    assert_eq!(alive(&[fourth]), Vec::<u32>::new());
    let told = told.lock().expect("the hook does not panic").clone();
    let running: Vec<u32> = told.iter().copied().flatten().collect();
    let mut in_order = running.clone();
    in_order.dedup();
    assert_eq!(in_order, [first, second, third, fourth]);
    assert_eq!(told.last(), Some(&None));
    guard.close();
    Ok(())
}

/// Answers every request: 200 when `is_ready`, else 503.
fn serve_readyz(is_ready: Arc<AtomicBool>) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 1024];
            let status = if is_ready.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
            let response = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            if stream.read(&mut request).is_ok() {
                drop(stream.write_all(response.as_bytes()));
            }
        }
    });
    Ok(url)
}

fn kept(home: &Path) -> StackOptions {
    StackOptions { home: home.to_path_buf(), s3: S3Kind::Folder, progress: false, remove_home: false }
}

fn temporary(home: &Path) -> StackOptions {
    StackOptions { remove_home: true, ..kept(home) }
}

/// `devstack up` as a person runs it.
struct Up {
    child: Child,
    addresses: Vec<String>,
}

fn devstack_up(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devstack"));
    command.args(["up", "--home"]).arg(home).stdin(Stdio::null());
    for variable in Part::ALL.map(Part::variable) {
        command.env_remove(variable);
    }
    command
}

impl Up {
    fn start(home: &Path) -> Result<Up> {
        let mut child = devstack_up(home).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let mut addresses = Vec::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            if line.starts_with("Ctrl-C") {
                return Ok(Up { child, addresses });
            }
            addresses.push(line);
        }
        bail!("devstack up ended: {}", child.wait()?)
    }

    fn family(&self) -> Vec<u32> {
        descendants(self.child.id())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn signal(pid: u32, which: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a child's pid is not 0")?;
    Ok(kill_process(pid, which)?)
}

fn descendants(pid: u32) -> Vec<u32> {
    process_table::descendants(pid).into_iter().map(|entry| entry.pid).collect()
}

fn alive(pids: &[u32]) -> Vec<u32> {
    let is_alive = |pid: &u32| process_table::entry(*pid).is_some_and(|entry| entry.is_alive());
    pids.iter().copied().filter(is_alive).collect()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition() {
        ensure!(Instant::now() < deadline, "wait for {what}: not in {} s", SOON.as_secs());
        std::thread::yield_now();
    }
    Ok(())
}

/// Writes `value` to all three parts.
async fn put(parts: &Parts, value: &str) -> Result<()> {
    let kafka = kafka_config(parts);
    let admin: AdminClient<DefaultClientContext> = kafka.create()?;
    let topic = NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1));
    for made in admin.create_topics([&topic], &AdminOptions::new()).await? {
        made.map_err(|(name, code)| anyhow::anyhow!("create topic {name}: {code}"))?;
    }
    let producer: FutureProducer = kafka.create()?;
    let record: FutureRecord<'_, str, str> = FutureRecord::to(TOPIC).payload(value);
    producer.send(record, SOON).await.map_err(|(error, _)| error).context("produce")?;

    let mut database = PgConnection::connect(&parts.database_url).await?;
    sqlx::query("CREATE TABLE kept (value text NOT NULL)").execute(&mut database).await?;
    sqlx::query("INSERT INTO kept VALUES ($1)").bind(value).execute(&mut database).await?;
    database.close().await?;

    let body = ByteStream::from(value.as_bytes().to_vec());
    s3_client(parts).put_object().bucket(&parts.s3.bucket).key("a/kept").body(body).send().await?;
    Ok(())
}

/// What all three parts agree on.
async fn get(parts: &Parts) -> Result<String> {
    let mut database = PgConnection::connect(&parts.database_url).await?;
    let from_postgres: String =
        sqlx::query("SELECT value FROM kept").fetch_one(&mut database).await?.try_get("value")?;

    let object = s3_client(parts).get_object().bucket(&parts.s3.bucket).key("a/kept").send().await?;
    let from_s3 = String::from_utf8(object.body.collect().await?.to_vec())?;

    let kafka = kafka_config(parts);
    let from_kafka = tokio::task::spawn_blocking(move || read_first(&kafka)).await??;
    ensure!(from_postgres == from_s3 && from_s3 == from_kafka, "they differ: {from_postgres}, {from_s3}, {from_kafka}");
    Ok(from_kafka)
}

fn read_first(kafka: &ClientConfig) -> Result<String> {
    use rdkafka::{Message, Offset, TopicPartitionList};
    let consumer: BaseConsumer = kafka.clone().set("group.id", "reader").create()?;
    let mut from_the_start = TopicPartitionList::new();
    from_the_start.add_partition_offset(TOPIC, 0, Offset::Beginning)?;
    consumer.assign(&from_the_start)?;
    let deadline = Instant::now() + SOON;
    loop {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => {
                return Ok(String::from_utf8(message.payload().context("it has a payload")?.to_vec())?);
            }
            Some(Err(error)) if Instant::now() > deadline => return Err(error).context("consume"),
            None if Instant::now() > deadline => {
                bail!("consume: nothing came in {} s", SOON.as_secs())
            }
            _ => {}
        }
    }
}

fn kafka_config(parts: &Parts) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &parts.kafka_brokers).set("reconnect.backoff.max.ms", "200").set("log_level", "0");
    config
}

fn s3_client(parts: &Parts) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(parts.s3.region.clone()))
        .credentials_provider(Credentials::new(&parts.s3.access_key, &parts.s3.secret_key, None, None, "test"))
        .endpoint_url(&parts.s3.endpoint)
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}
