//! How values are written on the command line.

use std::time::Duration;

pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("not a number above zero".into()),
    }
}

pub(super) fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if (0.0..=2.0).contains(&t) => Ok(t),
        _ => Err("not a number from 0 to 2".into()),
    }
}

/// Reads `500ms`, `10s`, `1.5m`, `2h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`: ms, s, m or h")),
    };
    let seconds = number
        .parse::<f64>()
        .map_err(|_| format!("`{number}` is not a number"))?
        * unit;
    // A year bounds what arithmetic on instants has to bear.
    if !(seconds > 0.0 && seconds <= 365.0 * 86_400.0) {
        return Err("not a time above zero and below a year".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
