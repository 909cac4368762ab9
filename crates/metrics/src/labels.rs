//! The closed label sets. Values never come from client text.

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// How a request ended.
    FinishReason {
        /// A stop token or a stop string.
        Stop => "stop",
        /// The token limit or the context.
        Length => "length",
        /// A tool call was parsed.
        ToolCalls => "tool_calls",
        /// The client went away.
        Cancelled => "cancelled",
        /// The engine failed it.
        Error => "error",
    }
}

labels! {
    /// Why a request was refused before it ran.
    RejectReason {
        /// Too many requests wait.
        QueueFull => "queue_full",
        /// Too many prompt tokens wait.
        QueueTokens => "queue_tokens",
        /// It waited too long.
        QueueTimeout => "queue_timeout",
        /// It does not fit the context.
        ContextLength => "context_length",
        /// The model is not loaded yet.
        Loading => "loading",
        /// The server is shutting down.
        Draining => "draining",
        /// A limit of the caller's key.
        RateLimit => "rate_limit",
    }
}

labels! {
    /// What a step computed.
    Phase {
        /// Prompt tokens only.
        Prefill => "prefill",
        /// One token per sequence only.
        Decode => "decode",
        /// Both.
        Mixed => "mixed",
    }
}
