//! The tables that stages exchange, in the order of the data's way. Their schemas live in `vw2-data`.

use vw2_data::{Checkpoints, Clips, Codes, Evaluations, Frames, Images, Latents, Rollouts, Shards, Videos};
use vw2_engine::stage::Table;

pub static VIDEOS: Table = Table { name: Videos::NAME, schema: Videos::schema };
pub static IMAGES: Table = Table { name: Images::NAME, schema: Images::schema };
pub static CLIPS: Table = Table { name: Clips::NAME, schema: Clips::schema };
pub static FRAMES: Table = Table { name: Frames::NAME, schema: Frames::schema };
pub static LATENTS: Table = Table { name: Latents::NAME, schema: Latents::schema };
pub static CODES: Table = Table { name: Codes::NAME, schema: Codes::schema };
pub static SHARDS: Table = Table { name: Shards::NAME, schema: Shards::schema };
pub static CHECKPOINTS: Table = Table { name: Checkpoints::NAME, schema: Checkpoints::schema };
pub static ROLLOUTS: Table = Table { name: Rollouts::NAME, schema: Rollouts::schema };
pub static EVALUATIONS: Table = Table { name: Evaluations::NAME, schema: Evaluations::schema };
