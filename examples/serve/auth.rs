//! Who may ask.

use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq;

use crate::errors::ApiError;

/// Checks the header `Authorization: Bearer KEY`. The time that takes does not depend on how much
/// of the key is right.
pub fn check_key(headers: &HeaderMap, key: Option<&str>) -> Result<(), ApiError> {
    let Some(key) = key else { return Ok(()) };
    let refused = |message: &str| {
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return refused("the header Authorization is missing; it has to be `Bearer KEY`");
    };
    let (scheme, given) = match value.as_bytes().split_at_checked(b"Bearer ".len()) {
        Some(parts) => parts,
        None => (value.as_bytes(), [].as_slice()),
    };
    if scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(key.as_bytes())) {
        return Ok(());
    }
    refused("the API key in the header Authorization is wrong")
}

/// Checks by which name the server was called. A web page whose own name was made to point here
/// (DNS rebinding) passes for the same origin; only the name gives it away.
pub fn check_host(headers: &HeaderMap, hosts: &[String]) -> Result<(), ApiError> {
    if hosts.is_empty() {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    match hosts.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        true => Ok(()),
        false => {
            let message = "the header Host does not name this server; start it with --host or an \
                           API key to reach it by other names";
            Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("wrong_host"))
        }
    }
}
