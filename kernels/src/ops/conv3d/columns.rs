//! The matrix with one column per output pixel: all inputs that the pixel is a weighted sum of (im2col). It is never
//! there as a whole; panels of it are copied where and when a product needs them.
//!
//! Depth: (channel, time tap, row tap, column tap), the last fastest, which is the order of a published weight.
//! Columns: (frame, row, column) of the output.

use std::ops::Range;

use crate::lanes::Lanes;

/// Along height or width: output index i and tap k meet source index `i * step + shifts[k]`, if there is such an index.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// Output indices.
    pub(super) count: usize,
    /// Source indices.
    pub(super) size: usize,
    pub(super) step: usize,
    pub(super) shifts: Vec<isize>,
}

impl Axis {
    fn meet(&self, index: usize, tap: usize) -> Option<usize> {
        let at = (index * self.step) as isize + self.shifts[tap];
        (0..self.size as isize).contains(&at).then_some(at as usize)
    }

    /// Every index meets itself: nothing is padded, skipped or mixed.
    fn is_plain(&self) -> bool {
        self.step == 1 && self.count == self.size && self.shifts == [0]
    }
}

pub(super) struct Columns<'a> {
    /// The source frame `[channels, height, width]` that an output frame meets at a time tap, taps fastest; `None` is a
    /// frame of zeros.
    frames: Vec<Option<&'a [f32]>>,
    time_taps: usize,
    channels: usize,
    rows: Axis,
    columns: Axis,
}

/// Neighbouring output pixels of one row, and where their values stand in a panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) frame: usize,
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) count: usize,
    pub(super) panel: usize,
    pub(super) lane: usize,
}

impl<'a> Columns<'a> {
    pub(super) fn new(
        frames: Vec<Option<&'a [f32]>>,
        time_taps: usize,
        channels: usize,
        rows: Axis,
        columns: Axis,
    ) -> Columns<'a> {
        let plane = channels * rows.size * columns.size;
        assert!(frames.iter().flatten().all(|frame| frame.len() == plane), "a frame has channels x height x width");
        Columns { frames, time_taps, channels, rows, columns }
    }

    /// The same matrix, where there are no taps in space, with a frame as one long row: runs need not end with the
    /// picture's rows. Right where results lie as the pixels do, without gaps.
    pub(super) fn in_one_row(mut self) -> Columns<'a> {
        if self.rows.is_plain() && self.columns.is_plain() {
            let size = self.rows.size * self.columns.size;
            self.rows = Axis { count: 1, size: 1, step: 1, shifts: vec![0] };
            self.columns = Axis { count: size, size, step: 1, shifts: vec![0] };
        }
        self
    }

    /// Lines of the matrix.
    pub(super) fn depth(&self) -> usize {
        self.groups() * self.taps()
    }

    /// Lines that share a channel and a time tap make a group, as they copy from one plane.
    pub(super) fn groups(&self) -> usize {
        self.channels * self.time_taps
    }

    /// Lines of a group.
    pub(super) fn taps(&self) -> usize {
        self.rows.shifts.len() * self.columns.shifts.len()
    }

    /// Output pixels.
    pub(super) fn count(&self) -> usize {
        self.frames.len() / self.time_taps * self.frame_count()
    }

    /// Output pixels of one frame.
    pub(super) fn frame_count(&self) -> usize {
        self.rows.count * self.columns.count
    }

    /// The runs of a range of pixels, in panels of `width` pixels each.
    pub(super) fn runs(&self, pixels: Range<usize>, width: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (line, column) = (pixel / self.columns.count, pixel % self.columns.count);
            let place = pixel - pixels.start;
            let count = (self.columns.count - column).min(width - place % width).min(pixels.end - pixel);
            runs.push(Run {
                frame: line / self.rows.count,
                row: line % self.rows.count,
                column,
                count,
                panel: place / width,
                lane: place % width,
            });
            pixel += count;
        }
        runs
    }

    /// Copies the lines of some [`Columns::groups`]: line k of them, in panel p, to `to + p * panel_step + k * line_step`.
    ///
    /// # Safety
    /// As [`Lanes`], and `to` is valid for all lanes of the runs in all lines.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Lanes>(
        &self,
        groups: Range<usize>,
        runs: &[Run],
        mut to: *mut f32,
        panel_step: usize,
        line_step: usize,
    ) {
        let taps = self.columns.shifts.len();
        for group in groups {
            let (channel, time_tap) = (group / self.time_taps, group % self.time_taps);
            let plane = channel * self.rows.size * self.columns.size;
            for row_tap in 0..self.rows.shifts.len() {
                for run in runs {
                    let frame = self.frames[run.frame * self.time_taps + time_tap];
                    let row = frame.zip(self.rows.meet(run.row, row_tap)).map(|(frame, row)| {
                        let start = plane + row * self.columns.size;
                        &frame[start..start + self.columns.size]
                    });
                    let first = (run.column * self.columns.step) as isize;
                    // SAFETY: the places are the caller's.
                    unsafe {
                        let mut to = to.add(run.panel * panel_step + run.lane);
                        for shift in &self.columns.shifts {
                            match row {
                                Some(row) => copy::<S>(row, first + shift, self.columns.step, to, run.count),
                                None => zero::<S>(to, run.count),
                            }
                            to = to.add(line_step);
                        }
                    }
                }
                // SAFETY: as above.
                to = unsafe { to.add(taps * line_step) };
            }
        }
    }
}

/// Values `first`, `first + step`, .. of a row; zeros where it has none.
///
/// # Safety
/// As [`Lanes`]; `to` is valid for `count` values.
#[inline(always)]
unsafe fn copy<S: Lanes>(row: &[f32], first: isize, step: usize, to: *mut f32, count: usize) {
    let step = step as isize;
    let size = row.len() as isize;
    if step == 1 && first >= 0 && first + count as isize <= size {
        // SAFETY: the line above has checked that the values lie in the row.
        return unsafe { copy_near::<S>(row.as_ptr().offset(first), to, count) };
    }
    let reach = |end: isize| (end - first + step - 1).max(0) / step;
    let low = reach(0).min(count as isize);
    let high = reach(size).clamp(low, count as isize);
    // SAFETY: `low..high` are those of the `count` values that lie in the row.
    unsafe {
        if low > 0 {
            zero::<S>(to, low as usize);
        }
        if high < count as isize {
            zero::<S>(to.offset(high), count - high as usize);
        }
        if low == high {
            return;
        }
        let from = row.as_ptr().offset(first + low * step);
        let (to, count) = (to.offset(low), (high - low) as usize);
        match step {
            1 => copy_near::<S>(from, to, count),
            2 => {
                let mut at = 0;
                while at < count {
                    S::copy_even(from.add(2 * at), to.add(at), (count - at).min(S::COUNT));
                    at += S::COUNT;
                }
            }
            _ => {
                for at in 0..count {
                    *to.add(at) = *from.offset(at as isize * step);
                }
            }
        }
    }
}

/// # Safety
/// As [`Lanes`]; both are valid for `count` values.
#[inline(always)]
unsafe fn copy_near<S: Lanes>(from: *const f32, to: *mut f32, count: usize) {
    let mut at = 0;
    // SAFETY: the caller's.
    unsafe {
        while at + S::COUNT <= count {
            S::store(S::load(from.add(at)), to.add(at));
            at += S::COUNT;
        }
        if at < count {
            S::copy_part(from.add(at), to.add(at), count - at);
        }
    }
}

/// # Safety
/// As [`Lanes`]; `to` is valid for `count` values.
#[inline(always)]
unsafe fn zero<S: Lanes>(to: *mut f32, count: usize) {
    let mut at = 0;
    // SAFETY: the caller's.
    unsafe {
        while at + S::COUNT <= count {
            S::store(S::splat(0.0), to.add(at));
            at += S::COUNT;
        }
        while at < count {
            *to.add(at) = 0.0;
            at += 1;
        }
    }
}
