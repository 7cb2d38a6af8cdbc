//! What `serve` takes.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::EngineArgs;
use super::SamplingDefaults;
use super::values::{JsonObject, address, bytes, json_object};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on; localhost is 127.0.0.1
    #[arg(long, default_value = "127.0.0.1", value_parser = address, value_name = "IP")]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000, value_name = "N")]
    pub(crate) port: u16,
    /// Key that clients have to send as a bearer token. The variable TILEWISE_API_KEY sets it too, and keeps it out of the
    /// list of processes
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// File of keys with names: a name and a key on each line, and a group for those that share cached prefixes. Each key
    /// has requests, cached prefixes and places of its own
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Key that flushing, aborting all, metrics and loads need; TILEWISE_ADMIN_API_KEY sets it too
    #[arg(long, value_name = "KEY")]
    pub(crate) admin_api_key: Option<String>,
    /// Let others than this machine in without a key
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The model's name in requests and answers; that of its folder unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// How tool calls are written; what the chat template shows unless given
    #[arg(long, value_name = "qwen")]
    pub(crate) tool_call_parser: Option<String>,
    /// How reasoning is written, by the name that sglang-router has for it, such as qwen3; what the chat template shows
    /// unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) reasoning_parser: Option<String>,
    /// Whose sampling parameters count where a request says nothing: the model's, from its generation_config.json, or
    /// OpenAI's
    #[arg(long, value_enum, default_value = "model")]
    pub(crate) sampling_defaults: SamplingDefaults,
    /// Variables of the chat template, such as {"enable_thinking": false}; a request's own come first
    #[arg(long, value_parser = json_object, value_name = "JSON")]
    pub(crate) chat_template_kwargs: Option<JsonObject>,
    /// Refuse requests for more tokens than fit behind their prompt, instead of ending them by length
    #[arg(long)]
    pub(crate) strict_max_tokens: bool,
    /// Let pages of this origin ask from a browser, such as http://localhost:3000; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// Completions that wait or run at once; a request beyond them is answered with 429
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub(crate) max_requests: usize,
    /// Connections at once
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub(crate) max_connections: usize,
    /// Size of a request's body: bytes, or with K, M or G
    #[arg(long, default_value = "4M", value_parser = bytes, value_name = "SIZE")]
    pub(crate) max_body: u64,
    /// Seconds that running requests may take to end once the server is told to stop
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub(crate) drain_timeout: u64,
    /// Seconds of silence of a stream after which a comment is sent
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..), value_name = "S")]
    pub(crate) keep_alive: u64,
    /// Send traces to this collector, by OTLP over HTTP in JSON
    #[arg(long, value_name = "http://HOST:PORT")]
    pub(crate) otlp_endpoint: Option<String>,
    /// How logs are written, on stderr
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
