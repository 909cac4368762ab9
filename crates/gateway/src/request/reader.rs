//! Typed reading of fields: types, ranges and their error codes stand here and nowhere else.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::fields::{Support, Table, support};
use crate::error::ApiError;

/// The fields of an object that are still to be read.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands, with a trailing dot; empty at the top.
    prefix: String,
}

/// A lower bound of a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Above {
    /// The bound itself is allowed.
    Inclusive(f64),
    /// It is not.
    Exclusive(f64),
}

impl Fields {
    /// The fields of a body.
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self {
            map,
            prefix: String::new(),
        }
    }

    /// The fields of an object inside a body, at `path`.
    pub(crate) fn nested(map: Map<String, Value>, path: &str) -> Self {
        let mut map = map;
        map.retain(|_, value| !value.is_null());
        Self {
            map,
            prefix: format!("{path}."),
        }
    }

    /// The path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Applies a table to all fields: refuses those the server does not carry out, and takes out those
    /// it ignores. Returns the names that were ignored.
    pub(crate) fn sort_out(&mut self, table: Table, strict: bool) -> Result<Vec<String>, ApiError> {
        let mut ignored = Vec::new();
        for (name, value) in &self.map {
            match support(table, name) {
                Some(Support::Supported) => {}
                Some(Support::Ignored) => ignored.push(name.clone()),
                Some(Support::Refused(reason)) => return Err(ApiError::unsupported(name, reason)),
                Some(Support::Only(neutral, reason)) => {
                    if !is_neutral(value, neutral) {
                        return Err(ApiError::unsupported(name, reason));
                    }
                }
                None if strict => return Err(unknown(name)),
                None => ignored.push(name.clone()),
            }
        }
        for name in &ignored {
            self.map.shift_remove(name);
        }
        Ok(ignored)
    }

    /// What was not read, as ignored names; an error under strict parameters.
    pub(crate) fn rest(self, strict: bool) -> Result<Vec<String>, ApiError> {
        let names: Vec<String> = self.map.keys().map(|name| self.path(name)).collect();
        match names.first() {
            Some(name) if strict => Err(unknown(name)),
            _ => Ok(names),
        }
    }

    /// An integer in a range; `5.0` counts as one.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| integer(&value, &path, range))
            .transpose()
    }

    /// A finite number in a range.
    pub(crate) fn number(
        &mut self,
        name: &str,
        above: Above,
        max: f64,
    ) -> Result<Option<f64>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| number(&value, &path, above, max))
            .transpose()
    }

    /// A boolean.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let path = self.path(name);
        let read = |value: Value| {
            let read = value.as_bool();
            read.ok_or_else(|| wrong_type(&path, "a boolean", &value))
        };
        self.take(name).map(read).transpose()
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| string(value, &path))
            .transpose()
    }

    /// An array.
    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| array(value, &path)).transpose()
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| object(value, &path))
            .transpose()
    }
}

fn is_neutral(value: &Value, neutral: &str) -> bool {
    let Ok(neutral) = serde_json::from_str::<Value>(neutral) else {
        return false;
    };
    match (value.as_f64(), neutral.as_f64()) {
        (Some(value), Some(neutral)) => value == neutral,
        _ => *value == neutral,
    }
}

fn unknown(name: &str) -> ApiError {
    let shown: String = name.chars().take(64).collect();
    let message = format!("unknown parameter: {shown}");
    ApiError::field(shown, "unknown_parameter", message)
}

/// An error for a value of the wrong type.
pub(crate) fn wrong_type(path: &str, expected: &str, value: &Value) -> ApiError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ApiError::field(
        path,
        "invalid_type",
        format!("{path} must be {expected}, not {found}"),
    )
}

/// An error for a field that must be there.
pub(crate) fn missing(path: &str) -> ApiError {
    ApiError::field(
        path,
        "missing_required_parameter",
        format!("{path} is required"),
    )
}

/// An error for a value outside a set.
pub(crate) fn invalid(path: &str, message: impl std::fmt::Display) -> ApiError {
    ApiError::field(path, "invalid_value", format!("{path} {message}"))
}

/// An error for a list that is too long.
pub(crate) fn too_long(path: &str, len: usize, max: usize) -> ApiError {
    ApiError::field(
        path,
        "array_above_max_length",
        format!("{path} has {len} entries, more than the limit of {max}"),
    )
}

/// Reads an integer at `path`.
pub(crate) fn integer(
    value: &Value,
    path: &str,
    range: RangeInclusive<i64>,
) -> Result<i64, ApiError> {
    let (min, max) = (*range.start(), *range.end());
    let above = || {
        ApiError::field(
            path,
            "integer_above_max_value",
            format!("{path} must be at most {max}, not {value}"),
        )
    };
    let below = || {
        ApiError::field(
            path,
            "integer_below_min_value",
            format!("{path} must be at least {min}, not {value}"),
        )
    };
    let read = match (value.as_i64(), value.as_f64()) {
        (Some(integer), _) => integer,
        (None, Some(float)) if float.fract() != 0.0 => {
            return Err(wrong_type(path, "an integer", value));
        }
        // 2⁶³ and more do not fit; every whole float below does.
        (None, Some(float)) if float >= 9_223_372_036_854_775_808.0 => return Err(above()),
        (None, Some(float)) if float < -9_223_372_036_854_775_808.0 => return Err(below()),
        (None, Some(float)) => float as i64,
        (None, None) => return Err(wrong_type(path, "an integer", value)),
    };
    if read > max {
        return Err(above());
    }
    if read < min {
        return Err(below());
    }
    Ok(read)
}

/// Reads a finite number at `path`.
pub(crate) fn number(value: &Value, path: &str, above: Above, max: f64) -> Result<f64, ApiError> {
    let read = value
        .as_f64()
        .ok_or_else(|| wrong_type(path, "a number", value))?;
    if read > max || !read.is_finite() {
        return Err(ApiError::field(
            path,
            "decimal_above_max_value",
            format!("{path} must be at most {max}, not {value}"),
        ));
    }
    let (too_low, bound) = match above {
        Above::Inclusive(min) => (read < min, format!("at least {min}")),
        Above::Exclusive(min) => (read <= min, format!("greater than {min}")),
    };
    if too_low {
        return Err(ApiError::field(
            path,
            "decimal_below_min_value",
            format!("{path} must be {bound}, not {value}"),
        ));
    }
    Ok(read)
}

/// Reads a string at `path`.
pub(crate) fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

/// Reads an array at `path`.
pub(crate) fn array(value: Value, path: &str) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(wrong_type(path, "an array", &other)),
    }
}

/// Reads an object at `path`.
pub(crate) fn object(value: Value, path: &str) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(wrong_type(path, "an object", &other)),
    }
}
