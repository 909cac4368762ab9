//! What a million tokens cost on a machine that is paid by the hour: never at a speed that breaks the limits
//! of a good request, and for a machine that is not always in use, too.

use serde::Serialize;

use crate::report::Rates;
use crate::slo::Goodput;

/// Shares of the time that a machine is in use.
pub const USES: [f64; 3] = [1.0, 0.5, 0.25];

/// The price of an hour, as somebody stated it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Price {
    /// Its amount.
    pub per_hour: f64,
    /// Currency, date and source.
    pub note: String,
}

/// The price of a million tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cost {
    /// The price of an hour.
    pub price: Price,
    /// Why there is no more than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_stated: Option<&'static str>,
    /// By the share of the time that the machine is in use.
    pub uses: Vec<Use>,
}

/// The price of a million tokens when the machine is in use for a share of the time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Use {
    /// That share.
    pub share: f64,
    /// Of generated tokens alone.
    pub per_million_output_tokens: f64,
    /// Of prompt and generated tokens.
    pub per_million_total_tokens: f64,
}

impl Cost {
    /// The cost at the rates of a run that kept its limits.
    pub fn new(price: Price, goodput: Option<&Goodput>, rates: &Rates) -> Self {
        let not_stated = match goodput {
            None => Some(
                "the run has no limits (--slo): the highest speed of a machine is nobody's price",
            ),
            Some(goodput) if goodput.attainment.value < Some(goodput.slo.attainment) => {
                Some("the run did not keep its limits: nobody would pay for this speed")
            }
            Some(_) if rates.output_tokens <= 0.0 => Some("the run made no tokens"),
            Some(_) => None,
        };
        let per_million = |share: f64, rate: f64| price.per_hour / (3600.0 * rate * share) * 1e6;
        let uses = USES
            .iter()
            .filter(|_| not_stated.is_none())
            .map(|share| Use {
                share: *share,
                per_million_output_tokens: per_million(*share, rates.output_tokens),
                per_million_total_tokens: per_million(*share, rates.total_tokens),
            });
        Self {
            uses: uses.collect(),
            not_stated,
            price,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slo::Share;

    #[test]
    fn an_hour_is_divided_by_its_tokens_and_only_where_the_limits_are_kept() {
        let price = Price {
            per_hour: 0.72,
            note: "EUR".into(),
        };
        let rates = Rates {
            output_tokens: 100.0,
            total_tokens: 400.0,
            ..Rates::default()
        };
        let goodput = |good: f64| Goodput {
            slo: "ttft=1s".parse().unwrap(),
            good: 0,
            planned: 0,
            attainment: Share {
                value: Some(good),
                low: 0.0,
                high: 1.0,
            },
            requests_per_second: 1.0,
        };
        // An hour makes 360,000 tokens.
        let cost = Cost::new(price.clone(), Some(&goodput(0.99)), &rates);
        let found: Vec<f64> = cost
            .uses
            .iter()
            .map(|u| u.per_million_output_tokens)
            .collect();
        for (found, expected) in found.iter().zip([2.0, 4.0, 8.0]) {
            assert!((found - expected).abs() < 1e-9, "{found}");
        }
        assert!((cost.uses[0].per_million_total_tokens - 0.5).abs() < 1e-9);
        for kept in [None, Some(&goodput(0.98))] {
            let cost = Cost::new(price.clone(), kept, &rates);
            assert!(cost.uses.is_empty() && cost.not_stated.is_some());
        }
        let nothing = Cost::new(price, Some(&goodput(1.0)), &Rates::default());
        assert_eq!(nothing.not_stated, Some("the run made no tokens"));
    }
}
