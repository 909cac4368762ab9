//! The choice of precision, as a function of what was found and timed: 8 bits where they are supported,
//! right and faster, else half precision, else a sentence why this device does not compute.
//!
//! The order: what the part is, whether its answers are known ones, whether 8 bits gain, what fits. Where half
//! precision must run and does not fit, its products take weights of 8 bits. What
//! somebody asked for is obeyed or fails with the reason. Nothing here touches a device.

use std::time::Duration;

use crate::Precision;
use crate::device::Memory;
use crate::images::Capability;

/// What a part has for 8-bit products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Tensor cores with this instruction.
    Int8(&'static str),
    /// Tensor cores for half precision only.
    F16,
    /// Too old for the kernels.
    None,
}

/// The table of parts. What is newer than we know computes what its predecessors do, and its timing
/// decides.
pub fn tier(capability: Capability) -> Tier {
    match capability {
        (0..=6, _) => Tier::None,
        (7, 0..=4) => Tier::F16,
        (7, _) => Tier::Int8("m8n8k16"),
        _ => Tier::Int8("m16n8k32"),
    }
}

/// Microseconds of the model's largest product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Tokens.
    pub tokens: usize,
    /// The kernel that was fastest in 8 bits.
    pub kernel: &'static str,
    /// With 8-bit weights.
    pub int8: f64,
    /// With half precision.
    pub f16: f64,
}

/// Bytes of a model on the device, the least that lets it answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Weights in 8 bits with their scales.
    pub int8: u64,
    /// Weights in half precision.
    pub f16: u64,
    /// Keys and values of one sequence, and the buffers of a step.
    pub rest: u64,
}

/// What is known when the choice is made.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The part.
    pub capability: Capability,
    /// Whether the 8-bit kernels gave the known answers, or which did not.
    pub int8_answers: Result<(), String>,
    /// The same for the products of warpgroups, where the device has their kernels: what they compute others
    /// compute too.
    pub warpgroups: Option<Result<(), String>>,
    /// The same for half precision, and for everything that both need.
    pub f16_answers: Result<(), String>,
    /// The same for half precision with weights of 8 bits.
    pub w8a16_answers: Result<(), String>,
    /// How long the answers took.
    pub answered_in: Duration,
    /// Few and many tokens; empty where nothing was timed.
    pub timings: Vec<Timing>,
    /// What the device has left, of which a share is used.
    pub memory: Memory,
    /// What the model takes; unknown before one is named.
    pub needs: Option<Needs>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Whatever is best; 8 bits in this form.
    Auto(Precision),
    /// This, or an error.
    Exactly(Precision),
}

/// What will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The precision.
    pub precision: Precision,
    /// A word for metrics.
    pub reason: &'static str,
    /// A sentence for people.
    pub why: String,
    /// Whether products of many tokens are those of warpgroups.
    pub warpgroups: bool,
}

/// 8 bits must gain this much for few tokens or for many, and lose no more than that for either.
const MIN_GAIN: f64 = 1.1;
const MIN_RATIO: f64 = 0.95;

/// Decides.
///
/// # Errors
/// Why this device does not compute the model.
pub fn decide(wish: Wish, found: &Findings) -> Result<Choice, String> {
    let (major, minor) = found.capability;
    let tier = tier(found.capability);
    if tier == Tier::None {
        return Err(format!(
            "compute capability {major}.{minor} is too old: 7.0 or newer is needed"
        ));
    }
    match wish {
        Wish::Exactly(precision) => asked(precision, tier, found),
        Wish::Auto(int8) => automatic(int8, tier, found),
    }
}

fn asked(precision: Precision, tier: Tier, found: &Findings) -> Result<Choice, String> {
    let (major, minor) = found.capability;
    let is_int8 = precision.has_int8_products();
    match (precision, tier) {
        (_, Tier::F16) if is_int8 => {
            return Err(format!(
                "{} was asked for: compute capability {major}.{minor} has no 8-bit tensor cores",
                precision.name()
            ));
        }
        (Precision::Bf16, _) if major < 8 => {
            return Err(format!(
                "bf16 was asked for: compute capability {major}.{minor} has none, f16 is there"
            ));
        }
        _ => {}
    }
    let answers = match precision {
        Precision::W8A16 => &found.w8a16_answers,
        _ if is_int8 => &found.int8_answers,
        _ => &found.f16_answers,
    };
    if let Err(wrong) = answers {
        return Err(format!(
            "{} was asked for: {wrong} gives wrong answers on this device",
            precision.name()
        ));
    }
    fits(precision, found)?;
    Ok(Choice {
        precision,
        reason: "asked",
        why: "asked for".to_owned(),
        warpgroups: is_int8 && use_warpgroups(found),
    })
}

fn automatic(int8: Precision, tier: Tier, found: &Findings) -> Result<Choice, String> {
    let (major, minor) = found.capability;
    let (reason, why) = match (tier, &found.int8_answers) {
        (Tier::Int8(instruction), Ok(())) => match gain(&found.timings) {
            Ok(gain) => {
                fits(int8, found)?;
                let (reason, warpgroups) = match (instruction, &found.warpgroups) {
                    ("m8n8k16", _) => ("tc-m8n8k16", String::new()),
                    (_, None) => ("tc-m16n8k32", String::new()),
                    (_, Some(Ok(()))) if use_warpgroups(found) => {
                        ("tc-wgmma", " and wgmma".to_owned())
                    }
                    (_, Some(Ok(()))) => {
                        ("tc-m16n8k32", "; wgmma is right and not faster".to_owned())
                    }
                    (_, Some(Err(wrong))) => (
                        "tc-m16n8k32",
                        format!("; {wrong} gives wrong answers on this device and is left out"),
                    ),
                };
                return Ok(Choice {
                    precision: int8,
                    reason,
                    why: format!("8-bit tensor cores ({instruction}{warpgroups}), {gain}"),
                    warpgroups: reason == "tc-wgmma",
                });
            }
            Err(loss) if fits(Precision::F16, found).is_err() && fits(int8, found).is_ok() => {
                return Ok(Choice {
                    precision: int8,
                    reason: "memory",
                    why: format!("only 8 bits fit into its memory, although {loss}"),
                    warpgroups: use_warpgroups(found),
                });
            }
            Err(loss) => ("speed", format!("8 bits do not gain: {loss}")),
        },
        (Tier::Int8(_), Err(wrong)) => (
            "known-answer",
            format!("{wrong} gives wrong answers on this device"),
        ),
        _ => (
            "no-int8-tc",
            format!("compute capability {major}.{minor} has no 8-bit tensor cores"),
        ),
    };
    half(found, reason, why)
}

/// Whether products of warpgroups are right and, where the largest product was timed, the fastest of many tokens.
fn use_warpgroups(found: &Findings) -> bool {
    let is_one = |t: &Timing| t.kernel.starts_with("gemm_i8_wgmma");
    let is_fastest = found.timings.is_empty() || found.timings.iter().any(is_one);
    found.warpgroups == Some(Ok(())) && is_fastest
}

/// Half precision, or as much of it as fits.
fn half(found: &Findings, reason: &'static str, why: String) -> Result<Choice, String> {
    if let Err(wrong) = &found.f16_answers {
        return Err(format!("{why}; and {wrong} gives wrong answers as well"));
    }
    let Err(figures) = fits(Precision::F16, found) else {
        return Ok(Choice {
            precision: Precision::F16,
            reason,
            why,
            warpgroups: false,
        });
    };
    if let Err(wrong) = &found.w8a16_answers {
        return Err(format!(
            "{why}; {figures}; and {wrong} gives wrong answers as well"
        ));
    }
    fits(Precision::W8A16, found).map_err(|also| format!("{why}; {figures}; and {also}"))?;
    Ok(Choice {
        precision: Precision::W8A16,
        reason,
        why: format!("{why}; {figures}, so weights keep 8 bits"),
        warpgroups: false,
    })
}

/// How 8 bits compare, in words; an error when they do not pay.
fn gain(timings: &[Timing]) -> Result<String, String> {
    if timings.is_empty() {
        return Ok("not timed".to_owned());
    }
    let words: Vec<String> = timings
        .iter()
        .map(|t| {
            let gain = t.f16 / t.int8;
            format!("{gain:.2} times f16 at {} tokens ({})", t.tokens, t.kernel)
        })
        .collect();
    let words = words.join(", ");
    let ratios = || timings.iter().map(|t| t.f16 / t.int8);
    let pays = ratios().any(|ratio| ratio >= MIN_GAIN) && ratios().all(|ratio| ratio >= MIN_RATIO);
    if pays { Ok(words) } else { Err(words) }
}

/// Whether the model fits, or both figures.
fn fits(precision: Precision, found: &Findings) -> Result<(), String> {
    let Some(needs) = found.needs else {
        return Ok(());
    };
    let weights = if precision.is_int8() {
        needs.int8
    } else {
        needs.f16
    };
    let needed = weights.saturating_add(needs.rest);
    if needed <= found.memory.free {
        return Ok(());
    }
    Err(format!(
        "the model needs {} in {} ({} of weights), {} are free",
        gigabytes(needed),
        precision.name(),
        gigabytes(weights),
        gigabytes(found.memory.free)
    ))
}

/// Three digits, at least one and at most three of them decimals: figures that differ look different.
fn gigabytes(bytes: u64) -> String {
    let gigabytes = bytes as f64 / 1e9;
    let decimals = match gigabytes {
        ..1.0 => 3,
        ..10.0 => 2,
        _ => 1,
    };
    format!("{gigabytes:.decimals$} GB")
}

/// Bytes for keys and values: a share of the whole device, less what others use, the weights, and the
/// buffers of the largest step.
///
/// # Errors
/// The figures, when nothing is left.
pub fn kv_cache_bytes(
    memory: Memory,
    utilization: f64,
    weights: u64,
    step: u64,
) -> Result<u64, String> {
    let allowed = (memory.total as f64 * utilization) as u64;
    let used = memory.total.saturating_sub(memory.free);
    let taken = used.saturating_add(weights).saturating_add(step);
    match allowed.checked_sub(taken) {
        Some(left) if left > 0 => Ok(left),
        _ => Err(format!(
            "no memory is left for keys and values: {} of {} may be used (--gpu-memory-utilization {utilization}), \
             others use {}, weights take {}, a step {}",
            gigabytes(allowed),
            gigabytes(memory.total),
            gigabytes(used),
            gigabytes(weights),
            gigabytes(step)
        )),
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
