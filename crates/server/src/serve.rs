//! `octet serve`: bind, load, serve, and end in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use gateway::Gateway;
use metrics::{BuildInfo, Metrics};
use rustix::process::DumpableBehavior;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::ServeArgs;
use crate::config::{Config, keys_of_file};
use crate::load::load;
use crate::{banner, embeddings, logging, supervisor};

/// Threads that speak HTTP; the compute threads are the engine's.
const HTTP_THREADS: usize = 2;
/// Connections that may wait to be accepted; a burst of clients must not run into retransmissions.
const BACKLOG: u32 = 1024;

/// How the server's life ended.
#[derive(Debug, Clone)]
enum End {
    /// Somebody asked for it.
    Asked,
    /// It could not go on.
    Failed(String),
}

/// Serves until a signal, or until the model or the device fails.
///
/// # Errors
/// A bad configuration, a port in use, a model that cannot be loaded, an engine that died.
pub fn run(args: ServeArgs) -> Result<()> {
    let config = Config::resolve(args)?;
    let _written_at_the_end = logging::init(&config.log_level, config.log_format)?;
    keep_memory_private();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(config));
    // Whoever still reads a file of keys, a pipe perhaps that nobody writes to, is not waited for.
    runtime.shutdown_background();
    result
}

/// Memory holds keys and prompts: no core dump of it, and no look into it by processes of the same user.
/// Where the system refuses, serving goes on without.
fn keep_memory_private() {
    let refused = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = refused {
        tracing::warn!(
            %error,
            "the system does not let this process keep its memory to itself (prctl PR_SET_DUMPABLE): a core \
             dump may hold keys and prompts; serving goes on"
        );
    }
}

async fn serve(mut config: Config) -> Result<()> {
    let started = Instant::now();
    let handed_over = supervisor::socket().context("cannot take the supervisor's socket")?;
    let listener = match handed_over {
        Some(listener) => TcpListener::from_std(listener)?,
        None => bind(&config.host, config.port, "--port").await?,
    };
    let address = listener.local_addr()?;
    let version = env!("CARGO_PKG_VERSION");
    crate::say(&format!("octet {version} on http://{address}\n"))?;
    let metrics_listener = bind_metrics(&config).await?;
    let metrics = Metrics::new(&config.gateway.served_model_names[0]);
    let gateway = Gateway::new(config.gateway.clone(), metrics.clone());
    // It has hashes of them, and nobody needs more.
    config.gateway.api_keys.clear();
    config.gateway.replaceable_api_keys.clear();
    let (end, mut ended) = watch::channel(None);
    tokio::spawn(watch_signals(gateway.clone(), end.clone())?);
    if let Some(path) = config.api_key_file.clone() {
        tokio::spawn(watch_keys(gateway.clone(), path)?);
    }
    if let Some(listener) = metrics_listener {
        tokio::spawn(gateway::serve_metrics(gateway.clone(), listener));
    }
    tokio::spawn(supervisor::feed_watchdog(gateway.clone()));
    tokio::spawn(watch_engine(gateway.clone(), end.clone()));
    spawn_model(config, gateway.clone(), metrics, (address, started), end)?;
    let shutdown = {
        let mut ended = ended.clone();
        async move {
            // An error means that every sender is gone, which is an end as well.
            let _ = ended.wait_for(Option::is_some).await;
        }
    };
    gateway::serve(gateway, listener, shutdown).await;
    match ended.borrow_and_update().clone() {
        Some(End::Failed(reason)) => bail!(reason),
        Some(End::Asked) | None => Ok(()),
    }
}

/// Listens where metrics are asked for on a port of their own, and says where that is.
async fn bind_metrics(config: &Config) -> Result<Option<TcpListener>> {
    let Some(port) = config.metrics_port else {
        return Ok(None);
    };
    let listener = bind("127.0.0.1", port, "--metrics-port").await?;
    let address = listener.local_addr()?;
    crate::say(&format!("  metrics    http://{address}/metrics\n"))?;
    Ok(Some(listener))
}

/// Listens on the first address that the host has, on the port that `flag` gave.
async fn bind(host: &str, port: u16, flag: &str) -> Result<TcpListener> {
    listen(host, port).await.map_err(|error| {
        let address = format!("{host}:{port}");
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                anyhow!("{address} is in use; choose another port with {flag}, or 0 for a free one")
            }
            _ => anyhow!("cannot bind {address}: {error}"),
        }
    })
}

async fn listen(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let mut addresses = lookup_host((host.trim_matches(['[', ']']), port)).await?;
    let address = addresses
        .next()
        .ok_or_else(|| std::io::Error::other("the host has no address"))?;
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Loads on a thread of its own, then waits there for the engine's end.
fn spawn_model(
    config: Config,
    gateway: Gateway,
    metrics: Metrics,
    (address, started): (SocketAddr, Instant),
    end: watch::Sender<Option<End>>,
) -> Result<()> {
    let work = move || {
        let ready = |text: &str| {
            if let Err(error) = crate::say(text) {
                tracing::warn!(%error, "standard output cannot be written to");
            }
            supervisor::ready();
        };
        let run = || -> Result<()> {
            if embeddings::is_main_model(&config)? {
                let loaded = embeddings::load_alone(&config, &metrics)?;
                set_build_info(&metrics, ("cpu", "f32", "embedding"));
                let text = banner::embeddings(&config, &loaded.description(), address, started);
                let thread = loaded.serve_alone(&gateway)?;
                ready(&text);
                return thread
                    .join()
                    .map_err(|_| anyhow!("the thread of embeddings panicked"));
            }
            let loaded = load(&config, &gateway, &metrics)?;
            let target = &loaded.target;
            set_build_info(&metrics, (target.device, target.precision, target.reason));
            ready(&banner::ready(&config, &loaded, address, started.elapsed()));
            let ended = loaded.thread.join();
            ended.map_err(|_| anyhow!("the engine panicked"))?
        };
        let result = run();
        // A model that ends before anybody asked has failed; a supervisor starts the process anew.
        if end.borrow().is_none() {
            let reason = match result {
                Ok(()) => "the model's thread stopped".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            set_first(&end, End::Failed(reason));
        }
    };
    std::thread::Builder::new()
        .name("model".into())
        .spawn(work)
        .context("cannot start a thread")?;
    Ok(())
}

fn set_build_info(metrics: &Metrics, (device, quantization, reason): (&str, &str, &str)) {
    metrics.set_build_info(&BuildInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: crate::COMMIT.to_owned(),
        device: device.to_owned(),
        quantization: quantization.to_owned(),
        reason: reason.to_owned(),
        features: crate::cuda::FEATURES.to_owned(),
    });
}

/// Notes how the server ends, unless that is settled.
fn set_first(end: &watch::Sender<Option<End>>, how: End) {
    end.send_if_modified(|end| {
        let is_first = end.is_none();
        end.get_or_insert(how);
        is_first
    });
}

/// Ends requests with an error event, and the server, when the engine is stuck.
async fn watch_engine(gateway: Gateway, end: watch::Sender<Option<End>>) {
    supervisor::engine_is_stuck(&gateway).await;
    tracing::error!("the engine does not move any more; the server ends");
    gateway.give_up();
    set_first(
        &end,
        End::Failed("the engine does not move any more".to_owned()),
    );
}

/// Reads the file of API keys again at each SIGHUP. One that is no good changes nothing. A server without
/// such a file leaves the signal alone, so that a closed terminal ends it and `nohup` keeps it.
fn watch_keys(gateway: Gateway, path: PathBuf) -> Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || keys_of_file(&path)).await;
            match read.map_err(anyhow::Error::from).and_then(|keys| keys) {
                Ok(keys) => {
                    gateway.replace_api_keys(&keys);
                    tracing::info!(keys = keys.len(), "the API keys were read again");
                }
                Err(error) => {
                    tracing::error!("the API keys stay as they were: {error:#}");
                }
            }
        }
    })
}

/// The first signal drains, the second ends running requests with an error event.
fn watch_signals(
    gateway: Gateway,
    end: watch::Sender<Option<End>>,
) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for count in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if count == 1 {
                tracing::info!("draining; a second signal ends running requests");
                supervisor::stopping();
                set_first(&end, End::Asked);
            } else {
                gateway.drain_within(Duration::ZERO);
            }
        }
    })
}
