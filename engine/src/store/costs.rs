//! What units have cost so far.

use super::Store;
use crate::error::Result;

/// What the remembered units of one stage cost, all together.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    pub stage: String,
    pub kind: String,
    pub units: u64,
    /// Time in the stage's operators.
    pub seconds: f64,
    /// Length of their rows as Arrow IPC.
    pub size_bytes: u64,
}

impl Store {
    /// By stage and kind, of all pipelines; units whose data was bad are left out.
    pub fn costs(&self) -> Result<Vec<Cost>> {
        let sql = "SELECT stage, kind, count(*), total(seconds),
                          coalesce(sum((SELECT sum(len) FROM memo_row r WHERE r.key = m.key)), 0)
                   FROM memo m WHERE bad IS NULL GROUP BY stage, kind ORDER BY stage, kind";
        self.list("sum up costs", sql, [], |row| {
            let (units, size_bytes) = (row.get::<_, i64>(2)? as u64, row.get::<_, i64>(4)? as u64);
            Ok(Cost { stage: row.get(0)?, kind: row.get(1)?, units, seconds: row.get(3)?, size_bytes })
        })
    }
}
