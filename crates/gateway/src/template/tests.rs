use super::*;

pub(super) fn clock() -> Clock {
    let day = chrono::NaiveDate::from_ymd_opt(2024, 7, 6).unwrap();
    Arc::new(move || day.and_hms_opt(5, 4, 3).unwrap())
}

fn files(source: &str) -> TextFiles {
    TextFiles {
        chat_templates: vec![("default".into(), source.into())],
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        ..TextFiles::default()
    }
}

fn load(source: &str) -> Result<ChatTemplate, TextError> {
    ChatTemplate::new(&files(source), None, clock()).map(|t| t.expect("there is a template"))
}

fn user(content: &str) -> Conversation {
    Conversation {
        messages: vec![json!({"role": "user", "content": content})],
        ..Conversation::default()
    }
}

/// Renders an expression over the variable `x`; the first branch satisfies the trial at load.
fn expression(text: &str, x: Value) -> Result<String, RenderError> {
    let source = format!(
        "{{% if x is not defined %}}{{{{ messages[-1].content }}}}{{% else %}}{{{{ {text} }}}}{{% endif %}}"
    );
    let mut conversation = user("c");
    conversation.kwargs.insert("x".into(), x);
    load(&source).unwrap().render(&conversation)
}

const CHATML: &str = "{% for m in messages %}\n    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n{%- endfor %}\n{% if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n{%- endif %}";

#[test]
fn blocks_leave_no_lines_behind() {
    let template = load(CHATML).unwrap();
    assert_eq!(
        template.render(&user("hi")).unwrap(),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn variables_reach_the_template() {
    let template = load("{{ bos_token }}{{ messages[-1].content }}{{ tools is none }}{{ pad_token is defined }}{{ mood }}").unwrap();
    let mut conversation = user("c");
    conversation.kwargs.insert("mood".into(), json!("calm"));
    assert_eq!(template.render(&conversation).unwrap(), "<s>cTrueFalsecalm");
}

#[test]
fn tests_of_values_are_those_of_python() {
    for (value, iterable, sequence) in [
        (Value::Null, "False", "False"),
        (json!(1), "False", "False"),
        (json!(true), "False", "False"),
        (json!("text"), "True", "True"),
        (json!([]), "True", "True"),
        (json!({"a": 1}), "True", "True"),
    ] {
        let found = |test: &str| expression(&format!("x is {test}"), value.clone());
        assert_eq!(found("iterable").as_deref(), Ok(iterable), "{value}");
        assert_eq!(found("sequence").as_deref(), Ok(sequence), "{value}");
    }
}

#[test]
fn tojson_is_that_of_python() {
    let value = json!({"b": "<é&'>", "a": [1, 2.5, null, true], "e": {}, "f": []});
    for (call, expected) in [
        (
            "x | tojson",
            r#"{"b": "<é&'>", "a": [1, 2.5, null, true], "e": {}, "f": []}"#,
        ),
        (
            "x | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':'))",
            r#"{"a":[1,2.5,null,true],"b":"<\u00e9&'>","e":{},"f":[]}"#,
        ),
        (
            "x.a | tojson(indent=2)",
            "[\n  1,\n  2.5,\n  null,\n  true\n]",
        ),
        (
            "{'a': {'b': 1}} | tojson(indent=4)",
            "{\n    \"a\": {\n        \"b\": 1\n    }\n}",
        ),
    ] {
        assert_eq!(expression(call, value.clone()).unwrap(), expected, "{call}");
    }
}

#[test]
fn methods_of_python_strings() {
    for (call, expected) in [
        ("x.removeprefix('a-')", "b-c"),
        ("x.removesuffix('-c')", "a-b"),
        ("x.partition('-')[2]", "b-c"),
        ("x.rsplit('-', 1)[0]", "a-b"),
        ("x.split('-')[-1]", "c"),
        ("'-7'.zfill(4)", "-007"),
        ("strftime_now('%d %b %Y')", "06 Jul 2024"),
        ("x.upper().startswith('A')", "True"),
    ] {
        assert_eq!(
            expression(call, json!("a-b-c")).unwrap(),
            expected,
            "{call}"
        );
    }
}

#[test]
fn generation_tags_are_removed() {
    let source = "{{ messages[-1].content }}\n  {%- generation -%}\n  x{% endgeneration %}\ny";
    assert_eq!(load(source).unwrap().render(&user("c")).unwrap(), "cxy");
}

#[test]
fn a_template_refuses_with_its_own_words() {
    let source = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}{{ messages[-1].content }}";
    let mut conversation = user("c");
    conversation.messages[0]["role"] = json!("system");
    assert_eq!(
        load(source).unwrap().render(&conversation),
        Err(RenderError::Refused("roles must alternate".into()))
    );
}

#[test]
fn broken_templates_fail_at_load() {
    for source in [
        "{% for %}",
        "{{ messages[-1].content ",
        "{{ nothing.at.all }}",
        "{{ messages[-1].content | no_such_filter }}",
        "fixed text",
        "{% include 'other' %}",
        &format!("{}c", "{% if true %}".repeat(6000)),
        &format!("{{{{ {}c }}}}", "(".repeat(6000)),
    ] {
        assert!(
            matches!(load(source), Err(TextError::Template(_))),
            "{}",
            &source[..source.len().min(60)]
        );
    }
}

#[test]
fn hostile_templates_hit_a_bound() {
    for text in [
        "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ range(1000000000000) | list | length }}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{{ 'x' * 100000000 }}",
        "{% for i in range(9000) %}{{ 'x' * 1000 }}{% endfor %}",
    ] {
        let source =
            format!("{{{{ messages[-1].content }}}}{{% if go is defined %}}{text}{{% endif %}}");
        let mut conversation = user("c");
        conversation.kwargs.insert("go".into(), json!(true));
        let result = load(&source).unwrap().render(&conversation);
        assert!(result.is_err(), "{text}: {} bytes", result.unwrap().len());
    }
}

#[test]
fn tool_arguments_are_objects_or_else_texts() {
    let mut conversation = user("c");
    conversation.messages.insert(
        0,
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"type": "function", "function": {"name": "g", "arguments": "not JSON"}},
        ]}),
    );
    conversation.parsed = with_parsed_arguments(&conversation.messages);
    let calls = |body: &str| {
        format!(
            "{{% for m in messages %}}{{% for t in m.tool_calls or [] %}}{body};{{% endfor %}}{{% endfor %}}{{{{ messages[-1].content }}}}"
        )
    };
    let object = load(&calls("{{ t.function.arguments | tojson }}")).unwrap();
    assert_eq!(
        object.render(&conversation).unwrap(),
        "{\"a\": 1};\"not JSON\";c"
    );
    let text = load(&calls("{{ 'x' + t.function.arguments }}")).unwrap();
    assert_eq!(
        text.render(&conversation).unwrap(),
        "x{\"a\": 1};xnot JSON;c"
    );
}

#[test]
fn the_tool_template_is_taken_for_tools() {
    let mut files = files("{{ messages[-1].content }}");
    files.chat_templates.push((
        "tool_use".into(),
        "{{ messages[-1].content }}{{ tools | length }}".into(),
    ));
    let template = ChatTemplate::new(&files, None, clock()).unwrap().unwrap();
    let mut conversation = user("c");
    assert_eq!(template.render(&conversation).unwrap(), "c");
    conversation.tools = Some(json!([{}, {}]));
    assert_eq!(template.render(&conversation).unwrap(), "c2");
    let own = ChatTemplate::new(&files, Some("own {{ messages[-1].content }}"), clock());
    assert_eq!(
        own.unwrap().unwrap().render(&conversation).unwrap(),
        "own c"
    );
}

/// A prompt format's text for messages written `role: content`, `/` apart.
fn prompt(name: &str, messages: &str) -> Result<String, RenderError> {
    let found = model::Prompt::all().iter().find(|p| p.name == name);
    let template = load(found.expect(name).template).unwrap();
    let turns = messages.split('/').map(|turn| {
        let (role, content) = turn.split_once(": ").expect("a role and its content");
        json!({"role": role, "content": content})
    });
    template.render(&Conversation {
        messages: turns.collect(),
        ..Conversation::default()
    })
}

#[test]
fn prompt_formats_of_models_without_template() {
    const TASK: &str = "Below is an instruction that describes a task. Write a response that \
        appropriately completes the request.\n\n";
    for (name, messages, expected) in [
        (
            "Dolly",
            "user: hi",
            format!("{TASK}### Instruction:\nhi\n\n### Response:\n"),
        ),
        (
            "Dolly",
            "system: be brief/user: a/assistant: b/user:  c\n",
            format!(
                "{TASK}### Instruction:\nbe brief\n\na\n\n### Response:\nb\n\n### End\n\n\
                 ### Instruction:\n c\n\n\n### Response:\n"
            ),
        ),
        (
            "OpenAssistant",
            "user: hi",
            "<|prompter|>hi</s><|assistant|>".to_owned(),
        ),
        (
            "OpenAssistant",
            "system: s/user: a/assistant: b/user: c",
            "<|system|>s</s><|prompter|>a</s><|assistant|>b</s><|prompter|>c</s><|assistant|>"
                .to_owned(),
        ),
        (
            "StableLM tuned alpha",
            "system: s\n/user: a/assistant: b/user: c",
            "<|SYSTEM|>s\n<|USER|>a<|ASSISTANT|>b<|USER|>c<|ASSISTANT|>".to_owned(),
        ),
    ] {
        assert_eq!(prompt(name, messages).as_ref(), Ok(&expected), "{name}");
    }
    let own = prompt("StableLM tuned alpha", "user: hi").unwrap();
    assert!(own.starts_with("<|SYSTEM|># StableLM Tuned (Alpha version)\n- StableLM is"));
    assert!(own.ends_with("harm a human.\n<|USER|>hi<|ASSISTANT|>"));
    assert_eq!(own.lines().count(), 6);
    for format in model::Prompt::all() {
        let refused = prompt(format.name, "user: a/tool: b").expect_err(format.name);
        let expected = "this model knows system, user and assistant messages";
        assert_eq!(refused, RenderError::Refused(expected.into()));
    }
}

#[test]
fn the_operators_template_wins_over_a_prompt_format() {
    let files = files(model::Prompt::all()[0].template);
    let own = ChatTemplate::new(&files, Some("own {{ messages[-1].content }}"), clock());
    let own = own.unwrap().expect("there is a template");
    assert_eq!(own.render(&user("c")).unwrap(), "own c");
}
