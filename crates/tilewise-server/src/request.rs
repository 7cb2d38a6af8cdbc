//! Requests put together of groups of fields, each of which stands in one place.

use std::sync::Arc;

use axum::extract::FromRequest;
use axum::response::Response;
use hyper::header::{HeaderName, HeaderValue};
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder};
use utoipa::openapi::{RefOr, Schema};

use crate::body::{self, field_error};
use crate::error::ApiError;
use crate::fields::StreamOptions;
use crate::fields::taken::{self, Verdict};
use crate::state::App;

/// What all requests that generate have in common.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct RequestFields {
    /// The served model's name; the one there is unless given.
    pub(crate) model: Option<String>,
    /// Whether the answer comes as it is made, as server-sent events.
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// A name by which the request can be aborted.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    pub(crate) rid: Option<Name>,
    /// The same.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    pub(crate) request_id: Option<Name>,
    /// Whose cached prefixes may be shared: those of requests with the same salt.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    pub(crate) cache_salt: Option<Name>,
    /// The same.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128, pattern = "^[!-~]+$")]
    pub(crate) extra_key: Option<Name>,
}

/// What a client calls something by: 1 to 128 visible ASCII characters, since it is kept, told and logged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Name(pub(crate) String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(name))
        } else {
            Err("must be from 1 to 128 visible ASCII characters")
        }
    }
}

impl RequestFields {
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(crate) fn includes_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    pub(crate) fn counts_on_the_way(&self) -> bool {
        let options = self.stream_options.filter(|options| options.include_usage.unwrap_or(false));
        options.and_then(|options| options.continuous_usage_stats).unwrap_or(false)
    }

    /// The name that the client chose.
    pub(crate) fn name(&self) -> Option<&str> {
        self.rid.as_ref().or(self.request_id.as_ref()).map(|name| &*name.0)
    }

    pub(crate) fn salt(&self) -> Option<String> {
        self.cache_salt.as_ref().or(self.extra_key.as_ref()).map(|name| name.0.clone())
    }
}

/// A request that is read group by group.
pub(crate) trait Fields: Sized {
    /// Whether fields that nobody knows are ignored; they are refused otherwise.
    const IGNORES_UNKNOWN: bool = false;

    /// Reads the groups.
    ///
    /// # Errors
    /// 400 that names the field.
    fn read(reader: &mut Reader<'_>) -> Result<Self, ApiError>;
}

/// Reads groups of fields from one object, and keeps count of those that somebody reads.
pub(crate) struct Reader<'a> {
    object: &'a Value,
    /// What stands before the name of a field.
    path: &'a str,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(object: &'a Value, path: &'a str) -> Self {
        Self { object, path, known: Vec::new() }
    }

    /// A group of fields.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn group<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        let group = Group { object: self.object, known: &mut self.known };
        serde_path_to_error::deserialize(group).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." { String::new() } else { path };
            field_error(self.path, &path, &error.inner().to_string())
        })
    }

    /// The fields that no group reads and that are not known to be harmless.
    ///
    /// # Errors
    /// 400 that names one that asks for what cannot be done, and, unless unknown ones are ignored, one that nobody knows.
    pub(crate) fn finish(self, ignores_unknown: bool) -> Result<Vec<String>, ApiError> {
        let mut ignored = Vec::new();
        let fields = self.object.as_object().into_iter().flatten();
        for (name, value) in fields.filter(|(name, _)| !self.known.contains(&name.as_str())) {
            let path = format!("{}{name}", self.path);
            match taken::verdict(name, value) {
                Verdict::Harmless => {}
                _ if ignores_unknown => ignored.push(path),
                Verdict::Unsupported(why) => {
                    return Err(ApiError::unsupported(&path, format!("{path} {why}")));
                }
                Verdict::Unknown => {
                    let message = format!("there is no field {name:?}");
                    return Err(ApiError::param(&path, message).code("unknown_field"));
                }
            }
        }
        Ok(ignored)
    }
}

/// Reads a struct, and tells which fields it has.
struct Group<'a> {
    object: &'a Value,
    known: &'a mut Vec<&'static str>,
}

impl<'de> Deserializer<'de> for Group<'de> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.known.extend(fields);
        self.object.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.object.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Fields of a request that were ignored, which the answer names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ignored(pub(crate) Vec<String>);

/// The header that names them.
pub(crate) const IGNORED: HeaderName = HeaderName::from_static("x-ignored-fields");

impl Ignored {
    /// Names them in an answer's head.
    pub(crate) fn name_in(&self, mut response: Response) -> Response {
        /// Characters of the header at most.
        const LENGTH: usize = 1024;
        let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let names: String = self.0.join(", ").chars().map(plain).take(LENGTH).collect();
        if let Some(value) = HeaderValue::from_str(&names).ok().filter(|_| !names.is_empty()) {
            response.headers_mut().insert(IGNORED, value);
        }
        response
    }
}

/// A request's JSON, read group by group.
pub(crate) struct Body<T>(pub(crate) T, pub(crate) Ignored);

impl<T: Fields> FromRequest<Arc<App>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let value = body::value(request, app).await?;
        let (request, ignored) = read(&value)?;
        Ok(Self(request, Ignored(ignored)))
    }
}

/// Reads a request, and names the fields that are ignored.
///
/// # Errors
/// 400 that names the field.
fn read<T: Fields>(value: &Value) -> Result<(T, Vec<String>), ApiError> {
    if !value.is_object() {
        return Err(ApiError::new(hyper::StatusCode::BAD_REQUEST, "the body must be an object"));
    }
    let mut reader = Reader::new(value, "");
    let request = T::read(&mut reader)?;
    Ok((request, reader.finish(T::IGNORES_UNKNOWN)?))
}

/// An object inside a request, read group by group; nothing where it is null.
///
/// # Errors
/// 400 that names the field.
pub(crate) fn nested<T: Fields + Default>(
    value: Option<&Map<String, Value>>,
    path: &str,
) -> Result<T, ApiError> {
    let Some(fields) = value else { return Ok(T::default()) };
    let value = Value::Object(fields.clone());
    let mut reader = Reader::new(&value, path);
    let fields = T::read(&mut reader)?;
    reader.finish(T::IGNORES_UNKNOWN)?;
    Ok(fields)
}

/// One object with the fields of all groups.
pub(crate) fn merged(
    description: &str,
    ignores_unknown: bool,
    groups: impl IntoIterator<Item = RefOr<Schema>>,
) -> RefOr<Schema> {
    let others = AdditionalProperties::FreeForm(ignores_unknown);
    let all = ObjectBuilder::new().description(Some(description)).additional_properties(Some(others));
    let mut all = all.build();
    for group in groups {
        if let RefOr::T(Schema::Object(group)) = group {
            all.properties.extend(group.properties);
            all.required.extend(group.required);
        }
    }
    RefOr::T(Schema::Object(all))
}

/// Defines a request of several groups of fields.
macro_rules! request {
    ($(#[doc = $doc:literal])+ $name:ident $(ignores $ignores:literal)? { $($field:ident: $group:ty),+ $(,)? }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Default)]
        pub(crate) struct $name {
            $(pub(crate) $field: $group),+
        }

        impl $crate::request::Fields for $name {
            $(const IGNORES_UNKNOWN: bool = $ignores;)?

            fn read(reader: &mut $crate::request::Reader<'_>) -> Result<Self, $crate::error::ApiError> {
                Ok(Self { $($field: reader.group()?),+ })
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $crate::request::merged(
                    concat!($($doc),+),
                    <Self as $crate::request::Fields>::IGNORES_UNKNOWN,
                    [$(<$group as utoipa::PartialSchema>::schema()),+],
                )
            }
        }

        impl utoipa::ToSchema for $name {
            fn schemas(
                schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>,
            ) {
                $(<$group as utoipa::ToSchema>::schemas(schemas);)+
            }
        }
    };
}

pub(crate) use request;
