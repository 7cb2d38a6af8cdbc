//! Text that obeys a JSON schema, whatever the model would rather write.
#![allow(clippy::print_stdout)]

use std::path::Path;

use serde_json::{Value, json};
use tilewise_engine::model::ModelSource;
use tilewise_engine::{
    Engine, EngineConfig, Event, GenerateRequest, Grammar, GrammarCompiler, KvBudget, Result,
};

/// Any folder of a dense Qwen3 model does.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

fn main() -> Result<()> {
    let source = ModelSource::Folder(Path::new(MODEL).to_owned());
    let tokenizer = source.tokenizer()?;
    let config = EngineConfig { kv: KvBudget::Tokens(512), max_running: 1, ..EngineConfig::default() };
    let mut engine =
        Engine::new(tilewise::open("cpu", None)?, &source, &config, &mut tilewise_engine::model::unwatched)?;

    let schema = json!({
        "type": "object",
        "properties": {
            "kind": { "enum": ["function", "class"] },
            "lines": { "type": "integer", "minimum": 1, "maximum": 99 },
        },
        "required": ["kind", "lines"],
        "additionalProperties": false,
        // Fixed separators: a schema alone would let the model write spaces for ever.
        "x-guidance": { "whitespace_flexible": false },
    });
    let mut request = GenerateRequest::new(tokenizer.encode("# What follows, as JSON: ", true)?, 100);
    request.grammar = Some(GrammarCompiler::new(&source).compile(&Grammar::JsonSchema(schema))?);
    engine.submit(request)?;
    let mut tokens = Vec::new();
    while engine.has_work() {
        for event in engine.step()? {
            if let Event::Token { id, .. } = event {
                tokens.push(id);
            }
        }
    }
    let text = tokenizer.decode(&tokens)?;
    let value: Value = serde_json::from_str(&text).expect("the schema makes it JSON");
    assert!((1..=99).contains(&value["lines"].as_i64().expect("the schema makes it a number")));
    println!("{value}");
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
