//! The admin port: `/metrics`, `/health/live`, `/health/ready`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

/// What `/health/ready` answers from: is the model warm, and is this process a member of its group?
#[derive(Clone, Default)]
pub struct Health {
    pub model_warm: Arc<AtomicBool>,
    pub group_joined: Arc<AtomicBool>,
}

impl Health {
    fn ready(&self) -> (StatusCode, &'static str) {
        if !self.model_warm.load(Ordering::Relaxed) {
            (StatusCode::SERVICE_UNAVAILABLE, "model is loading\n")
        } else if !self.group_joined.load(Ordering::Relaxed) {
            (StatusCode::SERVICE_UNAVAILABLE, "group is not joined\n")
        } else {
            (StatusCode::OK, "ready\n")
        }
    }
}

/// Why the admin port is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin.listen = {address} cannot be listened on: {source}; choose another port, or \"\" for none")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the admin port's threads cannot be started: {0}")]
    Runtime(std::io::Error),
}

/// Serves the admin port on threads of its own for as long as the returned runtime lives.
///
/// # Errors
/// The address is taken or not of this machine.
pub fn serve(
    address: SocketAddr,
    metrics: PrometheusHandle,
    health: Health,
) -> Result<tokio::runtime::Runtime, AdminError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("admin")
        .enable_all()
        .build()
        .map_err(AdminError::Runtime)?;
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(address))
        .map_err(|source| AdminError::Listen { address, source })?;
    // Port 0 asks for any free one.
    let bound = listener.local_addr().unwrap_or(address);
    let upkeep = metrics.clone();
    let routes = Router::new()
        .route("/metrics", get(move || async move { metrics.render() }))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(move || async move { health.ready() }));
    runtime.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("the admin port stopped: {error}");
        }
    });
    runtime.spawn(async move {
        // Histograms keep raw samples until they are drained, by a scrape or by this.
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    tracing::info!(address = %bound, "admin port open");
    Ok(runtime)
}
