//! The state behind all routes: configuration, keys, the phase of the server and the loaded model.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use encoder::{EncoderHandle, TextTokenizer};
use engine::{EngineHandle, EngineStatus};
use metrics::Metrics;
use model::{GenerationDefaults, TextFiles};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

use crate::auth::KeyRing;
use crate::config::{GatewayConfig, GenerationPolicy};
use crate::error::ApiError;
use crate::pool::Pool;
use crate::rate::CompletionRate;
use crate::template::{ChatTemplate, Clock, local_clock};
use crate::text::{TextError, Tokenizer};

/// A cheap handle on the state of the gateway.
#[derive(Clone)]
pub struct Gateway(Arc<State>);

/// What [`Gateway`] points to.
pub struct State {
    pub(crate) config: GatewayConfig,
    pub(crate) metrics: Metrics,
    pub(crate) keys: KeyRing,
    /// Runs parsing, rendering and tokenising off the async threads.
    pub(crate) pool: Pool,
    /// Bytes of bodies that may be read at the same time.
    pub(crate) body_budget: Arc<Semaphore>,
    /// How fast requests complete, for `Retry-After`.
    pub(crate) completions: CompletionRate,
    /// HTTP requests being answered; the server waits for zero before it ends.
    pub(crate) in_flight: watch::Sender<usize>,
    /// Start of the process in seconds since 1970; `created` of the models list.
    pub(crate) started: u64,
    draining: watch::Sender<bool>,
    /// Whether the engine is not waited for any more.
    given_up: watch::Sender<bool>,
    engine: OnceLock<EngineHandle>,
    /// Thousandths of loading that are done.
    load_progress: AtomicU32,
    model: OnceLock<Arc<Model>>,
    encoder: OnceLock<Arc<ServedEncoder>>,
}

/// A loaded model as the server binary hands it over.
pub struct ServedModel {
    /// The engine that runs it, already loaded.
    pub engine: EngineHandle,
    /// Tokenizer, template and defaults of the checkpoint.
    pub text: TextFiles,
    /// What was loaded, such as `org/Repo`; the `root` of the models list. Never a path.
    pub root: String,
    /// Weights, precision, build and device, in fixed order; hashed into `system_fingerprint`.
    pub fingerprint: Vec<String>,
}

/// A loaded embedding model as the server binary hands it over.
pub struct ServedEncoder {
    /// The worker that runs it.
    pub encoder: EncoderHandle,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Names under which it answers, the main one first; at least one.
    pub names: Vec<String>,
    /// What was loaded; the `root` of the models list. Never a path.
    pub root: String,
}

/// A model ready to serve.
pub(crate) struct Model {
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) eos_token_ids: Vec<u32>,
    pub(crate) root: String,
    pub(crate) fingerprint: String,
    pub(crate) max_model_len: usize,
    /// Token ids are below it: the tokenizer knows them and the logits have them.
    pub(crate) num_token_ids: usize,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServedModelError {
    /// The engine has not finished loading.
    #[error("the engine has not loaded a model")]
    NotLoaded,
    /// A model is already served.
    #[error("a model is already being served")]
    AlreadyServed,
    /// Tokenizer or template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// What the server can do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Weights are being loaded, or the engine recovers from a failed step.
    Loading,
    /// Requests are answered.
    Ready,
    /// No new requests are taken.
    Draining,
    /// The engine is gone or does not move.
    Dead,
}

impl Gateway {
    /// A gateway that answers 503 until a model is set.
    pub fn new(mut config: GatewayConfig, metrics: Metrics) -> Self {
        let fixed = std::mem::take(&mut config.api_keys);
        let others = std::mem::take(&mut config.replaceable_api_keys);
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(Arc::new(State {
            keys: KeyRing::new(&fixed, &others, config.max_num_reqs_per_key),
            pool: Pool::new(config.text_threads),
            body_budget: Arc::new(Semaphore::new(config.limits.max_bodies)),
            completions: CompletionRate::default(),
            in_flight: watch::Sender::new(0),
            started: started.unwrap_or(Duration::ZERO).as_secs(),
            draining: watch::Sender::new(false),
            given_up: watch::Sender::new(false),
            engine: OnceLock::new(),
            load_progress: AtomicU32::new(0),
            model: OnceLock::new(),
            encoder: OnceLock::new(),
            config,
            metrics,
        }))
    }

    /// Notes how much of the loading is done, `0..=1`, for health probes.
    pub fn set_load_progress(&self, progress: f32) {
        let thousandths = (progress.clamp(0.0, 1.0) * 1000.0) as u32;
        self.0.load_progress.store(thousandths, Ordering::Relaxed);
    }

    /// Accepts these keys instead of the replaceable ones. Requests that run go on. A server that asked for
    /// keys goes on to do so, and one that did not goes on not to.
    pub fn replace_api_keys(&self, keys: &[String]) {
        self.0.keys.replace(keys);
    }

    /// Tells the gateway which engine is loading, so that health follows its life.
    pub fn set_engine(&self, engine: EngineHandle) {
        // The first one stays; a process has one engine.
        let _ = self.0.engine.set(engine);
    }

    /// Starts answering embeddings requests. Where no engine was set before, the embedding model is all
    /// that is served.
    ///
    /// # Errors
    /// When there is one already.
    pub fn set_encoder(&self, served: ServedEncoder) -> Result<(), ServedModelError> {
        let set = self.0.encoder.set(Arc::new(served));
        set.map_err(|_| ServedModelError::AlreadyServed)
    }

    /// Starts answering with a model. Reads tokenizer and template, so it belongs on a blocking
    /// thread.
    ///
    /// # Errors
    /// [`ServedModelError`] when the engine has not loaded or the text files cannot be used.
    pub fn set_model(&self, served: ServedModel) -> Result<(), ServedModelError> {
        self.set_model_with_clock(served, local_clock())
    }

    pub(crate) fn set_model_with_clock(
        &self,
        served: ServedModel,
        clock: Clock,
    ) -> Result<(), ServedModelError> {
        let config = &self.0.config;
        let info = served
            .engine
            .info()
            .ok_or(ServedModelError::NotLoaded)?
            .clone();
        let tokenizer = Tokenizer::new(&served.text)?;
        let template = ChatTemplate::new(&served.text, config.chat_template.as_deref(), clock)?;
        let known = tokenizer.pieces().len();
        self.set_engine(served.engine.clone());
        let model = Model {
            tokenizer,
            template,
            defaults: effective_defaults(config, served.text.generation),
            eos_token_ids: served.text.eos_token_ids,
            root: served.root,
            fingerprint: fingerprint(&served.fingerprint),
            max_model_len: info.max_model_len,
            num_token_ids: known.min(info.vocab_size).min(info.logit_width),
            engine: served.engine,
        };
        let set = self.0.model.set(Arc::new(model));
        set.map_err(|_| ServedModelError::AlreadyServed)
    }

    /// Takes no new requests from now on. Running ones may finish within the shutdown time of the
    /// configuration; then they end with an error event.
    pub fn drain(&self) {
        self.drain_within(self.0.config.timeouts.shutdown);
    }

    /// The same with less patience; running requests end with an error event after `time`.
    pub fn drain_within(&self, time: Duration) {
        self.0.draining.send_replace(true);
        if let Some(engine) = self.0.engine.get() {
            engine.drain(Instant::now() + time);
        }
        if let Some(served) = self.0.encoder.get() {
            served.encoder.drain(Instant::now() + time);
        }
    }

    /// What the server can do at the moment.
    pub fn readiness(&self) -> Readiness {
        let state = &self.0;
        if *state.draining.borrow() {
            return Readiness::Draining;
        }
        let Some(engine) = state.engine.get() else {
            return match state.encoder.get() {
                None => Readiness::Loading,
                Some(_) if self.has_lost_encoder() => Readiness::Dead,
                Some(_) => Readiness::Ready,
            };
        };
        match engine.status() {
            EngineStatus::Loading => Readiness::Loading,
            EngineStatus::Draining => Readiness::Draining,
            EngineStatus::Dead => Readiness::Dead,
            EngineStatus::Ready if state.model.get().is_none() => Readiness::Loading,
            EngineStatus::Ready if self.is_stuck() || self.has_lost_encoder() => Readiness::Dead,
            EngineStatus::Ready => Readiness::Ready,
        }
    }

    /// Whether the worker of embeddings has ended before its time.
    fn has_lost_encoder(&self) -> bool {
        let served = self.0.encoder.get();
        served.is_some_and(|served| !served.encoder.is_alive())
    }

    /// Whether the process should be restarted: the engine is gone, or has not moved for too long.
    pub(crate) fn is_dead(&self) -> bool {
        if *self.0.draining.borrow() {
            // The engine ends by itself when it has drained.
            return false;
        }
        if self.has_lost_encoder() {
            return true;
        }
        match self.0.engine.get().map(EngineHandle::status) {
            None | Some(EngineStatus::Loading | EngineStatus::Draining) => false,
            Some(EngineStatus::Dead) => true,
            Some(EngineStatus::Ready) => self.is_stuck(),
        }
    }

    /// Whether the engine has not moved for too long.
    pub fn is_stuck(&self) -> bool {
        let limit = self.0.config.timeouts.heartbeat;
        self.0
            .engine
            .get()
            .is_some_and(|engine| engine.is_stuck(limit))
    }

    /// Ends every request of an engine that is stuck, with an error event. It cannot be asked to do so
    /// itself, and may still use what it has, so the process should end then.
    pub fn give_up(&self) {
        self.0.given_up.send_replace(true);
    }

    /// Resolves when the engine is not waited for any more.
    pub(crate) fn given_up(&self) -> watch::Receiver<bool> {
        self.0.given_up.subscribe()
    }

    /// Time since the engine last moved.
    pub(crate) fn heartbeat_age(&self) -> Option<Duration> {
        self.0.engine.get().map(EngineHandle::heartbeat_age)
    }

    /// The share of loading that is done.
    pub(crate) fn load_progress(&self) -> f64 {
        f64::from(self.0.load_progress.load(Ordering::Relaxed)) / 1000.0
    }

    /// The model, if requests may use it now.
    ///
    /// # Errors
    /// The 503 that says why not.
    pub(crate) fn model(&self) -> Result<&Arc<Model>, ApiError> {
        match (self.readiness(), self.0.model.get()) {
            (Readiness::Draining, _) => Err(ApiError::Draining),
            (Readiness::Dead, _) => Err(ApiError::EngineDead),
            (_, None) if self.serves_embeddings_only() => Err(ApiError::field(
                "model",
                "unsupported_model",
                "the model served here does not generate text: it answers /v1/embeddings",
            )),
            (_, None) => Err(ApiError::Loading),
            // While the engine recovers from a failed step, requests wait in its queue.
            (Readiness::Loading | Readiness::Ready, Some(model)) => Ok(model),
        }
    }

    /// Whether there is an embedding model and no other.
    pub(crate) fn serves_embeddings_only(&self) -> bool {
        self.0.engine.get().is_none() && self.0.encoder.get().is_some()
    }

    /// The embedding model, where there is one.
    pub(crate) fn any_encoder(&self) -> Option<&Arc<ServedEncoder>> {
        self.0.encoder.get()
    }

    /// The embedding model, if requests may use it now.
    ///
    /// # Errors
    /// The 503 that says why not, or a 400 where there will never be one.
    pub(crate) fn encoder(&self) -> Result<&Arc<ServedEncoder>, ApiError> {
        match (self.readiness(), self.0.encoder.get()) {
            (Readiness::Draining, _) => Err(ApiError::Draining),
            (Readiness::Dead, _) => Err(ApiError::EngineDead),
            (_, Some(served)) => Ok(served),
            (Readiness::Loading, None) => Err(ApiError::Loading),
            (Readiness::Ready, None) => Err(ApiError::field(
                "model",
                "unsupported_model",
                "no embedding model is served here; start the server with --embedding-model",
            )),
        }
    }

    /// Waits until no request is being answered, at most until `deadline`.
    pub(crate) async fn idle(&self, deadline: Instant) {
        let mut in_flight = self.0.in_flight.subscribe();
        let idle = in_flight.wait_for(|n| *n == 0);
        // Past the deadline the caller cuts connections.
        let _ = tokio::time::timeout_at(deadline.into(), idle).await;
    }
}

impl std::ops::Deref for Gateway {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// The operator's values, then the checkpoint's where the policy says so.
fn effective_defaults(config: &GatewayConfig, own: GenerationDefaults) -> GenerationDefaults {
    let over = config.generation_override.clone();
    let own = match config.generation_config {
        GenerationPolicy::Auto => own,
        GenerationPolicy::None => GenerationDefaults::default(),
    };
    // A checkpoint that asks for greedy decoding gives way to a temperature of the operator.
    let own_do_sample = own.do_sample.filter(|_| over.temperature.is_none());
    GenerationDefaults {
        do_sample: over.do_sample.or(own_do_sample),
        temperature: over.temperature.or(own.temperature),
        top_p: over.top_p.or(own.top_p),
        top_k: over.top_k.or(own.top_k),
        min_p: over.min_p.or(own.min_p),
        repetition_penalty: over.repetition_penalty.or(own.repetition_penalty),
    }
}

fn fingerprint(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex: String = hash
        .finalize()
        .iter()
        .take(5)
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("fp_{hex}")
}
