//! What a sequence does, step by step.

/// What one step does before it runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    Write(u64, Vec<String>),
    Remove(u64),
    Rename(u64, u64),
    Copy(u64, u64),
    Truncate(u64),
    Touch(u64),
    /// Parameter `add` of `counts`, and suffix of `upper`.
    Add(u64),
    Suffix(&'static str),
    /// Other text in the weights file of `twice`.
    Weights(u64),
    /// A stage leaves the pipeline, or comes back: at its end, or from between others.
    Stage(Optional, bool),
    Workers(u64),
    Batch(u64),
    MemoryKib(u64),
    /// The run dies at its n-th durable write, and is run again.
    Die(u64),
    /// The run is killed after so long, and is run again.
    Kill(u64),
    /// The run finds so much room left on its disk, and is run again with enough.
    FullDisk(u64),
}

/// Stages that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Optional {
    Upper,
    Twice,
    Total,
    Book,
}

impl Edit {
    /// The run of this step does not get to its end.
    pub(super) fn interrupts(&self) -> bool {
        matches!(self, Edit::Die(_) | Edit::Kill(_) | Edit::FullDisk(_))
    }
}

/// Small numbers from a seed.
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    pub(super) fn sequence(&mut self) -> Vec<Edit> {
        (0..3 + self.below(5)).map(|_| self.edit()).collect()
    }

    fn edit(&mut self) -> Edit {
        let (file, other) = (self.below(5), self.below(5));
        match self.below(22) {
            0..5 => Edit::Write(file, (0..self.below(4)).map(|_| self.line()).collect()),
            5 => Edit::Remove(file),
            6 => Edit::Rename(file, other),
            7 => Edit::Copy(file, other),
            8 => Edit::Truncate(file),
            9 => Edit::Touch(file),
            10 => Edit::Add(self.below(3)),
            11 => Edit::Suffix(["", "!", "?"][self.below(3) as usize]),
            12 => Edit::Weights(self.below(3)),
            13..15 => {
                let all = [Optional::Upper, Optional::Twice, Optional::Total, Optional::Book];
                Edit::Stage(all[self.below(4) as usize], self.below(2) == 0)
            }
            15 => Edit::Workers(1 + self.below(4)),
            16 => Edit::Batch([1, 3, 8][self.below(3) as usize]),
            17 => Edit::MemoryKib([64, 1024, 65_536][self.below(3) as usize]),
            18 => Edit::Die(1 + self.below(14)),
            19..21 => Edit::Kill(self.below(60)),
            _ => Edit::FullDisk(self.below(96)),
        }
    }

    fn line(&mut self) -> String {
        match self.below(8) {
            0 => format!("BAD {}", self.below(3)),
            n => format!("line {}", n + self.below(5)),
        }
    }
}
