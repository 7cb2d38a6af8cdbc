//! HTTP over the engine. No endpoint is served yet: this crate holds its place in the workspace.
#![forbid(unsafe_code)]
