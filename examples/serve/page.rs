//! The web page at `/`.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::ids;

const PAGE: &str = include_str!("page.html");

/// The page. It may run its own script and ask its own server, and nothing else.
pub async fn page() -> Response {
    let nonce = ids::id("");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE.replace("NONCE", &nonce)).into_response()
}
