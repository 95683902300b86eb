//! What a sequence does, step by step.

/// What one step does before it runs. Videos are numbered slots; `Add` fills one with a sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    Add(u64, usize),
    Remove(u64),
    Rename(u64, u64),
    Copy(u64, u64),
    /// To so many percent of its length.
    Truncate(u64, u64),
    /// One bit, so many per mille into the file.
    Flip(u64, u64),
    Touch(u64),
    /// `frames` of `clips`.
    Frames(u64),
    /// `size` of `frames`, which is transient.
    Size(u64),
    Shards(u64),
    Steps(u64),
    /// Other weights for `codes`, in the same file.
    Weights(u64),
    /// The stage is there, or is not.
    Stage(&'static str, bool),
    Workers(u64),
    Batch(u64),
    MemoryMib(u64),
    /// The run is killed after so long, and is run again.
    Kill(u64),
    /// The run finds so much room left on its disk, and is run again with enough.
    FullDisk(u64),
}

impl Edit {
    /// The run of this step does not get to its end.
    pub(super) fn interrupts(&self) -> bool {
        matches!(self, Edit::Kill(_) | Edit::FullDisk(_))
    }
}

/// Small numbers from a seed.
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Begins with a video, as nothing else has anything to do without one.
    pub(super) fn sequence(&mut self) -> Vec<Edit> {
        let first = Edit::Add(self.below(3), self.below(40) as usize);
        std::iter::once(first).chain((0..4).map(|_| self.edit())).collect()
    }

    fn edit(&mut self) -> Edit {
        let (slot, other) = (self.below(3), self.below(3));
        match self.below(26) {
            0..4 => Edit::Add(slot, self.below(40) as usize),
            4 => Edit::Remove(slot),
            5 => Edit::Rename(slot, other),
            6 => Edit::Copy(slot, other),
            7 => Edit::Truncate(slot, 10 + self.below(90)),
            8..10 => Edit::Flip(slot, self.below(1000)),
            10 => Edit::Touch(slot),
            11 => Edit::Frames([17, 9][self.below(2) as usize]),
            12 => Edit::Size([64, 32][self.below(2) as usize]),
            13 => Edit::Shards([4, 16][self.below(2) as usize]),
            14 => Edit::Steps(1 + self.below(2)),
            15 => Edit::Weights(self.below(2)),
            16..18 => Edit::Stage(["latents", "code_dataset", "ar"][self.below(3) as usize], self.below(2) == 0),
            18 => Edit::Workers(1 + self.below(4)),
            19 => Edit::Batch([1, 4][self.below(2) as usize]),
            20 => Edit::MemoryMib([300, 1024][self.below(2) as usize]),
            21..25 => Edit::Kill(self.below(900)),
            _ => Edit::FullDisk(self.below(400)),
        }
    }
}
