//! Numbers for Prometheus, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gpt_oss_mlx::engine::{EngineStats, Usage};

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What the server counts itself; the engine counts the rest.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By endpoint and status.
    responses: Mutex<BTreeMap<(String, u16), u64>>,
    abandoned: AtomicU64,
    first_token: Histogram,
    queued: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last is for everything beyond the buckets.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let ends = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut total = 0;
        for (count, end) in self.counts.iter().zip(ends) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{end}\"}} {total}");
        }
        let sum = Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {total}");
    }
}

impl Metrics {
    /// A request was answered, or its answer has begun. `endpoint` is the route, never what the
    /// client wrote, which would make labels without end.
    pub fn responded(&self, endpoint: &str, status: u16) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((endpoint.to_owned(), status)).or_default() += 1;
    }

    /// The engine finished a request.
    pub fn finished(&self, usage: &Usage) {
        self.queued.observe(usage.queued);
        self.first_token.observe(usage.time_to_first_token);
    }

    /// A client went away before the end.
    pub fn abandoned(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything, as text.
    pub fn render(&self, engine: &EngineStats) -> String {
        let mut text = String::new();
        let name = "gpt_oss_http_responses_total";
        head(&mut text, name, "counter", "Responses by endpoint and status.");
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((endpoint, status), count) in responses {
            let labels = format!("endpoint=\"{endpoint}\",status=\"{status}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        let name = "gpt_oss_clients_gone_total";
        one(&mut text, name, "counter", "Requests whose clients went away.", abandoned);
        let name = "gpt_oss_queue_seconds";
        self.queued.write(&mut text, name, "Time in the queue of finished requests.");
        let name = "gpt_oss_time_to_first_token_seconds";
        self.first_token.write(&mut text, name, "Time from a request to its first token.");
        engine_metrics(&mut text, engine);
        text
    }
}

fn engine_metrics(text: &mut String, stats: &EngineStats) {
    let name = "gpt_oss_requests_total";
    head(text, name, "counter", "Requests that the engine ended, by how.");
    for (end, count) in [
        ("stop", stats.stopped),
        ("length", stats.at_length),
        ("cancelled", stats.cancelled),
        ("timeout", stats.timed_out),
        ("failed", stats.failed),
    ] {
        let _ = writeln!(text, "{name}{{end=\"{end}\"}} {count}");
    }
    let gauge = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let numbers = [
        ("requests_waiting", "gauge", "Requests in the queue.", gauge(stats.waiting)),
        ("requests_running", "gauge", "Requests being computed.", gauge(stats.running)),
        ("requests_prefilling", "gauge", "Running ones in their prompt.", gauge(stats.prefilling)),
        ("requests_paused", "gauge", "Running ones with slow readers.", gauge(stats.paused)),
        ("prompt_tokens_total", "counter", "Tokens of prompts.", stats.prompt_tokens),
        (
            "cached_tokens_total",
            "counter",
            "Prompt tokens not computed again.",
            stats.cached_tokens,
        ),
        ("generated_tokens_total", "counter", "Tokens generated.", stats.generated_tokens),
        ("steps_total", "counter", "Decoding steps of any number of requests.", stats.steps),
        ("reserved_bytes", "gauge", "Cache of running requests.", stats.reserved_bytes),
        ("active_memory_bytes", "gauge", "Memory in MLX arrays.", stats.active_memory),
    ];
    for (name, kind, help, value) in numbers {
        one(text, &format!("gpt_oss_{name}"), kind, help, value);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn one(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(text, name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}
