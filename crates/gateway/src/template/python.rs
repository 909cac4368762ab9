//! What chat templates expect of Python and minijinja does not have.

use std::fmt::Write as _;

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// String methods beyond those of `pycompat`.
pub(super) fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(match text.split_once(separator) {
                Some((before, after)) => list([before, separator, after]),
                None => list([text, "", ""]),
            })
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(match text.rsplit_once(separator) {
                Some((before, after)) => list([before, separator, after]),
                None => list(["", "", text]),
            })
        }
        "rsplit" => rsplit(text, args),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            zfill(text, width)
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
    let limit = usize::try_from(max.unwrap_or(-1)).map_or(usize::MAX, |max| max.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some("") => {
            return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
        }
        Some(separator) => text.rsplitn(limit, separator).collect(),
        None if limit == usize::MAX => text.split_whitespace().rev().collect(),
        None => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "rsplit on whitespace takes no limit here",
            ));
        }
    };
    parts.reverse();
    Ok(list(parts))
}

fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

fn zfill(text: &str, width: usize) -> Result<Value, Error> {
    if width > 1000 {
        return Err(Error::new(ErrorKind::InvalidOperation, "zfill is too wide"));
    }
    let missing = width.saturating_sub(text.chars().count());
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into())
}

/// Whether Python could loop over a value: not over `None`.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Whether a value has a length and items, which in Python texts, mappings and undefined values have, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), Map | Seq | String | Undefined)
}

/// The date and time in a format of `strftime`.
pub(super) fn strftime(now: chrono::NaiveDateTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            "the format of strftime_now is not valid",
        )
    })?;
    Ok(text)
}

/// Removes `{% generation %}` and `{% endgeneration %}`, which only mark spans for training.
pub(super) fn remove_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|end| end + 2) else {
            break;
        };
        let tag = &rest[start..start + len];
        let name = tag[2..len - 2].trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        if name == "generation" || name == "endgeneration" {
            let (before, after) = (&rest[..start], &rest[start + len..]);
            out.push_str(if tag.starts_with("{%-") {
                before.trim_end()
            } else {
                before
            });
            rest = if tag.ends_with("-%}") {
                after.trim_start()
            } else {
                after.strip_prefix('\n').unwrap_or(after)
            };
            continue;
        }
        out.push_str(&rest[..start + len]);
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}
