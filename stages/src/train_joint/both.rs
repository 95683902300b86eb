//! dLDM and DiT as one model: what is trained together, and what stands in one file.
//!
//! Names: `net.*`, `net_ctrl.*` and `ldm_net.network.*`, as in upstream's training checkpoints (spec 7.6).

use burn::module::Module;
use burn::tensor::Device;
use vw2_engine::stage::StageError;
use vw2_models::dit::{DitConfig, VideoDit};
use vw2_models::dldm::Dldm;
use vw2_models::weights::{Named, Names, Visitor, Weights, device_of};

/// Patterns of the names of base, control branch and dLDM.
pub(super) const PARTS: [&str; 3] = ["net.*", "net_ctrl.*", "ldm_net.*"];

/// Both models, on one device.
#[derive(Module, Debug)]
pub(super) struct Both {
    pub(super) dit: VideoDit,
    pub(super) dldm: Dldm,
}

impl Both {
    /// From their checkpoints, which may be one.
    pub(super) fn load(dldm: &Weights, dit: &Weights, device: &Device) -> Result<Both, StageError> {
        let both = Both { dit: VideoDit::load(dit, device)?, dldm: Dldm::load(dldm, device)? };
        let (takes, gives) = (both.dit.config().crossattn_emb_channels, both.dldm.config().dit_dim);
        if takes != gives {
            let path = dit.path().display();
            return Err(format!("{path}: takes tokens of width {takes}, but the dLDM's are {gives} wide").into());
        }
        Ok(both)
    }

    /// A dLDM's checkpoint, and a DiT of this configuration that fits it.
    pub(super) fn with_fresh_dit(
        dldm: &Weights,
        config: &DitConfig,
        device: &Device,
        seed: u64,
    ) -> Result<Both, StageError> {
        let dldm = Dldm::load(dldm, device)?;
        let config = DitConfig { crossattn_emb_channels: dldm.config().dit_dim, ..config.clone() };
        Ok(Both { dit: VideoDit::new(&config, device, seed)?, dldm })
    }

    /// With a fresh control branch, where the DiT has none.
    pub(super) fn with_branch(self, config: &DitConfig, device: &Device, seed: u64) -> Result<Both, StageError> {
        let Both { dit, dldm } = self;
        let dit = match dit.config().control_blocks {
            0 => dit.with_fresh_branch(config.control_blocks, device, seed)?,
            _ => dit,
        };
        Ok(Both { dit, dldm })
    }

    /// Whether it stands on an autodiff device.
    pub(super) fn is_trained(&self) -> bool {
        device_of(&mut self.dldm.clone()).is_some_and(|device| device.is_autodiff())
    }
}

impl Named for Both {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.dit.walk(names);
        names.child("ldm_net.network", &mut self.dldm);
    }
}
