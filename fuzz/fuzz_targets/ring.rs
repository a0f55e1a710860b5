//! A consumer and a producer whose ring somebody else writes to: they give what was there, or an error; and as long
//! as nobody does, they are a queue.
#![no_main]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use unified::ring::{Consumer, Producer};
use unified::sys::abi::UnifiedCqe;
use unified::sys::mmap::Mapping;
use unified::sys::shm::SharedRing;

#[derive(Debug, Arbitrary)]
enum Step {
    Push(u64),
    Publish,
    Pop,
    Release,
    Sleep,
    Free(u8),
    // From here on the ring is another's too.
    StoreProducer(u32),
    StoreConsumer(u32),
    StoreFlags(bool),
}

#[derive(Debug, Arbitrary)]
struct Input {
    shift: u8,
    start: u32,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let count = 1 << (input.shift % 6);
    let mapping = Arc::new(Mapping::anonymous(4096, false).unwrap());
    let ring = SharedRing::<UnifiedCqe>::new(&mapping, 64, 128, count).unwrap();
    ring.initialize();
    ring.producer().store(input.start, Relaxed);
    ring.consumer().store(input.start, Relaxed);
    let mut producer = Producer::new(ring.clone(), "fuzz");
    let mut consumer = Consumer::new(ring.clone(), "fuzz");
    let (mut queue, mut hidden, mut popped) = (VecDeque::new(), VecDeque::new(), 0);
    let mut honest = true;
    for step in input.steps {
        match step {
            Step::Push(user_data) => {
                let pushed = producer.push(UnifiedCqe {
                    user_data,
                    ..UnifiedCqe::default()
                });
                if honest {
                    let room = queue.len() + hidden.len() + popped < count as usize;
                    assert_eq!(pushed.unwrap(), room);
                    if room {
                        hidden.push_back(user_data);
                    }
                }
            }
            Step::Publish => {
                let _ = producer.publish();
                queue.append(&mut hidden);
            }
            Step::Pop => {
                let got = consumer.pop();
                if honest {
                    let got = got.unwrap().map(|entry| entry.user_data);
                    assert_eq!(got, queue.pop_front());
                    popped += usize::from(got.is_some());
                }
            }
            Step::Release => {
                consumer.release();
                popped = 0;
            }
            Step::Sleep => {
                let sleeps = consumer.prepare_sleep();
                if honest {
                    assert_eq!(sleeps.unwrap(), queue.is_empty());
                }
                consumer.awake();
            }
            Step::Free(wanted) => {
                if let Ok(free) = producer.free(wanted.into()) {
                    assert!(free <= count);
                }
            }
            Step::StoreProducer(index) => {
                ring.producer().store(index, Relaxed);
                honest = false;
            }
            Step::StoreConsumer(index) => {
                ring.consumer().store(index, Relaxed);
                honest = false;
            }
            Step::StoreFlags(on) => ring.set_need_wakeup(on),
        }
        if let Ok(available) = consumer.available() {
            assert!(available <= count);
        }
    }
});
