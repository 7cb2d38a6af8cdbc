//! Tokens to text and conversations to prompts.

mod stop;

use serde_json::{Value, json};
use tilewise_engine::tokenizer::{ChatInput, ChatMessage, Detokenizer, Tokenizer, TokenizerFiles};

/// A byte-level tokenizer without merges: token `b` is byte `b`, 256 is special.
fn byte_tokenizer(config: Option<&Value>) -> tilewise_engine::Result<Tokenizer> {
    let config = config.map(ToString::to_string);
    Tokenizer::from_bytes(byte_tokenizer_json().to_string().as_bytes(), config.as_deref(), None)
}

/// Its `tokenizer.json`.
fn byte_tokenizer_json() -> Value {
    let mut extra = 0;
    let vocab: serde_json::Map<String, Value> = (0..=255u8)
        .map(|byte| {
            // Bytes that print stand for themselves, the others for letters from U+0100 on (GPT-2's table).
            let letter = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
                _ => {
                    extra += 1;
                    char::from_u32(0xff + extra).unwrap()
                }
            };
            (letter.to_string(), json!(byte))
        })
        .collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    let end = json!({
        "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [end], "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "dropout": null, "unk_token": null }
    })
}

/// The pieces that tokens come out as, the last one from the end of the text.
fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::default();
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(tokenizer, id).unwrap()).collect();
    pieces.push(detokenizer.finish(tokenizer).unwrap());
    pieces
}

#[test]
fn text_and_tokens_round_trip() {
    let tokenizer = byte_tokenizer(None).unwrap();
    for text in ["", "plain", "  spaces \n\ttabs", "naïve 日本語 🦀 e\u{301}", "\u{0}"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("a<|end|>b", true).unwrap(), [97, 256, 98]);
    assert_eq!(tokenizer.vocab_size(), 257);
}

#[test]
fn no_piece_splits_a_character() {
    let tokenizer = byte_tokenizer(None).unwrap();
    for text in ["日本語 text", "🦀🦀", "a é b ü c", "e\u{301}\u{301}", "🏳️‍🌈!", "ends in 🦀"]
    {
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let pieces = pieces(&tokenizer, &ids);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert!(
            pieces.iter().filter(|piece| !piece.is_empty()).count() >= text.chars().count() / 2,
            "{pieces:?}"
        );
    }
}

#[test]
fn bytes_that_are_no_text_come_out_as_the_whole_decodes() {
    let tokenizer = byte_tokenizer(None).unwrap();
    for ids in [
        vec![0xff, 97, 98],
        vec![97, 0xe6, 0x97, 98, 99],
        vec![0xe6, 0xe6, 0xe6, 0x97, 0xa5],
        vec![97, 0xf0, 0x9f, 0xa6],
        vec![0x80, 0x80, 0x80],
        vec![97, 0xef, 0xbf, 0xbd, 98],
    ] {
        assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap(), "{ids:x?}");
    }
}

#[test]
fn a_cut_character_is_given_out_at_the_end_only() {
    let tokenizer = byte_tokenizer(None).unwrap();
    assert_eq!(pieces(&tokenizer, &[97, 0xf0, 0x9f, 0xa6]), ["a", "", "", "", "\u{fffd}"]);
}

#[test]
fn special_tokens_are_not_text() {
    let tokenizer = byte_tokenizer(None).unwrap();
    assert_eq!(pieces(&tokenizer, &[97, 256, 98, 256]), ["a", "", "b", "", ""]);
}

#[test]
fn a_broken_tokenizer_is_an_error_that_names_the_file() {
    for json in ["", "{", "[]", r#"{"model": {"type": "Nothing"}}"#] {
        let error = Tokenizer::from_bytes(json.as_bytes(), None, None).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    let error = byte_tokenizer(Some(&json!("{"))).err();
    assert!(error.is_none(), "a configuration that is a string has no template");
}

fn user(content: &str) -> ChatMessage {
    ChatMessage { role: "user".to_owned(), content: content.to_owned() }
}

/// The text that a template makes of messages.
fn apply(template: &str, messages: &[ChatMessage]) -> tilewise_engine::Result<String> {
    let config = json!({ "chat_template": template, "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    byte_tokenizer(Some(&config))?.chat_template()?.apply(messages, true)
}

#[test]
fn a_chatml_template_is_rendered_as_transformers_does() {
    let template = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' }}\n    \
                    {{- message['content'] + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n\
                    {%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
    let text = apply(template, &[user("Hi <there> & \"you\""), user("b")]).unwrap();
    let want = "<|im_start|>user\nHi <there> & \"you\"<|im_end|>\n<|im_start|>user\nb<|im_end|>\n\
                <|im_start|>assistant\n";
    assert_eq!(text, want);
}

#[test]
fn templates_have_pythons_methods_special_tokens_and_json() {
    let message = [user(" Hello ")];
    let check =
        |template: &str, want: &str| assert_eq!(apply(template, &message).unwrap(), want, "{template}");
    check("{{ bos_token }}{{ eos_token }}", "<s></s>");
    check("{{ messages[0].content.strip().upper() }}", "HELLO");
    check("{{ messages[0].content.startswith(' H') }}", "True");
    check("{{ {'a': [1, '<é>'], 'b': none} | tojson }}", "{\"a\": [1, \"<é>\"], \"b\": null}");
    check("{{ {'b': 1, 'a': []} | tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": []\n}");
    check("{% if true %}\n  x\n  {% endif %}\ny", "  x\ny");
    check(
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ messages | length }}",
        "1",
    );
    check(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "1",
    );
    check("{{ messages[::-1][0].role }}", "user");
    check("{{ missing is defined }}", "False");
}

#[test]
fn a_template_that_complains_loops_or_cannot_be_parsed_is_an_error() {
    let error = |template: &str| apply(template, &[user("x")]).unwrap_err().to_string();
    assert!(error("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(
        error("{% for x in range(100000) %}{% for y in range(100000) %}a{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    assert!(error("{% if %}").starts_with("chat template"));
    assert!(error("{{ messages.x.y.z }}").starts_with("chat template"));
    assert!(error("{{ open('/etc/passwd') }}").starts_with("chat template"));
    assert!(error("{% include '/etc/passwd' %}").starts_with("chat template"));
}

#[test]
fn a_template_that_makes_endless_text_is_an_error_before_memory_is_full() {
    let long = "{% set s = 'x' * 50000000 %}";
    let bombs = [
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% for i in range(1000) %}{{ 'x' * 10000000 }}{% endfor %}",
        "{% for i in range(1000) %}{% set s = 'x' * 10000000 %}{% endfor %}",
        "{{ ([0] * 100000000) | tojson }}",
        "{{ ([0] * 100000000) | list | length }}",
        &format!("{long}{{{{ s.replace('x', s) }}}}"),
        &format!("{long}{{{{ s.join('x' * 1000000) }}}}"),
        &format!("{long}{{{{ s.join(range(100000)) }}}}"),
        &format!("{long}{{{{ ('{{0}}' * 1000).format(s) }}}}"),
        "{{ '{:1000000000000}'.format('x') }}",
        "{{ ('{}' * 100000).format([0] * 100000000) }}",
        "{{ 'x' | indent(1000000000000, true) }}",
        "{{ '%1000000000000d' | format(1) }}",
    ];
    for bomb in bombs {
        let error = apply(bomb, &[user("x")]).unwrap_err().to_string();
        assert!(error.starts_with("chat template: "), "{bomb}: {error}");
        assert!(error.len() < 400, "{bomb}: {} bytes of error", error.len());
    }
}

#[test]
fn templates_have_tools_and_documents_as_none_and_the_time() {
    let message = [user("hi")];
    let render = |template: &str| apply(template, &message).unwrap();
    assert_eq!(
        render("{{ tools is none }} {{ documents is none }} {{ tools is defined }}"),
        "True True True"
    );
    assert_eq!(render("{% if tools is not none %}TOOLS{% endif %}x"), "x");
    let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!((2024..3000).contains(&year), "{year}");
    assert!(render("{{ strftime_now('%d %B %Y, %-d') }}").len() > 10);
    let error = apply("{{ strftime_now('%!') }}", &message).unwrap_err().to_string();
    assert!(error.contains("strftime_now"), "{error}");
}

#[test]
fn generation_tags_write_nothing_and_trim_white_space_as_they_say() {
    let message = [user("hi")];
    for (template, want) in [
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "hi"),
        ("a {%- generation -%} {{ messages[0].content }} {%- endgeneration -%} b", "ahib"),
        ("a {%generation%} b {%endgeneration%}", "a  b "),
        ("{# {% generation %} #}x{{ 'generation' }}", "xgeneration"),
        ("{% generation %}\n  x{% endgeneration %}\ny", "  xy"),
    ] {
        assert_eq!(apply(template, &message).unwrap(), want, "{template}");
    }
}

/// A tokenizer with a template in each of these places.
fn with_templates(
    config: impl std::borrow::Borrow<Value>,
    jinja: Option<&str>,
    json: Option<&str>,
) -> Tokenizer {
    Tokenizer::from_files(&TokenizerFiles {
        tokenizer: byte_tokenizer_json().to_string().as_bytes(),
        config: Some(&config.borrow().to_string()),
        template: jinja,
        template_json: json,
        ..TokenizerFiles::default()
    })
    .unwrap()
}

#[test]
fn a_template_is_found_in_every_place_that_transformers_knows() {
    let config = || json!({ "chat_template": "config" });
    let json = r#"{"chat_template": "json"}"#;
    let render = |tokenizer: &Tokenizer, tools: Option<Value>| {
        let input = ChatInput { messages: json!([]), tools, ..ChatInput::default() };
        tokenizer.chat_template().unwrap().render(&input).unwrap()
    };
    assert_eq!(render(&with_templates(config(), Some("jinja"), Some(json)), None), "jinja");
    assert_eq!(render(&with_templates(config(), None, Some(json)), None), "json");
    assert_eq!(render(&with_templates(config(), None, None), None), "config");
    assert_eq!(render(&with_templates(json!({}), Some("\u{feff}jinja"), None), None), "jinja");

    for several in [
        json!({ "default": "d", "tool_use": "t" }),
        json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]),
    ] {
        let tokenizer = with_templates(json!({ "chat_template": several }), None, None);
        assert_eq!(render(&tokenizer, None), "d");
        assert_eq!(render(&tokenizer, Some(json!([{ "name": "f" }]))), "t");
    }
    let only = json!({ "chat_template": [{ "name": "rag", "template": "r" }] });
    assert_eq!(render(&with_templates(only, None, None), None), "r");
}

#[test]
fn a_broken_template_refuses_chats_and_not_plain_prompts() {
    let two = json!([{ "name": "rag", "template": "r" }, { "name": "tool_use", "template": "t" }]);
    let tokenizers = [
        (with_templates(json!({}), Some("{% if %}"), None), "line 1"),
        (with_templates(json!({ "chat_template": two }), None, None), "rag, tool_use"),
        (with_templates(json!({ "chat_template": 7 }), None, None), "chat_template"),
        (with_templates(json!({ "chat_template": [{ "name": "x" }] }), None, None), "chat_template"),
        (with_templates(json!({}), None, Some("{")), "chat_template.json"),
    ];
    for (tokenizer, words) in tokenizers {
        assert_eq!(tokenizer.encode("ab", true).unwrap(), [97, 98]);
        let error = tokenizer.chat_template().err().unwrap().to_string();
        assert!(error.starts_with("chat template: ") && error.contains(words), "{error}");
        assert_eq!(tokenizer.template_error().map(|why| error.ends_with(why)), Some(true));
    }
}

#[test]
fn special_tokens_of_the_map_are_those_of_templates_too() {
    let template = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}";
    let config = json!({ "bos_token": null, "eos_token": { "content": "</s>" }, "chat_template": template });
    let map = json!({ "bos_token": "<s>", "eos_token": "other", "unk_token": { "content": "<unk>" } });
    let tokenizer = Tokenizer::from_files(&TokenizerFiles {
        tokenizer: byte_tokenizer_json().to_string().as_bytes(),
        config: Some(&config.to_string()),
        special_tokens: Some(&map.to_string()),
        ..TokenizerFiles::default()
    })
    .unwrap();
    assert_eq!(tokenizer.chat_template().unwrap().apply(&[], false).unwrap(), "<s>|</s>|<unk>");
}

#[test]
fn tokens_that_only_the_configuration_lists_are_tokens() {
    let token = |content: &str, special: bool| json!({ "content": content, "special": special });
    let listed = json!({
        "256": token("<|end|>", true), "257": token("<|call|>", true), "258": token("<tool>", false),
        "300": token("<gap>", true), "97": token("a", false)
    });
    let tokenizer = byte_tokenizer(Some(&json!({ "added_tokens_decoder": listed }))).unwrap();
    assert_eq!(tokenizer.encode("x<|call|><tool><|end|>", true).unwrap(), [120, 257, 258, 256]);
    assert_eq!(tokenizer.decode(&[120, 257, 258]).unwrap(), "x<tool>", "special ones are no text");
    let [note] = tokenizer.notes() else { panic!("{:?}", tokenizer.notes()) };
    assert!(note.contains("<gap>") && note.contains("300"), "{note}");
}

#[test]
fn truncation_and_padding_in_tokenizer_json_change_no_prompt() {
    let text = "a prompt that is longer than eight tokens";
    let want = byte_tokenizer(None).unwrap().encode(text, true).unwrap();
    let mut json = byte_tokenizer_json();
    json["truncation"] =
        json!({ "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = json!({
        "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!"
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap();
    assert_eq!(tokenizer.encode(text, true).unwrap(), want);
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [97, 98]);
}

#[test]
fn a_panic_in_the_tokenizers_crate_is_an_error_that_names_the_file() {
    // Each contradicts itself in another way; some make the crate panic, and none may end the program.
    let changes: [(&str, Value); 5] = [
        ("/added_tokens/0/id", json!(4_294_967_295u32)),
        ("/model/vocab/a", json!(4_294_967_295u32)),
        ("/model/merges", json!([["a", "b"]])),
        (
            "/pre_tokenizer",
            json!({ "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false }),
        ),
        ("/normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "////" })),
    ];
    for (place, value) in changes {
        let mut json = byte_tokenizer_json();
        *json.pointer_mut(place).unwrap() = value;
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None, None);
        match tokenizer.and_then(|tokenizer| tokenizer.encode("a<|end|>b", true)) {
            Ok(ids) => assert!(ids.len() <= 3, "{place}: {ids:?}"),
            Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{place}: {error}"),
        }
    }
}

/// A tokenizer as Llama's: words with `▁`, and bytes `<0x..>` for all other characters. `▁a` is 256, `b` 257.
fn fallback_tokenizer() -> Tokenizer {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), json!(byte))).collect();
    vocab.insert("▁a".to_owned(), json!(256));
    vocab.insert("b".to_owned(), json!(257));
    let decoder = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
        { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
    ] });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": null, "decoder": decoder,
        "model": {
            "type": "BPE", "vocab": vocab, "merges": [], "dropout": null, "unk_token": null, "byte_fallback": true
        }
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap()
}

#[test]
fn text_of_byte_tokens_is_never_taken_back() {
    let tokenizer = fallback_tokenizer();
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    assert_eq!(pieces(&tokenizer, &bytes("é日")), ["", "é", "", "", "日", ""]);
    // A byte that begins no character, after one that is out.
    assert_eq!(pieces(&tokenizer, &[0xc3, 0xa9, 0xff, 256, 257]), ["", "é", "\u{fffd}", " a", "b", ""]);
    // A character that is cut short by a word, by another character and by the end.
    assert_eq!(pieces(&tokenizer, &[256, 0xe6, 0x97, 257]), ["a", "", "", "\u{fffd}\u{fffd}b", ""]);
    assert_eq!(pieces(&tokenizer, &[0xe6, 0xc3, 0xa9]), ["", "\u{fffd}", "é", ""]);
    assert_eq!(pieces(&tokenizer, &[257, 0xf0, 0x9f]), ["b", "", "", "\u{fffd}\u{fffd}"]);
}

#[test]
fn byte_tokens_that_are_text_come_out_as_the_whole_decodes() {
    let tokenizer = fallback_tokenizer();
    for seed in 0..500 {
        let mut random = Random(seed);
        let mut ids = Vec::new();
        for _ in 0..random.below(12) {
            match random.below(3) {
                0 => ids.push(256),
                1 => ids.push(257),
                _ => ids.extend(["é", "日", "🦀"][random.below(3)].bytes().map(u32::from)),
            }
        }
        let pieces = pieces(&tokenizer, &ids);
        assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap(), "{ids:?}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{ids:?}: {pieces:?}");
    }
}

#[test]
fn a_list_of_templates_gives_its_default_and_a_model_without_one_says_so() {
    let (tools, default) =
        (json!({ "name": "tools", "template": "t" }), json!({ "name": "default", "template": "d" }));
    let list = json!({ "chat_template": [tools, default] });
    let tokenizer = byte_tokenizer(Some(&list)).unwrap();
    assert_eq!(tokenizer.chat_template().unwrap().apply(&[user("x")], false).unwrap(), "d");
    let none = byte_tokenizer(Some(&json!({ "chat_template": null }))).unwrap();
    assert!(none.chat_template().err().unwrap().to_string().contains("the model has none"));
}

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    /// A text of letters that repeat often, some of several bytes.
    fn text(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| ['a', 'b', 'é', '語'][self.below(4)]).collect()
    }
}

#[test]
fn a_tag_that_is_none_is_text_and_no_panic() {
    for (template, text) in [("{# {%} #}{{ messages[0].content }}", "a"), ("{{ '{%}' }}", "{%}")] {
        assert_eq!(apply(template, &[user("a")]).unwrap(), text, "{template}");
    }
    assert!(apply("{%}", &[user("a")]).is_err());
}
