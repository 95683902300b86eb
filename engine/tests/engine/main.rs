//! The engine with toy stages over text files: no video, no model.

mod contract;
mod explaining;
mod failures;
mod full_disk;
mod incremental;
mod interrupted;
mod on_change;
mod project;
mod toys;
mod upkeep;
mod watching;
