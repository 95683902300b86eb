//! Forgets verdicts, so that the next run tries the units again.

use std::collections::BTreeSet;

use super::Store;
use super::manifest::Quarantined;
use crate::derive::Settled;
use crate::error::Result;
use crate::fingerprint::Hash;

impl Store {
    /// Forgets the verdicts on these units; gives how many there were. Units of class transient or bug have none: every
    /// run tries them.
    ///
    /// A verdict is known by its words: the quarantine has no key, and copies of one file share one verdict. Units that were
    /// rejected with the same words are tried again, too, which costs time and changes nothing.
    pub fn forget_verdicts(&self, units: &[Quarantined]) -> Result<usize> {
        let reasons: BTreeSet<&str> = units.iter().map(|unit| unit.reason.as_str()).collect();
        let verdicts = self.list("read verdicts", "SELECT key, bad FROM memo WHERE bad IS NOT NULL", [], |row| {
            Ok((row.get::<_, Hash>(0)?, row.get::<_, String>(1)?))
        })?;
        let says = |text: String| match Settled::from_memo(super::Memo::Bad(text)) {
            Settled::Fault { reason, .. } => reasons.contains(reason.as_str()),
            Settled::Rows(_) | Settled::Held(_) => false,
        };
        let keys: Vec<Hash> = verdicts.into_iter().filter_map(|(key, text)| says(text).then_some(key)).collect();
        if !keys.is_empty() {
            self.change("forget verdicts", "quarantine.retry", |manifest| {
                let mut forget = manifest.prepare_cached("DELETE FROM memo WHERE key = ?1")?;
                keys.iter().try_for_each(|key| forget.execute([key]).map(drop))
            })?;
        }
        Ok(keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{commit, temp};
    use super::super::{Class, Memo};
    use super::*;

    #[test]
    fn verdicts_with_these_words_are_forgotten_and_no_others() {
        let (_dir, path) = temp();
        let store = Store::open(path).unwrap();
        let reasons = ["no frames", "transient stage 1: no frames", "no frames: 3", "empty"];
        let keys = reasons.map(|reason| Hash::of_bytes(reason.as_bytes()));
        for (key, reason) in keys.iter().zip(reasons) {
            commit(&store, *key, Memo::Bad(reason.to_owned()), Vec::new());
        }
        let entry = |reason: &str| {
            let (unit, stage, reason) = ("a".to_owned(), "clips".to_owned(), reason.to_owned());
            Quarantined { unit, path: None, stage, class: Class::Bad, reason, run: 1 }
        };
        assert_eq!(store.forget_verdicts(&[entry("unheard of")]).unwrap(), 0);
        assert_eq!(store.forget_verdicts(&[entry("no frames")]).unwrap(), 2);
        let known: Vec<bool> = store.memos(&keys).unwrap().iter().map(Option::is_some).collect();
        assert_eq!(known, [false, false, true, true]);
    }
}
