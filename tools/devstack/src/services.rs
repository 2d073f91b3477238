//! Keeps services running: starts them, starts one again that died, and tells who runs where.
//!
//! Each service has a task that waits for the end of its process. What changes a service (a start, a restart, a stop) takes its
//! turn first, so that a death that was asked for and the task that notices it do not both start a successor. Restarts that nobody
//! asked for wait 100 ms, doubled each time up to 5 s, and 100 ms again once a process has lived for 10 s.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;

use crate::ServiceEndpoint;
use crate::guard::Guard;
use crate::process::{Launch, Managed};
use crate::until;

const SHORTEST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A process that lived this long was well: the next wait is the shortest again.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// For a service to drain after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// For one answer of an admin port.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A service to be kept running.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// `ingest-edge`, `batcher-2`, …: its name here, in `endpoints.json`, and of its log.
    pub name: String,
    /// Its program; see [`crate::find_binary`].
    pub binary: PathBuf,
    /// Its configuration.
    pub env: Vec<(String, String)>,
    /// Where `/readyz` is.
    pub admin_url: String,
    /// Whether it is started again when it dies.
    pub restart: bool,
}

/// Runs services. Dropping it starts nothing any more and leaves those that run to the stack's guard; [`Supervisor::stop_all`]
/// ends them in order.
pub struct Supervisor {
    shared: Arc<Shared>,
    http: reqwest::Client,
}

type OnChange = dyn Fn(&[ServiceEndpoint]) + Send + Sync;

struct Shared {
    guard: Guard,
    logs: PathBuf,
    services: Mutex<BTreeMap<String, Arc<Service>>>,
    on_change: Box<OnChange>,
    /// Held while the hook runs, so that it sees changes one after the other, the newest last.
    telling: Mutex<()>,
}

struct Service {
    spec: ServiceSpec,
    /// Taken by whoever starts or ends its process.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    process: Option<Arc<Managed>>,
    restart: bool,
    backoff: Duration,
    /// Its death was asked for, and says nothing about how well it is.
    is_asked_to_die: bool,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Supervisor").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for service in self.shared.all() {
            service.state().restart = false;
        }
    }
}

impl Supervisor {
    /// A supervisor without services; see [`crate::Stack::supervisor`].
    pub fn new(
        guard: Guard,
        logs: PathBuf,
        on_change: impl Fn(&[ServiceEndpoint]) + Send + Sync + 'static,
    ) -> anyhow::Result<Supervisor> {
        let http = reqwest::Client::builder().timeout(PROBE_TIMEOUT).no_proxy().build().context("make http client")?;
        let shared = Shared {
            guard,
            logs,
            services: Mutex::default(),
            on_change: Box::new(on_change),
            telling: Mutex::default(),
        };
        Ok(Supervisor { shared: Arc::new(shared), http })
    }

    /// Starts a service. That it was started does not mean that it is ready: see [`Supervisor::wait_ready`].
    pub async fn start(&self, spec: ServiceSpec) -> anyhow::Result<()> {
        let state = State { process: None, restart: spec.restart, backoff: SHORTEST_BACKOFF, is_asked_to_die: false };
        let service = Arc::new(Service { spec, turn: tokio::sync::Mutex::default(), state: Mutex::new(state) });
        let name = service.spec.name.clone();
        if self.shared.services().contains_key(&name) {
            bail!("start service {name}: there is one of that name; restart it, or choose another name");
        }
        self.shared.services().insert(name, Arc::clone(&service));
        let _turn = service.turn.lock().await;
        Arc::clone(&self.shared).start_process(&service)
    }

    /// The services that run now, by name.
    pub fn running(&self) -> Vec<ServiceEndpoint> {
        self.shared.running()
    }

    /// The process of a service; None while it is down.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.running().into_iter().find(|service| service.name == name).map(|service| service.pid)
    }

    /// Where the log of a service is.
    pub fn log(&self, name: &str) -> PathBuf {
        self.shared.log(name)
    }

    /// Kills a service (SIGKILL) and waits until it is gone. It comes back if it is one that is restarted.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.service(name)?.asked_to_die()?.kill().await
    }

    /// Asks a service to end (SIGTERM) and waits until it has. It comes back if it is one that is restarted.
    pub async fn terminate(&self, name: &str) -> anyhow::Result<()> {
        self.service(name)?.asked_to_die()?.terminate(STOP_GRACE).await
    }

    /// Stops a service in its tracks (SIGSTOP).
    pub async fn pause(&self, name: &str) -> anyhow::Result<()> {
        self.service(name)?.process()?.pause().await
    }

    /// Lets a paused service go on (SIGCONT).
    pub async fn resume(&self, name: &str) -> anyhow::Result<()> {
        self.service(name)?.process()?.resume().await
    }

    /// Whether a service is started again when it dies, from now on. One that is down already stays down until
    /// [`Supervisor::restart`].
    pub fn set_restart(&self, name: &str, restart: bool) -> anyhow::Result<()> {
        self.service(name)?.state().restart = restart;
        Ok(())
    }

    /// Asks a service to end if it runs, and starts it at once.
    pub async fn restart(&self, name: &str) -> anyhow::Result<()> {
        let service = self.service(name)?;
        let _turn = service.turn.lock().await;
        let running = service.state().process.take();
        if let Some(process) = running {
            process.terminate(STOP_GRACE).await?;
        }
        Arc::clone(&self.shared).start_process(&service)
    }

    /// Waits until `/readyz` of a service answers 200. The error says what it answered last, and what its log says.
    pub async fn wait_ready(&self, name: &str, timeout: Duration) -> anyhow::Result<()> {
        let service = self.service(name)?;
        let url = format!("{}/readyz", service.spec.admin_url.trim_end_matches('/'));
        let what = format!("wait for {name} to be ready at {url}");
        let ready = until(&what, timeout, async || {
            let response = self.http.get(&url).send().await.context("ask")?;
            let status = response.status();
            if !status.is_success() {
                bail!("it answered {status}: {}", response.text().await.unwrap_or_default().trim());
            }
            Ok(())
        });
        let result = tokio::select! {
            result = ready => result,
            () = service.is_down_for_good() => Err(anyhow::anyhow!("wait for {name} to be ready: it ended and is not restarted")),
        };
        result.map_err(|error| {
            let process = service.state().process.clone();
            let log = process
                .map_or_else(|| format!("its log: {}", self.shared.log(name).display()), |process| process.log_tail());
            anyhow::anyhow!("{error:#}\n{log}")
        })
    }

    /// What a service's `/metrics` shows.
    pub async fn metrics(&self, name: &str) -> anyhow::Result<String> {
        let url = format!("{}/metrics", self.service(name)?.spec.admin_url.trim_end_matches('/'));
        let ask = async { self.http.get(&url).send().await?.error_for_status()?.text().await };
        ask.await.with_context(|| format!("ask {name} for its metrics at {url}"))
    }

    /// Ends all services at once: SIGTERM, ten seconds to drain, SIGKILL.
    pub async fn stop_all(&self) -> anyhow::Result<()> {
        let services = self.shared.all();
        for service in &services {
            service.state().restart = false;
        }
        let ends = services.iter().map(|service| async {
            let _turn = service.turn.lock().await;
            let running = service.state().process.take();
            match running {
                Some(process) => process.terminate(STOP_GRACE).await,
                None => Ok(()),
            }
        });
        let results = join_all(ends).await;
        self.shared.services().clear();
        self.shared.tell();
        results.into_iter().collect()
    }

    fn service(&self, name: &str) -> anyhow::Result<Arc<Service>> {
        let services = self.shared.services();
        services.get(name).cloned().with_context(|| {
            let names: Vec<&str> = services.keys().map(String::as_str).collect();
            format!("find service {name}: there are {}", names.join(", "))
        })
    }
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> anyhow::Result<Arc<Managed>> {
        let process = self.state().process.clone();
        process.with_context(|| format!("control {}: it is not running; restart it first", self.spec.name))
    }

    fn asked_to_die(&self) -> anyhow::Result<Arc<Managed>> {
        let process = self.process()?;
        self.state().is_asked_to_die = true;
        Ok(process)
    }

    /// Returns when nothing runs and nothing will, without being asked.
    async fn is_down_for_good(&self) {
        loop {
            let process = self.state().process.clone();
            if let Some(process) = process {
                process.wait().await;
            }
            {
                let _turn = self.turn.lock().await;
                let state = self.state();
                if state.process.is_none() && !state.restart {
                    return;
                }
            }
            tokio::time::sleep(SHORTEST_BACKOFF).await;
        }
    }
}

impl Shared {
    fn services(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Service>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Service>> {
        self.services().values().cloned().collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn running(&self) -> Vec<ServiceEndpoint> {
        let endpoint = |service: Arc<Service>| {
            let pid = service.state().process.as_ref()?.pid();
            Some(ServiceEndpoint { name: service.spec.name.clone(), pid, admin_url: service.spec.admin_url.clone() })
        };
        self.all().into_iter().filter_map(endpoint).collect()
    }

    fn tell(&self) {
        let _one_at_a_time = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        (self.on_change)(&self.running());
    }

    /// To be called in the service's turn.
    fn start_process(self: Arc<Shared>, service: &Arc<Service>) -> anyhow::Result<()> {
        let name = &service.spec.name;
        let mut launch = Launch::new(name, &service.spec.binary, self.log(name));
        launch.env.clone_from(&service.spec.env);
        let process = Arc::new(Managed::spawn(&self.guard, &launch)?);
        {
            let mut state = service.state();
            state.process = Some(Arc::clone(&process));
            state.is_asked_to_die = false;
        }
        self.tell();
        tokio::spawn(self.look_after(Arc::clone(service), process, Instant::now()));
        Ok(())
    }

    /// Waits for the end of a process and starts its successor, unless somebody else did or nobody wants one.
    async fn look_after(self: Arc<Shared>, service: Arc<Service>, process: Arc<Managed>, since: Instant) {
        let status = process.wait().await;
        let name = &service.spec.name;
        let wait = {
            let mut state = service.state();
            let is_current = state.process.as_ref().is_some_and(|current| Arc::ptr_eq(current, &process));
            if !is_current {
                return;
            }
            state.process = None;
            if state.is_asked_to_die || since.elapsed() >= WELL_AFTER {
                state.backoff = SHORTEST_BACKOFF;
            }
            let wait = state.backoff;
            if !state.is_asked_to_die {
                state.backoff = (wait * 2).min(LONGEST_BACKOFF);
                tracing::warn!(service = %name, pid = process.pid(), %status, "service ended by itself");
            }
            wait
        };
        self.tell();

        loop {
            tokio::time::sleep(wait).await;
            let _turn = service.turn.lock().await;
            {
                let state = service.state();
                if !state.restart || state.process.is_some() {
                    return;
                }
            }
            match Arc::clone(&self).start_process(&service) {
                Ok(()) => return,
                Err(error) => tracing::error!(service = %name, "start service again: {error:#}"),
            }
        }
    }
}
