//! The rings: every entry is answered once, whatever is in it.

use super::*;

#[test]
fn entries_of_any_content_are_answered_once() {
    let shop = Workshop::new("fuzz");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let file = shop.file("device", 1000 * 512);
    mode(&program, "fuzz", "null:512000", 200_000);
    mode(&program, "fuzz", file.to_str().unwrap(), 20_000);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1000 * 512);
}

#[test]
fn rings_come_and_go() {
    let shop = Workshop::new("churn");
    let program = shop.build("uapi-registration", "clang", "-O2");
    let text = mode(&program, "churn", "null:", 0);
    assert_eq!(text.matches(" of them failed, ").count(), 4 * 30);
    assert!(!text.contains("no longer served"), "{text}");
}

#[test]
fn no_completion_is_lost_or_doubled() {
    let shop = Workshop::new("noops");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let count = match std::env::var_os("UNIFIED_FULL") {
        Some(_) => 10_000_000,
        None => 1_000_000,
    };
    print!("{}", mode(&program, "noops", "null:", count));
}

/// What this thread takes of a core, in percent, if it sleeps for a millisecond again and again, as the server of idle rings
/// does: on some virtual machines the sleeps alone take more than the server may.
fn cost_of_sleeping() -> f64 {
    let ran = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let (begun, before) = (std::time::Instant::now(), ran());
    while begun.elapsed() < std::time::Duration::from_millis(700) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    100.0 * (ran() - before) / begun.elapsed().as_nanos() as f64
}

#[test]
fn idle_rings_cost_little_and_are_answered_soon() {
    let (_quiet, shop) = Workshop::quiet("idle");
    let program = shop.build("uapi-registration", "gcc", "-O2");
    let mut seen = String::new();
    // Others share this machine's cores, and delay every thread: twice what a plain sleep is late by is
    // theirs (the server's thread, then the program's). So is what plain sleeps cost. It must come out once.
    for _ in 0..6 {
        let text = mode(&program, "idle", "null:", 300);
        let plain = std::thread::spawn(cost_of_sleeping).join().unwrap();
        print!("{text}");
        println!("a thread that does nothing but sleep: {plain:.2} % of a core");
        let idle = number_behind(&text, "idle");
        let p99 = number_behind(&text, "p50,");
        let host = number_behind(&text, "host late by");
        if idle <= f64::max(4.0, 1.5 * plain) && p99 <= 1500.0 + 2.0 * host {
            return;
        }
        seen += &text;
    }
    panic!("never at most 4 % of a core and 1500 us at p99:\n{seen}");
}

#[test]
fn nothing_is_written_past_the_end() {
    let shop = Workshop::new("fill");
    // Not a multiple of three blocks, nor of one.
    let (blocks, len) = (1000, 1000 * 512 + 100);
    let file = shop.file("device", len);
    let program = shop.build("uapi-registration", "clang", "-O2");
    let text = mode(&program, "fill", file.to_str().unwrap(), blocks);
    assert_eq!(number_behind(&text, "stored"), 333.0);
    assert_eq!(number_behind(&text, "refused"), 4.0);
    let stored = fs::read(&file).unwrap();
    assert_eq!(stored.len() as u64, len, "the file has grown");
    let end = 999 * 512;
    assert!(stored[..end].iter().all(|b| *b != 0));
    assert!(
        stored[end..].iter().all(|b| *b == 0),
        "a write that was refused reached the device in part"
    );
}

/// Frames that are refilled while they are written, and addresses that are none: nothing breaks but the
/// program's own data.
#[test]
fn wild_refills_break_nothing() {
    if !is_root("wild_refills_break_nothing") {
        return;
    }
    let shop = Workshop::new("stack-wild");
    let program = shop.build("uapi-full-stack", "gcc", "-O2");
    let file = shop.file("device", 8 << 20);
    let start = stack_command(&program, file.to_str().unwrap(), "wild");
    let veth = Veth::new();
    let stack = start(&veth.host);
    stack.until("System ready");
    veth.send(9999, payloads(), 4000).join().unwrap();
    let (report, copied) = stack.finish(COUNT.into());
    assert!(report.rx > 0 && report.stored > 0, "{report:?}");
    assert_eq!((report.errors, copied), (0, 0), "{report:?}");
    std::io::stdout().flush().unwrap();
}
