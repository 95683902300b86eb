//! A dLDM while it is trained: beside it stands what helps it to learn and is thrown away afterwards.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use vw2_models::dldm::Dldm;
use vw2_models::nn::{Init, Linear};
use vw2_models::weights::{Named, Names, Visitor};

/// A dLDM and a linear map from a cell of its maps to the pixels of that cell.
#[derive(Module, Debug)]
pub(crate) struct Pupil {
    pub(crate) dldm: Dldm,
    cells: Linear,
}

impl Pupil {
    pub(crate) fn new(dldm: Dldm, device: &Device) -> Pupil {
        let config = dldm.config();
        let side = config.spatial_compression;
        let pixels = COLOURS * config.temporal_compression * side * side;
        let cells = Linear::zero(&mut Init::new(device, 0), config.encoder_out_dim, pixels);
        Pupil { dldm, cells }
    }

    /// Each latent frame's pixels from its own map, cell by cell: `[B, C, K, h, w] -> [B, 3, 1 + 4 (K-1), H, W]`. The first
    /// map stands for one frame, as the clip's first frame fills it alone.
    pub(crate) fn cells(&self, maps: Tensor<5>) -> Tensor<5> {
        let [b, _, k, h, w] = maps.dims();
        let config = self.dldm.config();
        let (steps, side) = (config.temporal_compression, config.spatial_compression);
        let pixels = self.cells.forward(maps.permute([0, 2, 3, 4, 1]));
        let pixels = pixels.reshape([b, k, h, w, COLOURS, steps, side, side]).permute([0, 4, 1, 5, 2, 6, 3, 7]);
        let frames = k * steps;
        pixels.reshape([b, COLOURS, frames, h * side, w * side]).narrow(2, steps - 1, frames - steps + 1)
    }
}

const COLOURS: usize = 3;

impl Named for Pupil {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        self.dldm.walk(names);
        names.child("cells", &mut self.cells);
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::TensorData;
    use vw2_models::dldm::DldmConfig;

    use super::*;
    use crate::model_file::values;

    #[test]
    fn a_cell_s_pixels_stand_where_the_cell_is() {
        let device = Device::flex();
        let dldm = Dldm::new(&DldmConfig::preset("tiny").unwrap(), &device, 1).unwrap();
        let width = dldm.config().encoder_out_dim;
        let mut pupil = Pupil::new(dldm, &device);
        // Channel 0 of a cell lights its red pixel of row 2, column 5 in the last of its four frames.
        let place = (3 * 16 + 2) * 16 + 5;
        let mut weight = vec![0.0; 3 * 4 * 16 * 16 * width];
        weight[place * width] = 1.0;
        let weight = Tensor::from_data(TensorData::new(weight, [3 * 4 * 16 * 16, width]), &device);
        pupil.cells.weight = Param::from_tensor(weight);
        let mut maps = vec![0.0; width * 2 * 2 * 2];
        maps[0b111] = 1.0; // channel 0 of the second map's last cell
        let maps = Tensor::from_data(TensorData::new(maps, [1, width, 2, 2, 2]), &device);
        let video = pupil.cells(maps);
        assert_eq!(video.dims(), [1, 3, 5, 32, 32]);
        let lit: Vec<usize> = values(video).iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
        assert_eq!(lit, [(4 * 32 + 18) * 32 + 21]);
    }
}
