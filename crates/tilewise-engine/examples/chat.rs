//! A turn of a chat: the model's own template makes the prompt, its end token ends the answer.
#![allow(clippy::print_stdout)]

use std::path::Path;

use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::ChatMessage;
use tilewise_engine::{Engine, EngineConfig, Event, FinishReason, GenerateRequest, KvBudget, Result};

/// Any folder of a dense Qwen3 model does.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

fn main() -> Result<()> {
    let source = ModelSource::Folder(Path::new(MODEL).to_owned());
    let tokenizer = source.tokenizer()?;
    let config = EngineConfig { kv: KvBudget::Tokens(512), max_running: 1, ..EngineConfig::default() };
    let mut engine =
        Engine::new(tilewise::open("cpu", None)?, &source, &config, &mut tilewise_engine::model::unwatched)?;

    let content = "Write a function that reverses a list.".to_owned();
    let messages = [ChatMessage { role: "user".to_owned(), content }];
    let prompt = tokenizer.chat_template()?.apply(&messages, true)?;
    // The template wrote the special tokens already.
    engine.submit(GenerateRequest::new(tokenizer.encode(&prompt, false)?, 200))?;
    let (mut tokens, mut ended) = (Vec::new(), None);
    while engine.has_work() {
        for event in engine.step()? {
            match event {
                Event::Token { id, .. } => tokens.push(id),
                Event::Finished { reason, .. } => ended = Some(reason),
                _ => {}
            }
        }
    }
    assert_eq!(ended.as_ref().map(FinishReason::name), Some("stop"));
    println!("{}", tokenizer.decode(&tokens)?);
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
