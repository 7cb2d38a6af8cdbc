//! From listening to draining.

use std::net::SocketAddr;
use std::sync::Arc;

use tilewise_engine::model::ModelSource;
use tilewise_engine::worker::{Worker, WorkerState};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::state::{App, ServedModel};
use crate::trace::Tracer;
use crate::{ServerConfig, ServerError, connection, routes};

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    worker: Worker,
}

impl Server {
    /// Listens, and opens the tokenizer of the model that `worker` serves. Requests are answered by
    /// [`Server::serve`].
    ///
    /// # Errors
    /// [`ServerError::Config`] for a configuration that is unsafe, [`ServerError::Listen`] for an address that cannot be
    /// had, [`ServerError::Model`] for a model without a tokenizer.
    pub async fn bind(
        config: ServerConfig,
        source: &ModelSource,
        worker: Worker,
    ) -> Result<Self, ServerError> {
        config.validate()?;
        let failed = |why| ServerError::Listen { address: config.address.to_string(), why };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let model = ServedModel::open(source, &config)?;
        let collector = config.otlp_endpoint.as_deref();
        let tracer =
            collector.map(|address| Tracer::start(address, &config.served_model_name)).transpose()?;
        let app = Arc::new(App::new(config, model, worker.handle().clone(), tracer));
        Ok(Self { listener, address, app, worker })
    }

    /// Tells with the metrics how many lines of the log were lost so far.
    pub fn count_lost_lines(&self, lost: impl Fn() -> u64 + Send + Sync + 'static) {
        // Whoever counts first counts.
        let _ = self.app.lost_lines.set(Box::new(lost));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the model is loaded; the server answers meanwhile if it is being served.
    ///
    /// # Errors
    /// [`ServerError::Engine`] if it cannot be loaded.
    pub fn loaded(&self) -> impl Future<Output = Result<(), ServerError>> + use<> {
        let worker = self.app.worker.clone();
        async move {
            match worker.loaded().await {
                WorkerState::Ready => Ok(()),
                WorkerState::Failed(why) => Err(ServerError::Engine(why)),
                _ => Err(ServerError::Engine("it was stopped".to_owned())),
            }
        }
    }

    /// Answers requests until `stop` is ready; then takes no more, waits for those that run as long as the limits say, and
    /// gives up the rest.
    ///
    /// # Errors
    /// [`ServerError::Engine`] if the engine failed before that.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let Self { listener, app, mut worker, .. } = self;
        let (close, closing) = watch::channel(false);
        let limits = app.config.limits;
        let connections =
            tokio::spawn(connection::serve(listener, routes::router(app.clone()), limits, closing));
        stop.await;
        app.drain();
        tracing::info!(in_flight = app.in_flight(), "draining");
        let is_drained = tokio::time::timeout(limits.drain_time, app.idle()).await.is_ok();
        if !is_drained {
            let aborted = app.abort(None);
            tracing::warn!(aborted, "requests did not end in time");
        }
        // Those who wait for an answer have it written; whoever does not read it is not waited for.
        close.send_replace(true);
        let _ = tokio::time::timeout(limits.write_time, connections).await;
        if let Some(tracer) = &app.tracer {
            tracer.flush().await;
        }
        let failure = match app.worker.state() {
            WorkerState::Failed(why) => Err(ServerError::Engine(why)),
            _ => Ok(()),
        };
        // The thread is waited for where that holds up nobody.
        let _ = tokio::task::spawn_blocking(move || worker.stop()).await;
        failure
    }
}
