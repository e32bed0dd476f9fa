//! `--memory`: what contexts of different lengths need.

use std::io::{self, Write};

use gpt_oss_mlx::{MemoryEstimate, MemoryRow};
use serde::Serialize;

use crate::args::Args;

/// What `--memory --json` prints; sizes are bytes.
#[derive(Debug, Serialize)]
struct Table<'a> {
    model: String,
    available: Option<u64>,
    largest_context: usize,
    contexts: &'a [MemoryRow],
}

/// Prints the table to stdout.
pub fn print(args: &Args, estimate: &MemoryEstimate) -> io::Result<()> {
    let rows = estimate.table();
    let largest_context = estimate.largest_context();
    let mut stdout = io::stdout().lock();
    if args.json {
        let table = Table {
            model: args.model.clone(),
            available: estimate.available,
            largest_context,
            contexts: &rows,
        };
        serde_json::to_writer(&mut stdout, &table)?;
        return writeln!(stdout);
    }
    writeln!(stdout, " context    weights      cache    working      total  fits")?;
    for row in &rows {
        let fits = match row.fits {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let [weights, cache, working, total] =
            [row.weights, row.cache, row.working, row.total].map(gigabytes);
        writeln!(stdout, "{:8}{weights}{cache}{working}{total}  {fits}", row.context)?;
    }
    let available = estimate.available.map_or("unknown".into(), gigabytes);
    writeln!(stdout, "available: {}; largest context: {largest_context}", available.trim())
}

fn gigabytes(bytes: u64) -> String {
    format!("{:8.3} GB", bytes as f64 / 1e9)
}
