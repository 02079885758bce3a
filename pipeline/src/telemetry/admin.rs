//! The admin port: `/metrics`, `/health/live`, `/health/ready`.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;

use super::{health::Health, metrics::is_built};

fn live(health: &Health) -> Response {
    match health.hangs() {
        None => "live\n".into_response(),
        Some(still) => {
            let body = format!("the loop has not turned for {} s\n", still.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

fn ready(health: &Health) -> Response {
    let readiness = health.readiness();
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness)).into_response()
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
    model: String,
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
        .route(
            "/metrics",
            get(move || async move {
                is_built(&model);
                metrics.render()
            }),
        )
        .route(
            "/health/live",
            get({
                let health = health.clone();
                move || async move { live(&health) }
            }),
        )
        .route("/health/ready", get(move || async move { ready(&health) }));
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
