//! `tilewise chat` through pipes: what a conversation is, and what ends an answer.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::{demo_with, path, piped, refusal, run, said, text};
use serde_json::{Value, json};

const ASKS: &str = "Write a function that reverses a list.";

/// A template that opens the reasoning unless it is told not to.
const THINKING: &str = "{% for message in messages %}{{ message.content }}{% endfor %}\
    {% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}";

/// The answers to some lines, as JSON.
#[track_caller]
fn answers(args: &[&str], lines: &str) -> Vec<Value> {
    let output = piped(&[&["chat", "--format", "json"], args].concat(), lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_line_is_a_turn_and_an_answer_runs_to_its_end_token() {
    let output = piped(&["chat"], &format!("{ASKS}\n\n"));
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), run(&["generate", "--chat", ASKS]));
    // The last line needs no line break.
    assert_eq!(piped(&["chat"], ASKS).stdout, output.stdout);
    assert_eq!(piped(&["chat"], "").stdout, b"");
    let answer = answers(&[], ASKS).remove(0);
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(format!("{}\n", answer["content"].as_str().unwrap()), text(&output.stdout));
}

#[test]
fn a_turn_follows_those_before_and_their_prefix_is_not_computed_again() {
    let system = "You write Python, and nothing else, in short functions with a docstring.";
    let args = ["--system", system, "--max-new-tokens", "40"];
    let answers = answers(&args, &format!("{ASKS}\nNow one that sorts it.\n/clear\n{ASKS}\n"));
    let count = |answer: &Value, field: &str| answer[field].as_u64().unwrap();
    let [first, second, cleared] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(first["cached_tokens"]["device"], 0);
    let before = count(first, "prompt_tokens") + count(first, "output_tokens");
    assert!(count(second, "prompt_tokens") > before, "{answers:?}");
    // All whole pages of 32 tokens.
    assert_eq!(second["cached_tokens"]["device"], (before - 1) / 32 * 32, "{answers:?}");
    for field in ["content", "prompt_tokens", "finish_reason"] {
        assert_eq!(cleared[field], first[field], "{answers:?}");
    }
}

#[test]
fn commands_are_no_turns() {
    let output =
        piped(&["chat", "--max-new-tokens", "4"], &format!("/help\n/fly\n/clear now\n/bye\n{ASKS}\n"));
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    for words in
        ["/help", "/clear", "/exit", "Ctrl-C", "there is no command /fly", "there is no command /clear now"]
    {
        assert!(stderr.contains(words), "{stderr}");
    }
}

#[test]
fn an_answer_that_is_cut_says_why_and_a_conversation_that_is_full_ends() {
    let short = piped(&["chat", "--max-new-tokens", "4"], ASKS);
    assert!(said(&short)[0].contains("--max-new-tokens is 4"), "{:?}", said(&short));
    let args = ["chat", "--kv-tokens", "32"];
    let cut = piped(&args, ASKS);
    assert_eq!((cut.status.code(), said(&cut).len()), (Some(0), 1));
    for words in ["context of 33 tokens is full", "/clear"] {
        assert!(said(&cut)[0].contains(words), "{:?}", said(&cut));
    }
    let full = piped(&args, &format!("{ASKS}\n{ASKS}\n"));
    assert_eq!((full.status.code(), &full.stdout), (Some(1), &cut.stdout));
    for words in ["--kv-tokens", "holds 33", "/clear"] {
        assert!(said(&full)[1].contains(words), "{:?}", said(&full));
    }
    // A new conversation has room.
    assert_eq!(answers(&args[1..], &format!("{ASKS}\n/clear\n{ASKS}\n")).len(), 2);
}

#[test]
fn thoughts_are_apart_and_only_a_terminal_shows_them() {
    let folder = demo_with(&[("chat_template.jinja", THINKING)]);
    let model = ["--model", path(folder.path()), "--max-new-tokens", "20"];
    // The model has never seen the tag that closes them.
    let thought = answers(&model, ASKS).remove(0);
    assert_eq!(thought["content"], "");
    assert!(!thought["reasoning"].as_str().unwrap().is_empty(), "{thought}");
    assert_eq!(answers(&[&model[..], &["--think"]].concat(), ASKS)[0], thought);
    assert_eq!(text(&piped(&[&["chat"], &model[..]].concat(), ASKS).stdout), "\n");
    let at_once = answers(&[&model[..], &["--no-think"]].concat(), ASKS).remove(0);
    assert_eq!(at_once["reasoning"], "");
    assert!(!at_once["content"].as_str().unwrap().is_empty(), "{at_once}");
}

#[test]
fn what_a_model_cannot_do_is_refused_before_it_is_loaded() {
    for flag in ["--think", "--no-think"] {
        refusal(&[flag], &piped(&["chat", flag], ASKS), 2, &[flag, "chat template"]);
    }
    let config = json!({ "eos_token": "<|endoftext|>" }).to_string();
    let folder = demo_with(&[("tokenizer_config.json", &config)]);
    let args = ["chat", "--model", path(folder.path())];
    refusal(&args, &piped(&args, ASKS), 1, &["chat template", "plain text"]);
}

/// Answers that hardly ever end by themselves.
const RANDOM: [&str; 2] = ["--temperature", "100"];

#[test]
#[cfg(unix)]
fn ctrl_c_stops_the_answer_and_the_conversation_goes_on() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .args(["chat"])
        .args(RANDOM)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    writeln!(stdin, "{ASKS}").unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    let interrupt = |id: u32| Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap();
    assert!(interrupt(child.id()).success());
    writeln!(stdin, "/clear\n{ASKS}").unwrap();
    drop(stdin);
    stdout.read_to_end(&mut Vec::new()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = said(&output);
    assert!(said[0].contains("the answer was stopped; the conversation goes on"), "{said:?}");
    assert!(said.len() <= 2, "{said:?}");
}
