//! How many bytes may be in work at once.
//!
//! Threads that compute wait here; a timely worker never does. A [`Turn`] is one thread's work on one job, which may
//! take several [`Permit`]s one after the other (frames, then what a model needs to look at them). A permit outlives the
//! turn where its bytes go to the devices' queue: it is then parked.
//!
//! Nobody waits for ever. What is larger than the whole budget passes alone. Who already holds bytes and wants more goes
//! before those who hold none; and where all who hold bytes wait for more, the first of them passes over the limit,
//! since none of the others could ever give anything back.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A limit in bytes, shared by all who hold a clone.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limit_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    used_bytes: u64,
    peak_bytes: u64,
    /// Turns that hold something and do not wait here.
    running: usize,
    /// Things that a device thread will take up without waiting for anyone but another device thread at work.
    parked: usize,
    /// Turns that hold something and want more, first come first served.
    growing: VecDeque<u64>,
    /// Turns that hold nothing yet.
    entering: VecDeque<u64>,
    /// Device threads that want more.
    devices_waiting: usize,
    next_ticket: u64,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Budget {
        Budget(Arc::new(Inner { limit_bytes, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// The most that was ever in use.
    pub fn peak_bytes(&self) -> u64 {
        self.state().peak_bytes
    }

    /// A pool thread's turn.
    pub fn turn(&self) -> Turn {
        Turn { budget: self.clone(), entered: false, device: false }
    }

    /// A device thread's turn. Everybody else's parked bytes wait for device threads: one waits only while another thread
    /// is at work.
    pub(crate) fn device_turn(&self) -> Turn {
        Turn { budget: self.clone(), entered: false, device: true }
    }

    /// Bytes that are counted but not waited for: for a thread that holds a permit which it cannot name.
    pub(crate) fn take_now(&self, bytes: u64) -> Permit {
        self.grant(&mut self.state(), bytes)
    }

    /// Says that something lies in the devices' queue, until the guard is dropped.
    pub(crate) fn park(&self) -> Parked {
        self.state().parked += 1;
        Parked(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, state: &mut State, bytes: u64) -> Permit {
        state.used_bytes += bytes;
        state.peak_bytes = state.peak_bytes.max(state.used_bytes);
        Permit { budget: self.clone(), bytes }
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        state.used_bytes == 0 || state.used_bytes + bytes <= self.0.limit_bytes
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's work on one job.
pub struct Turn {
    budget: Budget,
    entered: bool,
    device: bool,
}

impl Turn {
    /// Waits until `bytes` may be used.
    pub fn acquire(&mut self, bytes: u64) -> Permit {
        let budget = self.budget.clone();
        let mut state = budget.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        if self.device {
            state.running -= usize::from(self.entered);
            state.devices_waiting += 1;
            budget.0.changed.notify_all();
            while !budget.fits(&state, bytes) && state.running > 0 {
                state = budget.wait(state);
            }
            state.devices_waiting -= 1;
        } else if self.entered {
            state.running -= 1;
            state.growing.push_back(ticket);
            budget.0.changed.notify_all();
            loop {
                let nobody_else = state.running == 0 && state.parked == 0 && state.devices_waiting == 0;
                let first = state.growing.front() == Some(&ticket);
                if budget.fits(&state, bytes) || (first && nobody_else) {
                    break;
                }
                state = budget.wait(state);
            }
            state.growing.retain(|waiting| *waiting != ticket);
        } else {
            state.entering.push_back(ticket);
            while !(state.growing.is_empty() && state.entering.front() == Some(&ticket) && budget.fits(&state, bytes)) {
                state = budget.wait(state);
            }
            state.entering.pop_front();
        }
        self.entered = true;
        state.running += 1;
        budget.0.changed.notify_all();
        budget.grant(&mut state, bytes)
    }

    /// `bytes`, if nobody has to be waited for.
    pub fn try_acquire(&mut self, bytes: u64) -> Option<Permit> {
        let budget = self.budget.clone();
        let mut state = budget.state();
        if !state.growing.is_empty() || !budget.fits(&state, bytes) {
            return None;
        }
        state.running += usize::from(!self.entered);
        self.entered = true;
        Some(budget.grant(&mut state, bytes))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.budget.state().running -= usize::from(self.entered);
        self.budget.0.changed.notify_all();
    }
}

/// The right to hold so many bytes; dropping it gives them back.
pub struct Permit {
    budget: Budget,
    bytes: u64,
}

impl Permit {
    /// Gives back all but `bytes`. Never takes more.
    pub fn shrink(&mut self, bytes: u64) {
        let rest = self.bytes.saturating_sub(bytes);
        self.bytes -= rest;
        self.budget.state().used_bytes -= rest;
        self.budget.0.changed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// Something lies in the devices' queue.
pub(crate) struct Parked(Budget);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.state().parked -= 1;
        self.0.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Runs `work` and fails, instead of hanging, if it has not ended after a long time.
    fn ends(work: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            work();
            done.send(()).ok();
        });
        wait.recv_timeout(Duration::from_secs(30)).expect("threads wait for each other for ever");
        thread.join().unwrap();
    }

    #[test]
    fn an_item_larger_than_the_budget_passes_alone() {
        ends(|| {
            let budget = Budget::new(10);
            let permit = budget.turn().acquire(25);
            assert!(budget.turn().try_acquire(1).is_none());
            drop(permit);
            assert!(budget.turn().try_acquire(1).is_some());
        });
    }

    #[test]
    fn a_shrunk_permit_lets_the_next_one_in() {
        ends(|| {
            let budget = Budget::new(10);
            let mut turn = budget.turn();
            let mut permit = turn.acquire(8);
            assert!(budget.turn().try_acquire(5).is_none());
            permit.shrink(4);
            assert!(budget.turn().try_acquire(5).is_some());
        });
    }

    /// Every job takes two permits, the second while it holds the first, and some leave a parked one to device threads
    /// that take a third. The limit is passed by one growing job at most.
    #[test]
    fn jobs_that_grow_end_and_keep_to_the_limit() {
        for seed in 0..40u64 {
            ends(move || {
                let budget = Budget::new(100);
                let (send, receive) = mpsc::channel::<(Permit, Parked)>();
                let receive = Arc::new(Mutex::new(receive));
                let devices: Vec<_> = (0..1 + seed % 3)
                    .map(|_| {
                        let (budget, receive) = (budget.clone(), receive.clone());
                        std::thread::spawn(move || {
                            loop {
                                let next = receive.lock().unwrap().recv();
                                let Ok((permit, parked)) = next else { break };
                                let mut turn = budget.device_turn();
                                let own = turn.acquire(70);
                                drop((parked, own, permit));
                            }
                        })
                    })
                    .collect();
                let threads: Vec<_> = (0..4u64)
                    .map(|thread| {
                        let (budget, send) = (budget.clone(), send.clone());
                        std::thread::spawn(move || {
                            let mut draw = seed * 7919 + thread + 1;
                            for _ in 0..50 {
                                draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                                let mut turn = budget.turn();
                                let mut frames = turn.acquire(1 + (draw >> 33) % 60);
                                let model = turn.acquire(1 + (draw >> 43) % 80);
                                frames.shrink(20);
                                drop(model);
                                if draw >> 63 == 1 {
                                    send.send((frames, budget.park())).unwrap();
                                }
                            }
                        })
                    })
                    .collect();
                drop(send);
                for thread in threads.into_iter().chain(devices) {
                    thread.join().unwrap();
                }
                assert_eq!(budget.state().used_bytes, 0, "seed {seed}");
                // At most one holder at a time grows over the limit, by 80 bytes or by a device's 70.
                assert!(budget.peak_bytes() <= 100 + 80, "seed {seed}: {}", budget.peak_bytes());
            });
        }
    }
}
