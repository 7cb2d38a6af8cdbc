//! How much there is to do, for those who balance load.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::body::json;
use crate::metrics::{hit_rate, token_usage};
use crate::state::{App, now};

/// How much there is to do.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Loads {
    /// By ISO 8601.
    timestamp: String,
    version: &'static str,
    dp_rank_count: u32,
    loads: Vec<Load>,
}

/// What a rank has to do; there is one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Load {
    dp_rank: u32,
    num_running_reqs: usize,
    num_waiting_reqs: usize,
    num_waiting_uncached_tokens: usize,
    num_total_reqs: usize,
    num_used_tokens: usize,
    max_total_num_tokens: usize,
    /// The share of the cache that sequences hold.
    token_usage: f64,
    /// Tokens per second, lately.
    gen_throughput: f64,
    cache_hit_rate: f64,
    utilization: f64,
    max_running_requests: usize,
}

/// How much there is to do.
#[utoipa::path(get, path = "/v1/loads", tag = "sglang", responses((status = 200, body = Loads)))]
pub(crate) async fn loads(State(app): State<Arc<App>>) -> Response {
    let snapshot = app.worker.snapshot();
    let stats = &snapshot.stats;
    let load = Load {
        dp_rank: 0,
        num_running_reqs: stats.running,
        num_waiting_reqs: stats.waiting,
        num_waiting_uncached_tokens: 0,
        num_total_reqs: stats.running + stats.waiting,
        num_used_tokens: stats.total_tokens - stats.free_tokens,
        max_total_num_tokens: stats.total_tokens,
        token_usage: token_usage(&snapshot),
        gen_throughput: snapshot.tokens_per_second,
        cache_hit_rate: hit_rate(&snapshot),
        utilization: stats.running as f64 / app.config.max_running as f64,
        max_running_requests: app.config.max_running,
    };
    let (timestamp, version) = (iso_8601(now()), env!("CARGO_PKG_VERSION"));
    json(&Loads { timestamp, version, dp_rank_count: 1, loads: vec![load] })
}

/// What a rank has to do, as older routers ask for it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OldLoad {
    dp_rank: u32,
    num_reqs: usize,
    num_waiting_reqs: usize,
    num_tokens: usize,
}

/// How much there is to do, as older routers ask for it.
#[utoipa::path(get, path = "/get_load", tag = "sglang", responses((status = 200, body = [OldLoad])))]
pub(crate) async fn get_load(State(app): State<Arc<App>>) -> Response {
    let stats = app.worker.snapshot().stats;
    json(&[OldLoad {
        dp_rank: 0,
        num_reqs: stats.running + stats.waiting,
        num_waiting_reqs: stats.waiting,
        num_tokens: stats.total_tokens - stats.free_tokens,
    }])
}

/// A time as text, in UTC. Days are counted from 1 March of year 0, so that a leap day is the last of its year
/// (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn iso_8601(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * march + 2) / 5 + 1, if march < 10 { march + 3 } else { march - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_8601(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(iso_8601(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(iso_8601(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(iso_8601(1_764_082_800), "2025-11-25T15:00:00Z");
    }
}
