//! Real models behind a real engine, on the CPU target.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;
use std::time::Duration;

use backend::{KvCacheSpec, KvDtype, KvTypes};
use backend_cpu::{CpuBackend, CpuConfig, Isa, Precision};
use engine::{
    Engine, EngineConfig, EngineHandle, EngineStatus, GenerateRequest, SamplingParams, StreamEvent,
    TokenId,
};
use metrics::Metrics;
use model::{CausalLm, Checkpoint, LoadOptions, ModelError};

/// A model that tests load again and again.
#[derive(Clone)]
pub struct Subject {
    /// For messages.
    pub name: String,
    source: Source,
    /// Layers, key/value heads and features of a head, for pools of an exact size.
    kv_shape: [usize; 3],
    /// Type of cached keys and values.
    kv_dtype: KvDtype,
    /// In what weights are kept.
    precision: Precision,
    /// The level of instructions; the highest of this machine if none.
    isa: Option<Isa>,
}

#[derive(Clone)]
enum Source {
    Files(Vec<(&'static str, &'static [u8])>),
    Path(PathBuf),
}

/// The bundled model: 6 layers, keys and values of 6 heads of 32 features.
pub fn bundled() -> Subject {
    with_files(bundled::files().to_vec())
}

/// A model with the shape of the bundled one.
pub fn with_files(files: Vec<(&'static str, &'static [u8])>) -> Subject {
    Subject {
        name: "bundled".to_owned(),
        source: Source::Files(files),
        kv_shape: [6, 6, 32],
        kv_dtype: KvDtype::F32,
        precision: Precision::F32,
        isa: None,
    }
}

/// SmolLM2-135M-Instruct: 30 layers, keys and values of 3 heads of 64 features. None where nobody
/// fetched it; continuous integration must have it.
pub fn smollm2() -> Option<Subject> {
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/assets")),
        PathBuf::from,
    );
    let path = assets.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        let place = path.display();
        assert!(std::env::var("CI").is_err(), "{place} is missing");
        eprintln!("skipped: `cargo xtask assets` fetches the model");
        return None;
    }
    Some(Subject {
        name: "SmolLM2".to_owned(),
        source: Source::Path(path),
        kv_shape: [30, 3, 64],
        kv_dtype: KvDtype::F32,
        precision: Precision::F32,
        isa: None,
    })
}

/// A running engine with its counters.
pub struct Rig {
    pub handle: EngineHandle,
    pub metrics: Metrics,
}

/// What differs between the rigs of a test.
pub struct Setup {
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub enable_prefix_caching: bool,
    pub num_blocks: u64,
    pub num_host_blocks: u64,
    pub max_model_len: usize,
}

impl Subject {
    /// The same model with its weights in another precision.
    pub fn in_precision(&self, precision: Precision) -> Self {
        Self {
            name: format!("{} in {precision}", self.name),
            precision,
            ..self.clone()
        }
    }

    /// The same model with cached keys and values of another type.
    pub fn with_kv(&self, kv_dtype: KvDtype) -> Self {
        Self {
            name: format!("{} with {kv_dtype} keys and values", self.name),
            kv_dtype,
            ..self.clone()
        }
    }

    /// Bytes of a block over all layers.
    fn block_bytes(&self) -> u64 {
        let [num_layers, num_kv_heads, head_dim] = self.kv_shape;
        let spec = KvCacheSpec {
            num_kv_heads,
            head_dim,
            num_blocks: 0,
            num_host_blocks: 0,
            layers: vec![KvTypes::both(self.kv_dtype); num_layers],
        };
        spec.block_bytes() as u64
    }

    /// The same model on one level of instructions.
    pub fn on(&self, isa: Isa) -> Self {
        Self {
            name: format!("{} on {isa}", self.name),
            isa: Some(isa),
            ..self.clone()
        }
    }

    fn open(&self) -> Result<Checkpoint, ModelError> {
        match &self.source {
            Source::Files(files) => Checkpoint::from_memory(files),
            Source::Path(path) => Checkpoint::open(path),
        }
    }

    /// Starts an engine.
    pub fn start(&self, setup: &Setup) -> Rig {
        let config = EngineConfig {
            max_num_seqs: setup.max_num_seqs,
            max_num_batched_tokens: Some(setup.max_num_batched_tokens),
            max_num_queued_reqs: 4096,
            max_num_queued_tokens: 1 << 20,
            enable_prefix_caching: setup.enable_prefix_caching,
            queue_timeout: Duration::from_secs(3600),
            request_timeout: Duration::from_secs(3600),
            stream_write_timeout: Duration::from_secs(3600),
        };
        let options = LoadOptions {
            max_model_len: Some(setup.max_model_len),
            kv_cache_bytes: setup.num_blocks * self.block_bytes(),
            swap_bytes: setup.num_host_blocks * self.block_bytes(),
            max_num_seqs: setup.max_num_seqs,
            kv_dtype: self.kv_dtype,
        };
        let metrics = Metrics::new(&self.name);
        let subject = self.clone();
        let (handle, thread) = Engine::spawn(config, metrics.clone(), move || {
            let backend = CpuBackend::new(CpuConfig {
                precision: subject.precision,
                isa: subject.isa,
                ..CpuConfig::default()
            })?;
            let decoder = model::load(&subject.open()?, backend, &options, &mut |_, _| {})?;
            Ok::<_, ModelError>(Box::new(decoder) as Box<dyn CausalLm>)
        });
        while handle.status() == EngineStatus::Loading {
            std::thread::yield_now();
        }
        if handle.status() != EngineStatus::Ready {
            panic!("{} loads: {:?}", self.name, thread.join());
        }
        Rig { handle, metrics }
    }
}

/// A token with the bits of its log-probability.
pub type Drawn = (TokenId, u32);

impl Rig {
    /// Submits all requests at once and collects each answer.
    pub fn answers(&self, requests: Vec<GenerateRequest>) -> Vec<Vec<Drawn>> {
        let submit = |request| self.handle.submit(request).expect("admitted");
        let streams: Vec<_> = requests.into_iter().map(submit).collect();
        let collect = |mut stream: engine::TokenStream| {
            let mut tokens = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                match event {
                    StreamEvent::Token { token, .. } => {
                        tokens.push((token.token_id, token.logprob.to_bits()));
                    }
                    StreamEvent::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            tokens
        };
        streams.into_iter().map(collect).collect()
    }

    /// Tokens computed so far, over all steps.
    pub fn computed_tokens(&self) -> u64 {
        let text = self.metrics.render(false);
        let sums = text
            .lines()
            .filter(|line| line.starts_with("octet_step_tokens_sum"));
        let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
        sums.map(|line| value(line).expect("a number") as u64).sum()
    }
}

/// A greedy request.
pub fn greedy(prompt: Vec<TokenId>, max_tokens: usize, stop: Vec<TokenId>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens,
        min_tokens: 0,
        end_token_ids: stop.clone(),
        stop_token_ids: stop,
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    }
}
