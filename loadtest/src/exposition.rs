//! A parser of the Prometheus text format, version 0.0.4. It keeps every sample, names with colons
//! included, and reports a line it cannot read with its number: a parser that skips lines lets
//! checks pass on empty sets. Types, help texts, time stamps and exemplars are read over.

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name, with its suffix (`_bucket`, `_sum`, `_count`, `_total`).
    pub name: String,
    /// The labels in the order of the text.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A line that is not part of the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The line, counted from one.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// Reads a whole exposition.
pub fn parse(text: &str) -> Result<Vec<Sample>, ParseError> {
    let mut samples = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        samples.push(sample(line).map_err(|reason| ParseError {
            line: index + 1,
            reason,
        })?);
    }
    Ok(samples)
}

fn sample(line: &str) -> Result<Sample, &'static str> {
    let end = line
        .find(|c: char| !is_name_char(c))
        .ok_or("a value is missing")?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a metric name is missing");
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Vec::new(), rest),
    };
    // What follows ` # ` is an exemplar.
    let rest = rest.split(" # ").next().unwrap_or(rest);
    let mut words = rest.split_whitespace();
    let value = words.next().ok_or("a value is missing")?;
    let value = value.parse().map_err(|_| "the value is not a number")?;
    if words
        .next()
        .is_some_and(|stamp| stamp.parse::<f64>().is_err())
    {
        return Err("the time stamp is not a number");
    }
    if words.next().is_some() {
        return Err("there is text after the time stamp");
    }
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

type Labels = Vec<(String, String)>;

/// Reads labels up to the closing brace and returns what follows it.
fn labels(mut rest: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once('=').ok_or("a label has no value")?;
        let name = name.trim();
        if name.is_empty() || !name.chars().all(is_name_char) {
            return Err("a label name is not valid");
        }
        let after = after
            .trim_start()
            .strip_prefix('"')
            .ok_or("a label value is not quoted")?;
        let (value, after) = quoted(after)?;
        labels.push((name.to_owned(), value));
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if !rest.starts_with('}') {
            return Err("a comma between labels is missing");
        }
    }
}

/// Reads a label value up to its closing quote.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                _ => return Err("an unknown escape in a label value"),
            },
            c => value.push(c),
        }
    }
    Err("a label value is not closed")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> (String, Vec<(String, String)>, f64) {
        let sample = parse(line).unwrap().remove(0);
        (sample.name, sample.labels, sample.value)
    }

    #[test]
    fn samples_of_every_shape() {
        let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(one("up 1"), ("up".into(), vec![], 1.0));
        assert_eq!(
            one("vllm:requests_total{model=\"a\"} 3e2 1712345678"),
            (
                "vllm:requests_total".into(),
                vec![label("model", "a")],
                300.0
            )
        );
        assert_eq!(
            one(r#"a{ x = "1,}" , y="\"\\\n", } -0.5"#),
            (
                "a".into(),
                vec![label("x", "1,}"), label("y", "\"\\\n")],
                -0.5
            )
        );
        assert_eq!(
            one("a_bucket{le=\"+Inf\"} +Inf # {trace=\"1\"} 0.2 3"),
            ("a_bucket".into(), vec![label("le", "+Inf")], f64::INFINITY)
        );
        assert_eq!(one("a{} -Inf").2, f64::NEG_INFINITY);
        assert!(one("a NaN").2.is_nan());
        assert_eq!(
            parse("# HELP a b\n# TYPE a counter\n\na 1\r\n# EOF\n")
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn a_line_that_is_not_a_sample_is_an_error_with_its_number() {
        let cases = [
            ("a", "a value is missing"),
            ("a{x=\"1\"}", "a value is missing"),
            ("a one", "not a number"),
            ("1a 1", "name is missing"),
            ("{x=\"1\"} 1", "name is missing"),
            ("a{x} 1", "no value"),
            ("a{x=1} 1", "not quoted"),
            ("a{x=\"1} 1", "not closed"),
            ("a{x=\"\\q\"} 1", "escape"),
            ("a{x=\"1\" y=\"2\"} 1", "comma"),
            ("a 1 2 3", "after the time stamp"),
            ("a 1 soon", "time stamp is not a number"),
        ];
        for (line, part) in cases {
            let error = parse(&format!("ok 1\n{line}\n")).unwrap_err();
            assert_eq!(error.line, 2, "{line}");
            assert!(error.reason.contains(part), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}",
            labels in prop::collection::vec(("[a-z_][a-z0-9_]{0,4}", any::<String>()), 0..4),
            value in any::<f64>().prop_filter("NaN is not equal to itself", |v| !v.is_nan()),
        ) {
            let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let body: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
            // A raw carriage return cannot stand in a line-based text.
            prop_assume!(!body.iter().any(|b| b.contains('\r')));
            let text = format!("{name}{{{}}} {value}\n", body.join(","));
            prop_assert_eq!(parse(&text).unwrap(), vec![Sample { name, labels, value }]);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
