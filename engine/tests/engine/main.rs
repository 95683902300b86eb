//! The engine with toy stages over text files: no video, no model.

mod explaining;
mod failures;
mod incremental;
mod interrupted;
mod project;
mod toys;
mod upkeep;
mod watching;
