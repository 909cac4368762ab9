//! Rotation tables, with every scaling method whose frequencies do not depend on the sequence.
//!
//! `inv_i = θ^(−2i/r)`; angle = position · `inv_i` in 32 bits, as transformers computes it. Methods:
//! linear and dynamic NTK, YaRN (Peng et al. 2023), Llama 3, LongRoPE (Ding et al. 2024).

use std::f64::consts::PI;

use serde_json::{Map, Value};

use crate::config::{ModelConfig, number};
use crate::error::{ModelError, Result};

/// What a checkpoint says about rotation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeConfig {
    /// Features of a head that turn.
    pub rotary_dim: usize,
    /// Base θ.
    pub theta: f64,
    /// How frequencies are stretched.
    pub scaling: Scaling,
    /// Divisors of the frequencies, where the file carries them (GGUF's `rope_freqs`).
    pub factors: Option<Vec<f32>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    Dynamic {
        factor: f64,
        max_positions: usize,
    },
    Yarn(Yarn),
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    LongRope(LongRope),
}

/// Divisors for short and for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LongRope {
    short: Vec<f64>,
    long: Vec<f64>,
    /// The context up to which the short ones count.
    original: f64,
    attention_factor: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Yarn {
    factor: f64,
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
    attention_factor: f64,
}

impl RopeConfig {
    /// Reads transformers 5's `rope_parameters`, or 4's `rope_theta` and `rope_scaling`.
    /// `default_share` of a head turns where nothing is said.
    pub fn read(
        config: &ModelConfig,
        head_dim: usize,
        default_theta: f64,
        default_share: f64,
    ) -> Result<Self> {
        let parameters = config.object("rope_parameters")?;
        if let Some((key, value)) = parameters
            .into_iter()
            .flatten()
            .find(|(_, value)| value.is_object())
        {
            return Err(ModelError::unsupported(
                &format!("rope_parameters.{key}"),
                value,
                "one rotation for all layers is",
            ));
        }
        let scaling = match parameters {
            Some(parameters) => Some(parameters),
            None => config.object("rope_scaling")?,
        };
        let scaling = Fields {
            map: scaling,
            config,
        };
        let base = ["rope_theta", "rotary_emb_base"];
        scaling.read(&base, head_dim, default_theta, default_share)
    }

    /// The rotation of the layers that `rope_parameters` calls `kind`, where layers differ. Without an
    /// entry of that name, `base` is the key of its θ and it is not stretched; transformers 4 stretched
    /// full attention by `rope_scaling`.
    pub fn read_of_kind(
        config: &ModelConfig,
        kind: &'static str,
        base: &'static str,
        head_dim: usize,
        default_theta: f64,
    ) -> Result<Self> {
        let nested = match config.object("rope_parameters")? {
            Some(parameters) => parameters.get(kind),
            None => None,
        };
        let map = match nested {
            Some(Value::Object(map)) => Some(map),
            None | Some(Value::Null) if kind == "full_attention" => {
                config.object("rope_scaling")?
            }
            None | Some(Value::Null) => None,
            Some(value) => {
                return Err(ModelError::config(
                    "rope_parameters",
                    format!("has {value} for {kind}, not an object"),
                ));
            }
        };
        Fields { map, config }.read(&[base], head_dim, default_theta, 1.0)
    }

    /// The context of a checkpoint that stores `max_positions`, and the longest that may be asked for:
    /// linear and dynamic scaling stretch it on demand, YaRN's context is the stretched one.
    pub fn context(&self, max_positions: usize) -> (usize, usize) {
        let stretch = |from: f64, factor: f64| (from * factor) as usize;
        match &self.scaling {
            Scaling::None | Scaling::Llama3 { .. } | Scaling::LongRope(_) => {
                (max_positions, max_positions)
            }
            Scaling::Linear { factor } | Scaling::Dynamic { factor, .. } => {
                (max_positions, stretch(max_positions as f64, *factor))
            }
            Scaling::Yarn(yarn) => {
                let context = max_positions.max(stretch(yarn.original, yarn.factor));
                (context, context)
            }
        }
    }
    /// `[max_positions, rotary_dim]`: cosines, then sines.
    pub fn table(&self, max_positions: usize) -> Vec<f32> {
        let (inverse, factor) = self.frequencies(max_positions);
        let mut table = Vec::with_capacity(max_positions * self.rotary_dim);
        for position in 0..max_positions {
            let angle = |inverse: &f32| position as f32 * inverse;
            table.extend(inverse.iter().map(|inverse| angle(inverse).cos() * factor));
            table.extend(inverse.iter().map(|inverse| angle(inverse).sin() * factor));
        }
        table
    }

    /// Inverse frequencies and the factor of sines and cosines.
    fn frequencies(&self, max_positions: usize) -> (Vec<f32>, f32) {
        let dim = self.rotary_dim as f64;
        let plain = |theta: f64| -> Vec<f64> {
            (0..self.rotary_dim / 2)
                .map(|i| theta.powf(-2.0 * i as f64 / dim))
                .collect()
        };
        let mut inverse = plain(self.theta);
        let mut attention_factor = 1.0;
        match &self.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => inverse.iter_mut().for_each(|x| *x /= factor),
            Scaling::Dynamic {
                factor,
                max_positions: trained,
            } => {
                // Keys in the cache keep the table they were rotated with, so the length is fixed once.
                let (n, trained) = (max_positions as f64, *trained as f64);
                if n > trained {
                    inverse = plain(
                        self.theta
                            * (factor * n / trained - (factor - 1.0)).powf(dim / (dim - 2.0)),
                    );
                }
            }
            Scaling::Yarn(yarn) => {
                yarn.stretch(&mut inverse, dim, self.theta);
                attention_factor = yarn.attention_factor;
            }
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                inverse
                    .iter_mut()
                    .for_each(|x| *x = llama3(*x, *factor, *low, *high, *original));
            }
            Scaling::LongRope(rope) => {
                // As with dynamic scaling: one table for as long as the cache lives.
                let long = max_positions as f64 > rope.original;
                tracing::info!(
                    long,
                    original = rope.original,
                    max_positions,
                    "the rotation table follows the context, not the length of each text"
                );
                let factors = if long { &rope.long } else { &rope.short };
                let both = inverse.iter_mut().zip(factors);
                both.for_each(|(x, factor)| *x /= factor);
                attention_factor = rope.attention_factor;
            }
        }
        if let Some(factors) = &self.factors {
            inverse
                .iter_mut()
                .zip(factors)
                .for_each(|(x, factor)| *x /= f64::from(*factor));
        }
        (
            inverse.into_iter().map(|x| x as f32).collect(),
            attention_factor as f32,
        )
    }
}

fn llama3(inverse: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / inverse;
    if wavelength < original / high {
        inverse
    } else if wavelength > original / low {
        inverse / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * inverse / factor + smooth * inverse
    }
}

impl Yarn {
    fn stretch(&self, inverse: &mut [f64], dim: f64, theta: f64) {
        let correction =
            |beta: f64| dim * (self.original / (2.0 * PI * beta)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, x) in inverse.iter_mut().enumerate() {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *x = *x * (1.0 - ramp) + *x / self.factor * ramp;
        }
    }
}

/// The scaling dictionary, with the configuration behind it.
struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    config: &'a ModelConfig,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map?.get(key).filter(|value| !value.is_null())
    }

    /// The whole rotation, θ under one of `base` where the dictionary has none.
    fn read(
        &self,
        base: &[&str],
        head_dim: usize,
        default_theta: f64,
        default_share: f64,
    ) -> Result<RopeConfig> {
        let theta = match self.get("rope_theta") {
            Some(value) => number("rope_theta", value)?,
            None => self.config.number(base, default_theta)?,
        };
        if theta <= 1.0 {
            return Err(ModelError::config(
                "rope_theta",
                format!("is {theta}, not above 1"),
            ));
        }
        let share = match self.get("partial_rotary_factor") {
            Some(value) => number("partial_rotary_factor", value)?,
            None => self.config.number(
                &["partial_rotary_factor", "rotary_pct", "rope_pct"],
                default_share,
            )?,
        };
        let rotary_dim = match self.config.count(&["rotary_dim"])? {
            Some(rotary_dim) => rotary_dim,
            None => (head_dim as f64 * share).floor() as usize,
        };
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(ModelError::config(
                "head_dim",
                format!("gives {rotary_dim} rotated features, not an even number"),
            ));
        }
        let scaling = self.kind(rotary_dim)?;
        if matches!(scaling, Scaling::Dynamic { .. }) && rotary_dim == 2 {
            return Err(ModelError::unsupported(
                "rope_type",
                "dynamic",
                "more than two rotated features are needed",
            ));
        }
        Ok(RopeConfig {
            rotary_dim,
            theta,
            scaling,
            factors: None,
        })
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (Some(value), _) => number(key, value),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(ModelError::config(key, "is missing in the rope scaling")),
        }
    }

    fn factor(&self) -> Result<f64> {
        let factor = self.number("factor", None)?;
        if factor < 1.0 {
            return Err(ModelError::config(
                "factor",
                format!("of the rope scaling is {factor}, below 1"),
            ));
        }
        Ok(factor)
    }

    fn max_positions(&self) -> Result<f64> {
        Ok(self.config.required_count(&["max_position_embeddings"])? as f64)
    }

    fn kind(&self, rotary_dim: usize) -> Result<Scaling> {
        let kind = self
            .get("rope_type")
            .or_else(|| self.get("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear {
                factor: self.factor()?,
            }),
            "dynamic" => Ok(Scaling::Dynamic {
                factor: self.factor()?,
                max_positions: self.max_positions()? as usize,
            }),
            "llama3" => Ok(Scaling::Llama3 {
                factor: self.factor()?,
                low: self.number("low_freq_factor", None)?,
                high: self.number("high_freq_factor", None)?,
                original: self.number(
                    "original_max_position_embeddings",
                    Some(self.max_positions()?),
                )?,
            }),
            // The first files of Phi-3 had names of their own.
            "longrope" | "su" => self.longrope(rotary_dim).map(Scaling::LongRope),
            "yarn" if self.config.model_type()? == "phi3" => {
                self.longrope(rotary_dim).map(Scaling::LongRope)
            }
            "yarn" => self.yarn().map(Scaling::Yarn),
            other => Err(ModelError::unsupported(
                "rope_type",
                other,
                "default, linear, dynamic, yarn, llama3 and longrope are",
            )),
        }
    }

    fn longrope(&self, rotary_dim: usize) -> Result<LongRope> {
        let factors = |key: &str| -> Result<Vec<f64>> {
            let values = self.get(key).and_then(Value::as_array);
            values
                .filter(|values| values.len() == rotary_dim / 2)
                .and_then(|values| values.iter().map(Value::as_f64).collect())
                .filter(|values: &Vec<f64>| values.iter().all(|x| x.is_finite() && *x > 0.0))
                .ok_or_else(|| {
                    let reason = format!("is not a list of {} positive numbers", rotary_dim / 2);
                    ModelError::config(key, reason)
                })
        };
        let key = "original_max_position_embeddings";
        let context = self.max_positions()?;
        // The one beside the dictionary counts before the one inside.
        let original = match self.config.count(&[key])? {
            Some(original) => original as f64,
            None => self.number(key, Some(context))?,
        };
        let factor = self.number("factor", Some(context / original))?;
        let default = if factor > 1.0 {
            (1.0 + factor.ln() / original.ln()).sqrt()
        } else {
            1.0
        };
        Ok(LongRope {
            short: factors("short_factor")?,
            long: factors("long_factor")?,
            original,
            attention_factor: self.number("attention_factor", Some(default))?,
        })
    }

    fn yarn(&self) -> Result<Yarn> {
        let factor = self.factor()?;
        let scale = |multiplier: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * multiplier * factor.ln() + 1.0
            }
        };
        let (mscale, mscale_all) = (
            self.number("mscale", Some(0.0))?,
            self.number("mscale_all_dim", Some(0.0))?,
        );
        let default = if mscale != 0.0 && mscale_all != 0.0 {
            scale(mscale) / scale(mscale_all)
        } else {
            scale(1.0)
        };
        Ok(Yarn {
            factor,
            original: self.number(
                "original_max_position_embeddings",
                Some(self.max_positions()?),
            )?,
            beta_fast: self.number("beta_fast", Some(32.0))?,
            beta_slow: self.number("beta_slow", Some(1.0))?,
            truncate: self
                .get("truncate")
                .and_then(Value::as_bool)
                .unwrap_or(true),
            attention_factor: self.number("attention_factor", Some(default))?,
        })
    }
}
