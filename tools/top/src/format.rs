//! Numbers as people read them: three digits and a unit.

#![forbid(unsafe_code)]

const BIG: [&str; 6] = ["", "k", "M", "G", "T", "P"];

fn digits(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// 0, 7, 950, 1.23 k, 12.3 M.
pub fn amount(value: f64) -> String {
    let (mut value, mut unit) = (value.max(0.0), 0);
    while value >= 999.5 && unit + 1 < BIG.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 if value.fract() == 0.0 => format!("{value:.0}"),
        0 => digits(value),
        _ => format!("{} {}", digits(value), BIG[unit]),
    }
}

/// 950 B, 1.23 kB, 12.3 MB.
pub fn bytes(value: f64) -> String {
    let text = amount(value);
    match text.contains(' ') {
        true => format!("{text}B"),
        false => format!("{text} B"),
    }
}

/// 12 345 678: every digit, for what is compared with other counters.
pub fn exact(value: f64) -> String {
    let plain = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (i, digit) in plain.chars().enumerate() {
        if i > 0 && (plain.len() - i) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// 4 us, 1.25 ms, 67.1 s; `micro` is how a microsecond is written here.
pub fn time(seconds: f64, micro: &str) -> String {
    match seconds {
        s if s.is_infinite() => "> 67 s".into(),
        s if s < 0.9995e-3 => {
            let us = s * 1e6;
            match (us - us.round()).abs() < 1e-6 {
                true => format!("{us:.0} {micro}"),
                false => format!("{} {micro}", digits(us)),
            }
        }
        s if s < 0.9995 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (999.0, "999"),
            (999.6, "1.00 k"),
            (1234.0, "1.23 k"),
            (99_960.0, "100 k"),
            (12.3e6, "12.3 M"),
            (5e18, "5000 P"),
        ] {
            assert_eq!(amount(value), text);
        }
        assert_eq!(
            (bytes(12.0), bytes(2048.0)),
            ("12 B".into(), "2.05 kB".into())
        );
        assert_eq!(exact(0.0), "0");
        assert_eq!(
            (exact(999.0), exact(1234567.0)),
            ("999".into(), "1 234 567".into())
        );
        for (value, text) in [
            (0.000004, "4 us"),
            (0.0000045678, "4.57 us"),
            (0.00125, "1.25 ms"),
            (0.99996, "1.00 s"),
            (67.108864, "67.1 s"),
            (f64::INFINITY, "> 67 s"),
        ] {
            assert_eq!(time(value, "us"), text);
        }
    }
}
