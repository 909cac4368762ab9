use super::*;

fn read(text: &str) -> Result<Body, ApiError> {
    parse(text.as_bytes(), "prompt", &RequestLimits::default())
}

#[test]
fn refuses_what_is_not_one_object() {
    for text in [
        "",
        "[]",
        "\"a\"",
        "1",
        "null",
        "{",
        "{\"a\":1,}",
        "{\"a\":1}x",
        "{\"a\":1}{\"a\":1}",
        "{\"a\":1e999}",
        "{\"a\":NaN}",
        "\u{feff}{}",
        "{\"a\":1,\"a\":2}",
        "{\"a\":null,\"a\":2}",
        "{\"a\":{\"b\":1,\"b\":1}}",
        "{\"prompt\":\"a\",\"prompt\":\"b\"}",
        "{\"a\":\"\\ud800\"}",
    ] {
        assert!(
            matches!(read(text), Err(ApiError::InvalidJson(_))),
            "{text:?}"
        );
    }
    let Err(ApiError::InvalidJson(message)) = read("{\n  \"a\": x\n}") else {
        panic!("accepted");
    };
    assert!(message.contains("line 2"), "{message}");
    assert!(parse(b"{\"a\":\"\xff\"}", "prompt", &RequestLimits::default()).is_err());
}

#[test]
fn null_is_absent() {
    let body = read(r#"{"a":null,"b":1,"prompt":null}"#).unwrap();
    assert_eq!(body.fields.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(body.prompt, None);
}

#[test]
fn nesting_is_limited_by_depth_and_not_by_brackets_in_strings() {
    let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
    assert!(read(&nested(63)).is_ok());
    for n in [64, 10_000, 1_000_000] {
        assert!(read(&nested(n)).is_err(), "{n}");
    }
    assert!(read(&format!("{{\"a\":\"{}\\\"[\"}}", "[".repeat(1000))).is_ok());
}

#[test]
fn the_number_of_values_is_limited() {
    let limits = RequestLimits {
        max_json_values: 10,
        ..RequestLimits::default()
    };
    let list = |n: usize| format!("{{\"a\":[{}1]}}", "1,".repeat(n - 1));
    assert!(parse(list(9).as_bytes(), "prompt", &limits).is_ok());
    assert!(parse(list(10).as_bytes(), "prompt", &limits).is_err());
    let ids = format!("{{\"prompt\":[{}1]}}", "1,".repeat(1000));
    assert!(parse(ids.as_bytes(), "prompt", &limits).is_ok());
}

#[test]
fn prompts_of_every_shape() {
    let text = |s: &str| Prompt::Text(s.into());
    for (json, expected) in [
        (r#""a""#, PromptValue::One(text("a"))),
        (
            r#"["a","b"]"#,
            PromptValue::Many(vec![text("a"), text("b")]),
        ),
        ("[1,2.0]", PromptValue::One(Prompt::Ids(vec![1, 2]))),
        (
            "[[1],[2,3]]",
            PromptValue::Many(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]),
        ),
        ("[]", PromptValue::Empty),
        (
            "[[]]",
            PromptValue::Invalid("[0]".into(), IdError::EmptyList),
        ),
        (
            "[-1]",
            PromptValue::Invalid("[0]".into(), IdError::Negative),
        ),
        (
            "[[1,-2]]",
            PromptValue::Invalid("[0][1]".into(), IdError::Negative),
        ),
        (
            "[1,4294967296]",
            PromptValue::Invalid("[1]".into(), IdError::TooLarge),
        ),
        (
            "[1e300]",
            PromptValue::Invalid("[0]".into(), IdError::TooLarge),
        ),
        ("[1.5]", PromptValue::Invalid("[0]".into(), IdError::Type)),
        (
            "[1,\"a\"]",
            PromptValue::Invalid("[1]".into(), IdError::Mixed),
        ),
        (
            "[\"a\",1]",
            PromptValue::Invalid("[1]".into(), IdError::Mixed),
        ),
        (
            "[[[1]]]",
            PromptValue::Invalid("[0][0]".into(), IdError::Type),
        ),
        ("[true]", PromptValue::Invalid("[0]".into(), IdError::Type)),
        ("{}", PromptValue::Invalid("".into(), IdError::Type)),
        ("5", PromptValue::Invalid("".into(), IdError::Type)),
    ] {
        let body = read(&format!("{{\"prompt\":{json}}}")).unwrap();
        assert_eq!(body.prompt, Some(expected), "{json}");
    }
}
