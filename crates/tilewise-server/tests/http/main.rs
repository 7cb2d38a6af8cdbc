//! The server over real connections. Tests share one, and those that need another start it.

mod abuse;
mod cancel;
mod chat;
mod clients;
mod common;
mod completions;
mod generate;
mod grammars;
mod info;
mod limits;
mod load;
mod messages;
mod ollama;
mod reasoning;
mod responses;
mod schemas;
mod sites;
mod stop;
mod tenants;
mod tools;
mod traces;
