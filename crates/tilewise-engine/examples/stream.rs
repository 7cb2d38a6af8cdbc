//! A text that is printed as it comes, until a stop string.
#![allow(clippy::print_stdout)]

use std::path::Path;

use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::TextStream;
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget, Result};

/// Any folder of a dense Qwen3 model does.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

/// The next function.
const STOP: &str = "\n    def ";

fn main() -> Result<()> {
    let source = ModelSource::Folder(Path::new(MODEL).to_owned());
    let tokenizer = source.tokenizer()?;
    let config = EngineConfig { kv: KvBudget::Tokens(512), max_running: 1, ..EngineConfig::default() };
    let mut engine =
        Engine::new(tilewise::open("cpu", None)?, &source, &config, &mut tilewise_engine::model::unwatched)?;

    let name = engine.submit(GenerateRequest::new(tokenizer.encode("def add(a, b):", true)?, 60))?;
    // A piece is held back as long as it may begin a stop string or end in half a character.
    let mut stream = TextStream::new(vec![STOP.to_owned()]);
    let (mut text, mut stop) = (String::new(), None);
    while engine.has_work() && stop.is_none() {
        for event in engine.step()? {
            let Event::Token { id, .. } = event else { continue };
            let piece = stream.push(&tokenizer, id)?;
            print!("{}", piece.text);
            text.push_str(&piece.text);
            stop = stop.or(piece.stop);
        }
    }
    engine.abort(name);
    assert_eq!(stop.as_deref(), Some(STOP));
    assert!(!text.contains(STOP));
    println!("\n{} characters before the stop string", text.chars().count());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
