//! Tokens that only `tokenizer_config.json` lists.

use serde_json::Value;
use tokenizers::AddedToken;

/// Adds the tokens of `added_tokens_decoder` that `tokenizer.json` lacks, as transformers does. A token that would get
/// another id than is listed is left out and said in `notes`.
pub(super) fn add_listed(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    file: &str,
    notes: &mut Vec<String>,
) -> tokenizers::Result<()> {
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let token = |(id, token): (&String, &Value)| Some((id.parse::<u32>().ok()?, read(token)?));
    let mut listed: Vec<(u32, AddedToken)> = listed.into_iter().flatten().filter_map(token).collect();
    listed.sort_by_key(|&(id, _)| id);
    let added = inner.get_added_tokens_decoder();
    let vocabulary = u32::try_from(inner.get_vocab_size(false))?;
    let mut next = added.keys().max().map_or(vocabulary, |last| vocabulary.max(last.saturating_add(1)));
    for (id, token) in listed {
        if added.get(&id).is_some_and(|known| known.content == token.content) {
            continue;
        }
        let known = inner.token_to_id(&token.content);
        if known.unwrap_or(next) != id {
            let why = known.map_or_else(|| "leaves a gap".to_owned(), |known| format!("has the id {known}"));
            notes.push(format!("{file}: the token {} with the id {id} is ignored: it {why}", token.content));
            continue;
        }
        if known.is_none() {
            next += 1;
        }
        if token.special {
            inner.add_special_tokens([token])?
        } else {
            inner.add_tokens([token])?
        };
    }
    Ok(())
}

fn read(token: &Value) -> Option<AddedToken> {
    let flag = |key| token.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: token.get("content")?.as_str().filter(|content| !content.is_empty())?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
