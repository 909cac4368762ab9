//! Which layers see only the last tokens: the rules that families have for it, and the list that
//! transformers 5 writes instead.

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// Which layers slide a window. A default counts when `sliding_window` is absent; null is none.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WindowRule {
    /// A stray `sliding_window` means nothing.
    Never,
    /// All layers.
    All { default: Option<usize> },
    /// Only with `use_sliding_window`, from layer `max_window_layers` on.
    Switched { default: usize, first_layer: usize },
    /// All but every `period`-th layer.
    Periodic { default: usize, period: usize },
}

/// The window of each layer: `layer_types` where transformers 5 wrote them, else the older keys.
pub(crate) fn windows(
    config: &ModelConfig,
    rule: WindowRule,
    num_layers: usize,
) -> Result<Vec<Option<usize>>> {
    let stored = |default: Option<usize>| -> Result<Option<usize>> {
        let absent = !config.is_null("sliding_window");
        Ok(config
            .count(&["sliding_window"])?
            .or(default.filter(|_| absent)))
    };
    let first_layer = config.index("max_window_layers")?;
    let period = config.count(&["sliding_window_pattern", "_sliding_window_pattern"])?;
    let (window, slides): (_, &dyn Fn(usize) -> bool) = match rule {
        WindowRule::Never => (None, &|_| false),
        WindowRule::All { default } => (stored(default)?, &|_| true),
        WindowRule::Switched {
            default,
            first_layer: first,
        } => {
            let switched_on = config.boolean("use_sliding_window", false)?;
            let window = if switched_on {
                stored(Some(default))?
            } else {
                None
            };
            (window, &move |layer| layer >= first_layer.unwrap_or(first))
        }
        WindowRule::Periodic { default, period: p } => (stored(Some(default))?, &move |layer| {
            !(layer + 1).is_multiple_of(period.unwrap_or(p))
        }),
    };
    let Some(types) = config.get(&["layer_types"]) else {
        return Ok((0..num_layers)
            .map(|layer| window.filter(|_| slides(layer)))
            .collect());
    };
    let types = types
        .as_array()
        .filter(|types| types.len() == num_layers)
        .ok_or_else(|| {
            ModelError::config(
                "layer_types",
                format!("is not a list of {num_layers} layers"),
            )
        })?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(ModelError::unsupported(
                "layer_types",
                kind,
                "full_attention and sliding_attention are",
            )),
        })
        .collect()
}
