//! Types of fields that several requests have.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// One or several.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T: ToSchema> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T: ToSchema> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A switch that others send and that is of no use here: it has to be off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Off;

/// A switch that others send and that cannot be turned off here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct On;

/// A field that others send and that is not supported here: `Option<Unset>` takes null alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unset;

/// A number that others send and that has no meaning here: it has to be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Zero;

/// Takes one value of a switch, or null.
struct Switch(bool);

impl Visitor<'_> for Switch {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} or null: nothing else is supported", self.0)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if value == self.0 { Ok(()) } else { Err(E::invalid_value(Unexpected::Bool(value), &self)) }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Off {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Switch(false)).map(|()| Self)
    }
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Switch(true)).map(|()| Self)
    }
}

impl<'de> Deserialize<'de> for Unset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer)?;
        Err(D::Error::custom("this is not supported: leave it out or send null"))
    }
}

impl<'de> Deserialize<'de> for Zero {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Number::deserialize(deserializer)?.as_i64() {
            Some(0) => Ok(Self),
            _ => Err(D::Error::custom("this is not supported: leave it out or send 0")),
        }
    }
}

fn switch(only: bool) -> RefOr<Schema> {
    let types = SchemaType::from_iter([Type::Boolean, Type::Null]);
    let values = Some([serde_json::Value::Bool(only), serde_json::Value::Null]);
    RefOr::T(ObjectBuilder::new().schema_type(types).enum_values(values).build().into())
}

impl PartialSchema for Off {
    fn schema() -> RefOr<Schema> {
        switch(false)
    }
}

impl ToSchema for Off {
    fn name() -> Cow<'static, str> {
        "Off".into()
    }
}

impl PartialSchema for On {
    fn schema() -> RefOr<Schema> {
        switch(true)
    }
}

impl ToSchema for On {
    fn name() -> Cow<'static, str> {
        "On".into()
    }
}

impl PartialSchema for Unset {
    fn schema() -> RefOr<Schema> {
        RefOr::T(ObjectBuilder::new().schema_type(Type::Null).build().into())
    }
}

impl PartialSchema for Zero {
    fn schema() -> RefOr<Schema> {
        let types = SchemaType::from_iter([Type::Integer, Type::Null]);
        let values = Some([serde_json::Value::from(0), serde_json::Value::Null]);
        RefOr::T(ObjectBuilder::new().schema_type(types).enum_values(values).build().into())
    }
}

impl ToSchema for Zero {
    fn name() -> Cow<'static, str> {
        "Zero".into()
    }
}

impl ToSchema for Unset {
    fn name() -> Cow<'static, str> {
        "Unset".into()
    }
}

/// What a stream tells besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk before the end has no choices and the usage of all.
    pub(crate) include_usage: Option<bool>,
    /// Accepted for compatibility.
    include_obfuscation: Option<Off>,
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Of the prompt; that of a request with several prompts is the sum.
    pub(crate) prompt_tokens: usize,
    /// Generated.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// More of the prompt.
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// More of the prompt's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Those that were not computed, because a cache had them.
    pub(crate) cached_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt: usize, completion: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}
