//! Full rings, and the end in any state.

use super::*;

/// Submits writes of one frame each until the rings take no more for a while. How many they took.
fn submit_until_full(rig: &Rig) -> Vec<u64> {
    let mut sent = Vec::new();
    let mut refused = 0;
    while refused < 20 {
        let frame = rig.stale_frame();
        let transfer = rig.transfer(frame, 0, 512, 0);
        match rig.context.submit_write(&transfer) {
            Ok(()) => {
                sent.push(transfer.user_data);
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                rig.context.frame_release(frame).unwrap();
                refused += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    sent
}

#[test]
fn a_cq_that_nobody_empties_loses_nothing() {
    let _alone = alone();
    let memory = Target::memory();
    for path in ["null:", &memory.path] {
        for drive in DRIVES {
            let config = Config {
                sq_entries: 16,
                cq_entries: 8,
                ..storage_config(path, drive)
            };
            let rig = Rig::open(&config);
            for round in 0..3 {
                let sent = submit_until_full(&rig);
                // A thread moves what the CQ holds; nobody pumps an inline engine here.
                let fit = if drive == Drive::Thread { 16 + 8 } else { 16 };
                assert_eq!(sent.len(), fit, "{path} {drive:?}");
                if drive == Drive::Thread && round == 0 {
                    assert_idle(&rig.context, "with a full CQ");
                }
                let mut ids: Vec<u64> = rig.take(fit).iter().map(|c| c.user_data).collect();
                ids.sort_unstable();
                assert_eq!(ids, sent);
                rig.check_sums(0);
            }
        }
    }
}

/// Destroyed with a full CQ, a full SQ, and commands in flight: it ends.
#[test]
fn a_context_is_destroyed_in_any_state() {
    let _alone = alone();
    let memory = Target::memory();
    for path in ["null:".to_string(), memory.path.clone()] {
        for drive in DRIVES {
            for count in [1, 8, 24] {
                let config = Config {
                    sq_entries: 16,
                    cq_entries: 8,
                    ..storage_config(&path, drive)
                };
                within(Duration::from_secs(20), move || {
                    let context = Context::open(&config).unwrap();
                    for _ in 0..count {
                        let frame = context.frame_alloc().unwrap();
                        let transfer = Transfer {
                            frame,
                            offset: u64::from(frame) * 4096,
                            len: 4096,
                            ..Transfer::default()
                        };
                        if let Err(error) = context.submit_write(&transfer) {
                            assert_eq!(error.errno(), libc::EAGAIN, "{error}");
                        }
                    }
                    let stats = context.statistics().unwrap();
                    assert_eq!(stats.frames.free + count, 128);
                    drop(context);
                });
            }
        }
    }
}
