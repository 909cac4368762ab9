//! The text side of a checkpoint, handed through unread: tokenizer, template, sampling defaults.

/// Tokenizer and prompt files of a checkpoint, whatever container they came from.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// A `tokenizer.json`; rebuilt from the metadata for GGUF files without one.
    pub tokenizer_json: Vec<u8>,
    /// The Jinja chat template, where the checkpoint has one or its family is known by one. Named templates: `(name, source)`,
    /// a single unnamed one is called `default`.
    pub chat_templates: Vec<(String, String)>,
    /// Text of the beginning-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Text of the unknown token.
    pub unk_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Union of the end ids of generation config, config and tokenizer.
    pub eos_token_ids: Vec<u32>,
    /// Whether raw completions start with the beginning-of-sequence token, where the tokenizer's
    /// post-processor does not say.
    pub add_bos_token: Option<bool>,
    /// Sampling defaults of `generation_config.json`.
    pub generation: GenerationDefaults,
}

/// The fields of `generation_config.json` that change sampling; absent ones are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// False asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Nucleus share.
    pub top_p: Option<f32>,
    /// Number of candidates.
    pub top_k: Option<u32>,
    /// Share of the best candidate.
    pub min_p: Option<f32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
}
