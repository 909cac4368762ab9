//! `tojson` as transformers defines it: `json.dumps` without escaping HTML, non-ASCII left as it is.

use minijinja::value::{Kwargs, Value as TemplateValue};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value;

/// How the text is laid out.
struct Layout {
    ensure_ascii: bool,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter.
pub(super) fn to_json(
    state: &State,
    value: &TemplateValue,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = indent.or(options.get::<Option<usize>>("indent")?);
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "separators must be a pair",
            ));
        }
    };
    let layout = Layout {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|_| Error::new(ErrorKind::BadSerialization, "a value has no JSON form"))?;
    let mut text = String::new();
    layout.write(&value, 0, &mut text);
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(text)
}

impl Layout {
    fn write(&self, value: &Value, depth: usize, text: &mut String) {
        match value {
            Value::Array(items) => {
                self.list(('[', ']'), items.iter(), depth, text, |item, text| {
                    self.write(item, depth + 1, text);
                });
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                self.list(
                    ('{', '}'),
                    fields.iter(),
                    depth,
                    text,
                    |(key, value), text| {
                        self.string(key, text);
                        text.push_str(&self.key_separator);
                        self.write(value, depth + 1, text);
                    },
                );
            }
            Value::String(s) => self.string(s, text),
            other => text.push_str(&other.to_string()),
        }
    }

    fn list<T>(
        &self,
        (open, close): (char, char),
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        text: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        text.push(open);
        let is_empty = items.len() == 0;
        for (i, item) in items.enumerate() {
            if i > 0 {
                text.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, text);
            write(item, text);
        }
        if !is_empty {
            self.new_line(depth, text);
        }
        text.push(close);
    }

    fn new_line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = self.indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, s: &str, text: &mut String) {
        let quoted = Value::String(s.to_owned()).to_string();
        if !self.ensure_ascii {
            text.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                text.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}
