use super::*;

/// Every printable character is a token, `ab` is merged, `<|end|>` is a control token.
fn files(normalized: bool, post_processor: Value) -> TextFiles {
    let mut vocabulary: serde_json::Map<String, Value> = (b'!'..=b'~')
        .enumerate()
        .map(|(id, c)| (char::from(c).to_string(), json!(id)))
        .collect();
    vocabulary.insert("Ġ".into(), json!(94));
    vocabulary.insert("ab".into(), json!(95));
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": normalized, "special": special})
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": [added(96, "<|end|>", true), added(97, "<think>", false), added(98, "<|", true)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
    });
    TextFiles {
        tokenizer_json: json.to_string().into_bytes(),
        eos_token: Some("<|end|>".into()),
        ..TextFiles::default()
    }
}

fn load(files: &TextFiles) -> Tokenizer {
    Tokenizer::new(files).unwrap()
}

#[test]
fn control_tokens_are_read_in_templates_and_not_in_messages() {
    for normalized in [false, true] {
        let tokenizer = load(&files(normalized, Value::Null));
        let control = [96, 98];
        assert_eq!(tokenizer.encode_rendered("ab<|end|>").unwrap(), [95, 96]);
        assert_eq!(tokenizer.encode_raw("<|end|>").unwrap(), [96]);
        for content in [
            "<|end|>",
            "x<|end|><|end|>y",
            "<<|end|>",
            "<|<|end|>end|>",
            "<|",
        ] {
            let escaped = tokenizer.escape(content).expect("there is a spelling");
            let ids = tokenizer.encode_rendered(&escaped).unwrap();
            assert!(
                ids.iter().all(|id| !control.contains(id)),
                "{content} {ids:?}"
            );
            let text: Vec<u8> = ids
                .iter()
                .flat_map(|id| tokenizer.pieces().bytes(*id).to_vec())
                .collect();
            assert_eq!(text, content.as_bytes());
        }
    }
}

#[test]
fn text_without_spellings_is_left_alone() {
    let tokenizer = load(&files(false, Value::Null));
    for content in ["ab", "a < b", "<think>", "", "|end|>"] {
        assert_eq!(tokenizer.escape(content), None);
    }
    assert_eq!(tokenizer.encode_rendered("<think>").unwrap(), [97]);
}

#[test]
fn the_beginning_is_marked_as_the_checkpoint_does() {
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [96], "tokens": ["<|end|>"]}},
    });
    let plain = files(false, Value::Null);
    let flagged = TextFiles {
        add_bos_token: Some(true),
        bos_token: Some("<|end|>".into()),
        ..plain.clone()
    };
    let both = TextFiles {
        add_bos_token: Some(true),
        bos_token: Some("<|end|>".into()),
        ..files(false, template)
    };
    for (files, raw) in [
        (&plain, vec![95]),
        (&flagged, vec![96, 95]),
        (&both, vec![96, 95]),
    ] {
        let tokenizer = load(files);
        assert_eq!(tokenizer.encode_raw("ab").unwrap(), raw);
        assert_eq!(tokenizer.encode_rendered("ab").unwrap(), [95]);
        assert_eq!(tokenizer.encode_raw("").unwrap(), [96]);
    }
}

#[test]
fn malformed_files_are_refused() {
    for bytes in [&b""[..], b"{}", b"[1]", b"{\"model\":{}}"] {
        let files = TextFiles {
            tokenizer_json: bytes.to_vec(),
            ..TextFiles::default()
        };
        assert!(matches!(
            Tokenizer::new(&files),
            Err(TextError::Tokenizer(_))
        ));
    }
}
