//! HTTP: OpenAI types, chat template, tokenise and detokenise, SSE, ApiError.
