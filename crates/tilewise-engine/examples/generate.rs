//! Two prompts in one batch, each with the text that it has alone.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::path::Path;

use tilewise_engine::model::ModelSource;
use tilewise_engine::{Engine, EngineConfig, Event, GenerateRequest, KvBudget, RequestId, Result};

/// Any folder of a dense Qwen3 model does.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

/// Runs all that was submitted to its end: the tokens of each request.
fn run(engine: &mut Engine) -> Result<HashMap<RequestId, Vec<u32>>> {
    let mut tokens = HashMap::<_, Vec<u32>>::new();
    while engine.has_work() {
        for event in engine.step()? {
            if let Event::Token { request, id, .. } = event {
                tokens.entry(request).or_default().push(id);
            }
        }
    }
    Ok(tokens)
}

fn main() -> Result<()> {
    let source = ModelSource::Folder(Path::new(MODEL).to_owned());
    let tokenizer = source.tokenizer()?;
    let device = tilewise::open("cpu", None)?;
    let config = EngineConfig { kv: KvBudget::Tokens(1024), max_running: 2, ..EngineConfig::default() };
    let mut engine = Engine::new(device, &source, &config, &mut tilewise_engine::model::unwatched)?;

    let requests: Vec<GenerateRequest> = ["def fibonacci(n):", "class Stack:\n"]
        .into_iter()
        .map(|prompt| Ok(GenerateRequest::new(tokenizer.encode(prompt, true)?, 24)))
        .collect::<Result<_>>()?;
    let names = requests.iter().map(|request| engine.submit(request.clone())).collect::<Result<Vec<_>>>()?;
    let together = run(&mut engine)?;
    for (request, name) in requests.into_iter().zip(names) {
        let alone = engine.submit(request)?;
        assert_eq!(run(&mut engine)?[&alone], together[&name], "a text depends on its batch");
        println!("{}\n", tokenizer.decode(&together[&name])?);
    }
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
