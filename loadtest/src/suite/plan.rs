//! What a suite will take, computed before anything starts.

use std::fmt::Write;

use super::{Machine, Shape, Suite};

const GIB: f64 = (1u64 << 30) as f64;

/// Memory of a cell, in GiB.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Fit {
    /// Weights.
    pub weights_gib: f64,
    /// What the server may take.
    pub limit_gib: f64,
    /// What is left for cached keys and values; below zero it does not fit.
    pub kv_gib: f64,
    /// Tokens that makes, in 16 bits.
    pub kv_tokens: u64,
}

impl Fit {
    /// Weights are 12 h² for each layer, in 2 bytes or 1; embedding and output stay in 16 bits. A token
    /// takes a key and a value of h features in each layer.
    pub fn new(machine: &Machine, shape: Shape, precision: &str) -> Self {
        let [layers, hidden, rows] = [shape.layers, shape.hidden, shape.vocabulary].map(f64::from);
        let bytes = if precision.starts_with("int8") {
            1.0
        } else {
            2.0
        };
        let tables = 2.0 * rows * hidden * 2.0;
        let weights_gib = (12.0 * hidden * hidden * layers * bytes + tables) / GIB;
        let limit_gib = machine.memory_gib * machine.utilization;
        let kv_gib = limit_gib - machine.workspace_gib - weights_gib;
        let token = 2.0 * layers * hidden * 2.0;
        Self {
            weights_gib,
            limit_gib,
            kv_gib,
            kv_tokens: (kv_gib.max(0.0) * GIB / token) as u64,
        }
    }

    /// Why it does not fit, if it does not.
    pub fn refusal(&self) -> Option<String> {
        (self.kv_gib <= 0.0).then(|| {
            format!(
                "does not fit: {:.1} GiB + KV against {:.1} GiB",
                self.weights_gib, self.limit_gib
            )
        })
    }
}

impl Suite {
    /// Memory of a cell, where machine and sizes are known.
    pub fn fit(&self, shape: Option<Shape>, precision: &str) -> Option<Fit> {
        Some(Fit::new(self.machine.as_ref()?, shape?, precision))
    }
}

/// All cells with their expected time, memory and cost.
pub fn plan(suite: &Suite) -> String {
    let mut text = String::new();
    let mut total = 0.0;
    for job in suite.jobs() {
        let what = if let Some(refusal) = suite.refusal(&job) {
            refusal
        } else {
            let minutes = suite.expected(&job).as_secs_f64() / 60.0;
            total += minutes;
            let memory = match &job.sides[..] {
                [side] => suite.fit(side.model.shape, side.precision),
                _ => None,
            };
            let memory = memory.map_or(String::new(), |f| {
                let (weights, tokens) = (f.weights_gib, f.kv_tokens);
                format!(
                    ", weights {weights:.1} GiB, KV room {:.1} GiB for {tokens} tokens",
                    f.kv_gib
                )
            });
            format!("{minutes:.1} min{memory}")
        };
        let _ = writeln!(text, "{:<52} {what}", job.name);
    }
    let _ = write!(text, "expected in all: {total:.0} min");
    let price = suite.machine.as_ref().and_then(|m| m.price_per_hour);
    if let Some(price) = price {
        let _ = write!(text, ", {:.2} at {price} an hour", total / 60.0 * price);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const A10: &str = include_str!("../../../deploy/suites/rig-a10.toml");

    #[test]
    fn twelve_billion_weights_in_16_bits_do_not_fit_an_a10() {
        let suite = Suite::parse(A10).unwrap();
        let refused = |side: &crate::suite::Side<'_>| {
            let fit = suite.fit(side.model.shape, side.precision);
            fit.unwrap().refusal().is_some()
        };
        let all: Vec<_> = suite.cells().collect();
        let not: Vec<_> = all.iter().filter(|c| refused(c)).collect();
        let names: Vec<_> = not
            .iter()
            .map(|s| (s.model.name.as_str(), s.precision))
            .collect();
        assert_eq!(
            names,
            [("dolly-v2-12b", "f16"), ("oasst-pythia-12b", "f16")]
        );
        assert_eq!(all.len(), 12);
        assert!(plan(&suite).contains("does not fit: 22.1 GiB + KV against 20.2 GiB"));
    }

    #[test]
    fn memory_follows_the_formula() {
        let suite = Suite::parse(A10).unwrap();
        // 12 · 2560² · 32 · 2 bytes and two tables of 50,280 · 2560 · 2 bytes are 5.17 GiB.
        let fit = suite.fit(suite.model[0].shape, "f16").unwrap();
        assert!((fit.weights_gib - 5.17).abs() < 0.005, "{fit:?}");
        assert!(
            (fit.kv_gib - 14.49).abs() < 0.005 && fit.kv_tokens / 1000 == 47,
            "{fit:?}"
        );
        let int8 = suite.fit(suite.model[0].shape, "int8").unwrap();
        assert!((int8.weights_gib - 2.82).abs() < 0.005, "{int8:?}");
    }

    #[test]
    fn unknown_keys_and_servers_are_named() {
        let text = A10.replace("memory_gib", "memory_gb");
        let error = format!("{:#}", Suite::parse(&text).unwrap_err());
        assert!(error.contains("memory_gb"), "{error}");
        let cpu = include_str!("../../../deploy/suites/cpu.toml");
        assert!(Suite::parse(cpu).is_ok());
        let text = cpu.replace("auto on octet\"", "auto on octopus\"");
        let error = format!("{:#}", Suite::parse(&text).unwrap_err());
        assert!(error.contains("auto on octopus"), "{error}");
        let text = cpu.replace("models = [\"octet-bundled\"]", "models = [\"gpt-5\"]");
        let error = format!("{:#}", Suite::parse(&text).unwrap_err());
        assert!(error.contains("`gpt-5`"), "{error}");
        let text = A10.replace("[server.octet]", "[server.other]");
        let error = format!("{:#}", Suite::parse(&text).unwrap_err());
        assert!(error.contains("[server.octet]"), "{error}");
    }
}
