//! The tables of request fields: what is done with each name. `openapi.yaml` is compared with them.

/// What this server does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// Carries it out.
    Supported,
    /// Ignores it, which changes no output, and reports it.
    Ignored,
    /// Refuses it unless it is absent; the reason.
    Refused(&'static str),
    /// Refuses it unless it has the value (as JSON) that asks for nothing; the reason.
    Only(&'static str, &'static str),
}

use Support::{Ignored, Only, Refused, Supported};

/// Fields of one route.
pub(crate) type Table = &'static [&'static [(&'static str, Support)]];

const LATER: &str = "this version does not have it yet";

const CODE: &str = "requests bring no code";

/// Fields that every generating route takes.
const COMMON: &[(&str, Support)] = &[
    ("model", Supported),
    ("max_tokens", Supported),
    ("temperature", Supported),
    ("top_p", Supported),
    ("n", Supported),
    ("stop", Supported),
    ("frequency_penalty", Supported),
    ("presence_penalty", Supported),
    ("logit_bias", Supported),
    ("logprobs", Supported),
    ("seed", Supported),
    ("stream", Supported),
    ("stream_options", Supported),
    ("top_k", Supported),
    ("min_p", Supported),
    ("repetition_penalty", Supported),
    ("repeat_penalty", Supported),
    ("ignore_eos", Supported),
    ("min_tokens", Supported),
    ("stop_token_ids", Supported),
    ("skip_special_tokens", Supported),
    ("include_stop_str_in_output", Supported),
    ("cache_salt", Supported),
    ("response_format", Supported),
    (
        "best_of",
        Only("1", "only one candidate is drawn per choice"),
    ),
    ("user", Ignored),
    ("safety_identifier", Ignored),
    ("metadata", Ignored),
    ("store", Ignored),
    ("prompt_cache_key", Ignored),
    ("prompt_cache_retention", Ignored),
    ("prompt_cache_options", Ignored),
    ("moderation", Ignored),
    ("verbosity", Ignored),
    ("prediction", Ignored),
    ("service_tier", Ignored),
    ("cache_prompt", Ignored),
    ("id_slot", Ignored),
    ("timings_per_token", Ignored),
    ("return_progress", Ignored),
    (
        "repeat_last_n",
        Refused("the penalty always looks at the whole text"),
    ),
    ("allowed_token_ids", Refused(LATER)),
    ("bad_words", Refused(LATER)),
    ("truncate_prompt_tokens", Refused(LATER)),
    ("truncation_side", Refused(LATER)),
    ("structured_outputs", Refused(LATER)),
    ("guided_json", Refused(LATER)),
    ("guided_regex", Refused(LATER)),
    ("guided_choice", Refused(LATER)),
    ("guided_grammar", Refused(LATER)),
    ("guided_decoding_backend", Refused(LATER)),
    ("json_schema", Refused(LATER)),
    ("regex", Refused(LATER)),
    ("ebnf", Refused(LATER)),
    ("grammar", Refused(LATER)),
    (
        "use_beam_search",
        Only("false", "beam search is not offered"),
    ),
    ("length_penalty", Refused("beam search is not offered")),
    (
        "prompt_logprobs",
        Refused("use echo with logprobs in /v1/completions"),
    ),
    ("return_tokens_as_token_ids", Only("false", LATER)),
    ("return_token_ids", Only("false", LATER)),
    ("priority", Only("0", "requests have no priorities")),
    ("request_id", Refused("use the x-request-id header")),
    ("rid", Refused("use the x-request-id header")),
    ("n_predict", Refused("use max_tokens")),
    ("max_new_tokens", Refused("use max_tokens")),
    ("max_output_tokens", Refused("use max_tokens")),
    ("min_new_tokens", Refused("use min_tokens")),
    ("stop_sequences", Refused("use stop")),
    ("stop_regex", Refused(LATER)),
    (
        "no_stop_trim",
        Only("false", "use include_stop_str_in_output"),
    ),
    ("spaces_between_special_tokens", Only("true", LATER)),
    ("logits_processors", Refused(CODE)),
    ("custom_logit_processor", Refused(CODE)),
    ("prompt_embeds", Refused("prompts are texts or token ids")),
    ("lora", Only("[]", LATER)),
    ("lora_path", Refused(LATER)),
    ("repetition_detection", Refused(LATER)),
    ("thinking_token_budget", Refused(LATER)),
    ("no_repeat_ngram_size", Only("0", LATER)),
    ("n_probs", Only("0", "use logprobs")),
    ("post_sampling_probs", Only("false", LATER)),
    ("t_max_predict_ms", Only("0", LATER)),
    ("min_keep", Only("0", LATER)),
    ("samplers", Refused("the order of sampling steps is fixed")),
    ("stream_interval", Only("1", LATER)),
    ("typical_p", Only("1", LATER)),
    ("mirostat", Only("0", LATER)),
    ("mirostat_tau", Refused(LATER)),
    ("mirostat_eta", Refused(LATER)),
    ("dynatemp_range", Only("0", LATER)),
    ("dynatemp_exponent", Refused(LATER)),
    ("top_n_sigma", Only("-1", LATER)),
    ("dry_multiplier", Only("0", LATER)),
    ("dry_base", Refused(LATER)),
    ("dry_allowed_length", Refused(LATER)),
    ("dry_penalty_last_n", Refused(LATER)),
    ("dry_sequence_breakers", Refused(LATER)),
    ("xtc_probability", Only("0", LATER)),
    ("xtc_threshold", Refused(LATER)),
];

const CHAT_ONLY: &[(&str, Support)] = &[
    ("messages", Supported),
    ("max_completion_tokens", Supported),
    ("top_logprobs", Supported),
    ("chat_template_kwargs", Supported),
    ("modalities", Supported),
    ("tools", Supported),
    ("tool_choice", Supported),
    ("parallel_tool_calls", Supported),
    ("functions", Refused("use tools")),
    ("function_call", Refused("use tool_choice")),
    ("reasoning_effort", Refused(LATER)),
    ("enable_thinking", Refused("use chat_template_kwargs")),
    ("thinking", Refused("use chat_template_kwargs")),
    ("include_reasoning", Refused(LATER)),
    ("separate_reasoning", Refused(LATER)),
    ("reasoning_format", Refused(LATER)),
    (
        "chat_template",
        Refused("templates come from the model or its operator"),
    ),
    ("add_generation_prompt", Only("true", LATER)),
    ("continue_final_message", Only("false", LATER)),
    (
        "add_special_tokens",
        Only("false", "the chat template writes them"),
    ),
    ("documents", Refused(LATER)),
    ("echo", Only("false", "use /v1/completions")),
    ("prompt", Refused("use messages, or /v1/completions")),
    ("suffix", Refused("use /v1/completions")),
    ("audio", Refused("this server handles text")),
    (
        "web_search_options",
        Refused("this server makes no requests of its own"),
    ),
];

const COMPLETIONS_ONLY: &[(&str, Support)] = &[
    ("prompt", Supported),
    ("echo", Supported),
    ("add_special_tokens", Only("true", LATER)),
    ("suffix", Refused(LATER)),
    ("messages", Refused("use /v1/chat/completions")),
    ("tools", Refused("use /v1/chat/completions")),
    ("tool_choice", Refused("use /v1/chat/completions")),
    ("max_completion_tokens", Refused("use max_tokens")),
    ("top_logprobs", Refused("use logprobs")),
    ("chat_template_kwargs", Refused("use /v1/chat/completions")),
];

const EMBEDDINGS_ONLY: &[(&str, Support)] = &[
    ("input", Supported),
    ("model", Supported),
    ("encoding_format", Supported),
    ("dimensions", Supported),
    ("truncate_prompt_tokens", Supported),
    ("truncation_side", Supported),
    ("user", Ignored),
    ("safety_identifier", Ignored),
    ("add_special_tokens", Only("true", LATER)),
    ("embed_dtype", Only("\"float32\"", LATER)),
    ("endianness", Only("\"little\"", LATER)),
    ("normalize", Refused(POOLING)),
    ("use_activation", Refused(POOLING)),
    ("priority", Only("0", "requests have no priorities")),
    ("request_id", Refused("use the x-request-id header")),
    ("messages", Refused("use input")),
    ("prompt", Refused("use input")),
];

const POOLING: &str = "the checkpoint says whether vectors are normalised";

/// Fields of `/v1/chat/completions`.
pub(crate) const CHAT: Table = &[CHAT_ONLY, COMMON];

/// Fields of `/v1/completions`.
pub(crate) const COMPLETIONS: Table = &[COMPLETIONS_ONLY, COMMON];

/// Fields of `/v1/embeddings`.
pub(crate) const EMBEDDINGS: Table = &[EMBEDDINGS_ONLY];

/// Fields of `/tokenize` with a prompt.
pub(crate) const TOKENIZE_PROMPT: Table = &[&[
    ("model", Supported),
    ("prompt", Supported),
    ("add_special_tokens", Supported),
    ("return_token_strs", Supported),
    ("content", Refused("use either prompt or content")),
    (
        "add_special",
        Refused("it goes with content; use add_special_tokens"),
    ),
    ("parse_special", Only("true", LATER)),
    (
        "with_pieces",
        Refused("it goes with content; use return_token_strs"),
    ),
    ("add_generation_prompt", Refused("it goes with messages")),
    ("chat_template_kwargs", Refused("it goes with messages")),
    ("continue_final_message", Refused("it goes with messages")),
    ("chat_template", Refused("it goes with messages")),
    ("tools", Refused("it goes with messages")),
]];

/// Fields of `/tokenize` with a text as llama.cpp calls it.
pub(crate) const TOKENIZE_CONTENT: Table = &[&[
    ("model", Supported),
    ("content", Supported),
    ("add_special", Supported),
    ("parse_special", Only("true", LATER)),
    ("with_pieces", Supported),
    (
        "add_special_tokens",
        Refused("it goes with prompt; use add_special"),
    ),
    (
        "return_token_strs",
        Refused("it goes with prompt; use with_pieces"),
    ),
    ("add_generation_prompt", Refused("it goes with messages")),
    ("chat_template_kwargs", Refused("it goes with messages")),
    ("continue_final_message", Refused("it goes with messages")),
    ("chat_template", Refused("it goes with messages")),
    ("tools", Refused("it goes with messages")),
]];

/// Fields of `/tokenize` with messages.
pub(crate) const TOKENIZE_MESSAGES: Table = &[&[
    ("model", Supported),
    ("messages", Supported),
    ("add_generation_prompt", Supported),
    ("chat_template_kwargs", Supported),
    ("return_token_strs", Supported),
    ("prompt", Refused("use either messages or prompt")),
    ("content", Refused("use either messages or prompt")),
    (
        "add_special_tokens",
        Only("false", "the chat template writes them"),
    ),
    ("continue_final_message", Only("false", LATER)),
    (
        "chat_template",
        Refused("templates come from the model or its operator"),
    ),
    ("tools", Refused(LATER)),
]];

/// Fields of `/detokenize`.
pub(crate) const DETOKENIZE: Table = &[&[("model", Supported), ("tokens", Supported)]];

/// Every table.
#[cfg(test)]
pub(crate) const ALL: [Table; 7] = [
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TOKENIZE_PROMPT,
    TOKENIZE_CONTENT,
    TOKENIZE_MESSAGES,
    DETOKENIZE,
];

/// What a route does with `name`; none for a name it does not know.
pub(crate) fn support(table: Table, name: &str) -> Option<Support> {
    let mut rows = table.iter().copied().flatten();
    rows.find(|(known, _)| *known == name).map(|(_, s)| *s)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_stands_once_and_its_neutral_value_is_json() {
        for table in ALL {
            let mut names = BTreeSet::new();
            for (name, support) in table.iter().copied().flatten() {
                assert!(names.insert(name), "{name}");
                if let Only(value, _) = support {
                    serde_json::from_str::<serde_json::Value>(value).expect(name);
                }
            }
        }
    }

    #[test]
    fn ignored_fields_have_a_label() {
        for (name, support) in ALL.concat().into_iter().flatten() {
            if *support == Ignored {
                assert!(metrics::IGNORED_PARAMS.contains(name), "{name}");
            }
        }
    }
}
