//! Tokens to text and conversations to prompts.

use serde_json::{Value, json};
use tilewise_engine::tokenizer::{ChatMessage, Detokenizer, StopStrings, TextStream, Tokenizer};

/// A byte-level tokenizer without merges: token `b` is byte `b`, 256 is special.
fn byte_tokenizer(config: Option<&Value>) -> tilewise_engine::Result<Tokenizer> {
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
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [end], "pre_tokenizer": bytes, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "dropout": null, "unk_token": null }
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), config.map(ToString::to_string).as_deref(), None)
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
fn a_list_of_templates_gives_its_default_and_a_model_without_one_says_so() {
    let (tools, default) =
        (json!({ "name": "tools", "template": "t" }), json!({ "name": "default", "template": "d" }));
    let list = json!({ "chat_template": [tools, default] });
    let tokenizer = byte_tokenizer(Some(&list)).unwrap();
    assert_eq!(tokenizer.chat_template().unwrap().apply(&[user("x")], false).unwrap(), "d");
    let none = byte_tokenizer(Some(&json!({ "chat_template": null }))).unwrap();
    assert!(none.chat_template().err().unwrap().to_string().contains("the model has none"));
}

/// Where a text ends by the definition: at the first place at which a stop string is complete, before the longest.
fn naive_end<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
    let longest = |end: usize| {
        let complete = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
        complete.max_by_key(|stop| stop.len()).map(|stop| (end - stop.len(), stop.as_str()))
    };
    ends.into_iter().find_map(longest)
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
fn a_text_ends_before_its_first_stop_string_however_it_is_cut() {
    let tokenizer = byte_tokenizer(None).unwrap();
    let mut stopped = 0;
    for seed in 0..3000 {
        let mut random = Random(seed);
        let stops: Vec<String> = (0..random.below(4)).map(|_| random.text(4)).collect();
        let text = random.text(40);
        let want = naive_end(&text, &stops);
        let what = format!("seed {seed}: {text:?}, {stops:?}");

        // By bytes, which cut characters, as tokens.
        let mut stream = TextStream::new(stops.clone());
        let (mut shown, mut stop, mut read) = (String::new(), None, 0);
        for byte in text.bytes() {
            let piece = stream.push(&tokenizer, byte.into()).unwrap();
            shown.push_str(&piece.text);
            read += 1;
            if piece.stop.is_some() {
                stop = piece.stop;
                break;
            }
            let unseen = &text[shown.len()..read.max(shown.len()).min(text.floor_char_boundary(read))];
            assert!(
                unseen.is_empty() || stops.iter().any(|stop| stop.starts_with(unseen)),
                "{what}: {unseen:?} is held back for nothing"
            );
        }
        if stop.is_none() {
            shown.push_str(&stream.finish(&tokenizer).unwrap().text);
        }
        assert_eq!(shown, text[..want.map_or(text.len(), |end| end.0)], "{what}");
        assert_eq!(stop.as_deref(), want.map(|end| end.1), "{what}");
        if let Some((start, string)) = want {
            assert_eq!(
                read,
                start + string.len(),
                "{what}: it ends with the token that completes the string"
            );
        }

        // By pieces of any length.
        let mut strings = StopStrings::new(stops.clone());
        let (mut pieces, mut rest, mut end) = (String::new(), text.as_str(), None);
        while !rest.is_empty() && end.is_none() {
            let cut =
                rest.floor_char_boundary(1 + random.below(9)).max(rest.chars().next().unwrap().len_utf8());
            let (certain, stop) = strings.push(&rest[..cut]);
            pieces.push_str(&certain);
            (rest, end) = (&rest[cut..], stop);
        }
        pieces.push_str(&strings.finish());
        assert_eq!((pieces, end), (shown, stop), "{what}");
        stopped += usize::from(want.is_some());
    }
    assert!((500..2500).contains(&stopped), "{stopped} of 3000 texts were stopped");
}
