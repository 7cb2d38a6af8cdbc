//! The text of chat templates, in the ways in which it is written down.

use serde_json::Value as Json;

use crate::{Error, Result};

/// The templates of a model.
pub(super) struct Sources {
    pub(super) default: String,
    /// For conversations with tools, where it is another.
    pub(super) with_tools: Option<String>,
}

impl Sources {
    /// Reads a `chat_template`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Template`] if it is of another shape, or none of several is named `default`.
    pub(super) fn read(chat_template: &Json) -> Result<Option<Self>> {
        let mut named = match chat_template {
            Json::Null => return Ok(None),
            Json::String(text) => vec![("default", text.as_str())],
            Json::Array(entries) => entries.iter().map(entry).collect::<Result<_>>()?,
            Json::Object(entries) => {
                let text = entries.iter().map(|(name, text)| Some((name.as_str(), text.as_str()?)));
                text.collect::<Option<_>>().ok_or_else(shape)?
            }
            _ => return Err(shape()),
        };
        if let [(name, _)] = &mut named[..] {
            // The only one there is serves, whatever its name.
            *name = "default";
        }
        let find =
            |wanted| named.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_owned());
        let Some(default) = find("default") else {
            let names = named.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            let why = format!("the model has {names} and none named default; give the prompt as plain text");
            return if named.is_empty() { Ok(None) } else { Err(Error::Template(why)) };
        };
        Ok(Some(Self { default, with_tools: find("tool_use") }))
    }
}

fn entry(entry: &Json) -> Result<(&str, &str)> {
    let text = |key| entry.get(key).and_then(Json::as_str).ok_or_else(shape);
    Ok((text("name")?, text("template")?))
}

fn shape() -> Error {
    let why = "chat_template must be a text, a list of objects with name and template, or an object of texts";
    Error::Template(why.to_owned())
}

/// A template without `{% generation %}` and its end: they mark for training what the assistant said, and write nothing.
/// White space around them is trimmed as they say.
pub(super) fn without_generation_tags(template: &str) -> String {
    let (mut plain, mut rest) = (String::with_capacity(template.len()), template);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        plain.push_str(before);
        // The end is behind the begin: `{%}` is neither.
        let Some(end) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(2 + end + 2);
        let sign = |c: char| matches!(c, '-' | '+');
        let inner = &tag[2..tag.len() - 2];
        let (left, right) = (inner.starts_with(sign), inner.len() > 1 && inner.ends_with(sign));
        let words = &inner[usize::from(left)..inner.len() - usize::from(right)];
        let spoken = match words.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match spoken {
            Some(spoken) => {
                let (left, right) = (&inner[..usize::from(left)], &inner[inner.len() - usize::from(right)..]);
                plain.extend(["{%", left, " ", spoken, " ", right, "%}"]);
            }
            None => plain.push_str(tag),
        }
        rest = after;
    }
    plain + rest
}
