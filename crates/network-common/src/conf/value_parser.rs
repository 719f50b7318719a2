//! Parsers of setting values in Spark's grammar; an error is the text of what is accepted.

use std::time::Duration;

const TIME: &str = "a whole number with us, ms, s, m, min, h or d (none: seconds)";
const SIZE: &str = "a whole number with b, k, m, g, t or p (none: bytes)";

/// Parses a time in Spark's notation: a whole number and a unit.
///
/// Without a unit the value is in seconds. A negative time becomes 0, which the settings read as
/// "no timeout" (Spark's `JavaUtils.timeStringAs`).
///
/// # Errors
///
/// The description of what is accepted, for an error text.
///
/// ```
/// use std::time::Duration;
/// use network_common::parse_time;
///
/// assert_eq!(parse_time("2min"), Ok(Duration::from_secs(120)));
/// ```
pub fn time(value: &str) -> Result<Duration, &'static str> {
    let (number, unit) = split_unit(value, TIME)?;
    let micros: u64 = match unit.as_str() {
        "us" => 1,
        "ms" => 1_000,
        "s" | "" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(TIME),
    };
    let number = u64::try_from(number).unwrap_or(0);
    number.checked_mul(micros).map(Duration::from_micros).ok_or(TIME)
}

/// Parses a time above 0.
#[cfg(feature = "auth")]
pub(super) fn positive_time(value: &str) -> Result<Duration, &'static str> {
    let duration = time(value)?;
    if duration.is_zero() {
        Err("a time above 0 (a whole number with us, ms, s, m, min, h or d)")
    } else {
        Ok(duration)
    }
}

/// Parses a size in Spark's notation: a whole number and a binary unit.
///
/// Without a unit the value is in bytes. It may be negative (Spark's `JavaUtils.byteStringAs`).
///
/// # Errors
///
/// The description of what is accepted, for an error text.
///
/// ```
/// use network_common::parse_size;
///
/// assert_eq!(parse_size("4m"), Ok(4 << 20));
/// ```
pub fn size(value: &str) -> Result<i64, &'static str> {
    let (number, unit) = split_unit(value, SIZE)?;
    let shift = match unit.as_str() {
        "b" | "" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        "p" | "pb" => 50,
        _ => return Err(SIZE),
    };
    number.checked_mul(1 << shift).ok_or(SIZE)
}

/// Parses a size of at least 1 byte; a size above `max` becomes `max`.
pub(super) fn positive_size(value: &str, max: u64) -> Result<u64, &'static str> {
    match u64::try_from(size(value)?) {
        Ok(size) if size > 0 => Ok(size.min(max)),
        _ => Err("a positive size (a whole number with b, k, m, g, t or p)"),
    }
}

pub(super) fn integer(value: &str) -> Result<i64, &'static str> {
    value.parse().map_err(|_| "a whole number")
}

/// Parses a whole number from 1 to `max`.
pub(super) fn positive(value: &str, max: u64) -> Result<u64, &'static str> {
    value
        .parse()
        .ok()
        .filter(|number| (1..=max).contains(number))
        .ok_or("a whole number above 0, in range")
}

pub(super) fn boolean(value: &str) -> Result<bool, &'static str> {
    value.to_ascii_lowercase().parse().map_err(|_| "true or false")
}

/// Splits a value into its number and its unit in lower case.
fn split_unit(value: &str, accepted: &'static str) -> Result<(i64, String), &'static str> {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, unit) = value.split_at(end + (value.len() - digits.len()));
    Ok((number.parse().map_err(|_| accepted)?, unit.trim().to_ascii_lowercase()))
}
