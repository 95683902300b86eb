//! The thread that makes results known: one transaction for all that has gathered meanwhile, then word to the dataflow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::work::Reply;
use crate::derive::Settled;
use crate::fingerprint::Hash;
use crate::run::shared::Shared;
use crate::store::Finished;

/// How long a result waits for companions while others are still computed. A transaction costs a disk's round trip, so
/// a few results per transaction matter more than a few milliseconds.
const GATHER: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(1);
const MOST: usize = 512;

pub(crate) enum CommitMessage {
    Done(Box<Done>),
    /// Nothing comes after this.
    Close,
}

/// A unit that is settled, and who waits for it.
pub(crate) struct Done {
    pub(crate) key: Hash,
    pub(crate) settled: Settled,
    /// None: not to be remembered.
    pub(crate) finished: Vec<Finished>,
    pub(crate) reply: Arc<Reply>,
}

/// The body of the committer's thread.
pub(crate) fn commit_loop(shared: &Shared, messages: &Receiver<CommitMessage>) {
    let mut open = true;
    while open && let Ok(message) = messages.recv() {
        let mut done = Vec::new();
        match message {
            CommitMessage::Done(first) => done.push(first),
            CommitMessage::Close => return,
        }
        let deadline = Instant::now() + GATHER;
        while done.len() < MOST {
            // While nothing else is computed, nothing else can come.
            let hope = Instant::now() < deadline && !shared.jobs.is_idle();
            match messages.recv_timeout(if hope { LOOK } else { Duration::ZERO }) {
                Ok(CommitMessage::Done(unit)) => done.push(unit),
                Ok(CommitMessage::Close) => {
                    open = false;
                    break;
                }
                Err(RecvTimeoutError::Timeout) if hope => {}
                Err(_) => break,
            }
        }
        let finished: Vec<Finished> = done.iter_mut().flat_map(|unit| std::mem::take(&mut unit.finished)).collect();
        if !finished.is_empty()
            && let Err(error) = shared.store.commit(&finished)
        {
            // Nobody hears of these units, so nothing builds on what is not durable.
            shared.fail(error);
            continue;
        }
        shared.store.scratch().clear(finished.iter().map(|unit| &unit.key));
        for unit in done {
            unit.reply.send(unit.key, unit.settled);
        }
    }
}
