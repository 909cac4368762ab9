//! The bundled model: generator, trainer, weights and model card.
