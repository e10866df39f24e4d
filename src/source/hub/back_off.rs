//! How long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest delay of our own choosing.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Longest delay that a server may ask for; whoever asks for a longer one is not waited for.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The delay before retry number `retry` (from 0), between half of it and all of it so that many
/// connections do not come back at once.
pub(super) fn delay(base: Duration, retry: u32) -> Duration {
    let full = base.saturating_mul(1 << retry.min(16)).min(MAX_DELAY.max(base));
    // A fresh `RandomState` is seeded at random, which is all that jitter needs.
    let random = RandomState::new().hash_one(retry) as f64 / u64::MAX as f64;
    full.mul_f64(0.5 + 0.5 * random)
}

/// Reads a `Retry-After` value: seconds, or an HTTP date.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(http_date(value)?).saturating_sub(now))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7; the obsolete forms
/// are not read).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse::<u64>().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next().filter(|name| name.len() == 3)?;
    let month = MONTHS.find(month).filter(|at| at % 3 == 0)? as u64 / 3;
    let year = words.next()?.parse::<u64>().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok().filter(|part| *part <= 60));
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1 March of year 0, counted in years that start in March.
    let (shifted_year, shifted_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100
        + shifted_year / 400
        + (153 * shifted_month + 2) / 5
        + day
        - 1;
    Some(days.checked_sub(719_468)? * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_date_dash_d_gives_them() {
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000)),
            ("soon", None),
            ("Sun, 06 Xyz 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(http_date(text), expected, "{text}");
        }
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 12 ", now), Some(Duration::from_secs(12)));
        for garbage in ["", "-5", "1.5", "12s", "99999999999999999999999", "Sun, 06 Nov 1994", "\u{1f}"] {
            assert_eq!(retry_after(garbage, now), None, "{garbage:?}");
        }
    }

    #[test]
    fn delays_double_and_stay_bounded() {
        let base = Duration::from_millis(500);
        for (retry, full) in [(0, 0.5), (1, 1.0), (5, 16.0), (6, 30.0), (60, 30.0)] {
            let delay = delay(base, retry).as_secs_f64();
            assert!((full / 2.0..=full).contains(&delay), "{retry}: {delay}");
        }
    }
}
