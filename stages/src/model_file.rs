//! Where a stage's model comes from: a weights file given as a parameter, or the checkpoint of a training stage that is
//! connected to a port. Either is loaded once per operator.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use vw2_data::{Checkpoints, Frames};
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::{Context, InputFile, StageError, Unit};
use vw2_engine::store::Blobs;
use vw2_kernels::device;
use vw2_models::weights::Weights;

type Load<M> = fn(&Weights, &Device) -> Result<M, StageError>;

/// The float type in which a model computes. Sums within an op are f32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    #[default]
    F32,
    /// As upstream's models, with 8 bits of each value: one product on tensor cores where f32 takes three.
    Bf16,
}

impl Arithmetic {
    pub(crate) fn is_f32(&self) -> bool {
        *self == Arithmetic::F32
    }

    /// The type, if the device has it.
    pub(crate) fn on(self, device: &Device) -> Result<DType, StageError> {
        let dtype = match self {
            Arithmetic::F32 => DType::F32,
            Arithmetic::Bf16 => DType::BF16,
        };
        match device.supports_dtype(dtype) {
            true => Ok(dtype),
            false => Err("`arithmetic = \"bf16\"`: this device has no bf16; CPUs and CUDA devices have".into()),
        }
    }
}

/// A model and the device it lives on.
pub(crate) struct ModelFile<M> {
    device: Device,
    blobs: Blobs,
    port: &'static str,
    load: Load<M>,
    file: Option<PathBuf>,
    loaded: Option<(Hash, M)>,
}

impl<M> ModelFile<M> {
    /// Opens the device, and loads the file where one is given; a checkpoint is loaded with the first unit.
    pub(crate) fn new(
        ctx: &Context,
        file: Option<&InputFile>,
        port: &'static str,
        load: Load<M>,
    ) -> Result<ModelFile<M>, StageError> {
        let device = device::parse(&ctx.device)?;
        let file = file.map(|f| f.0.clone());
        let mut model = ModelFile { device, blobs: ctx.blobs.clone(), port, load, file, loaded: None };
        if let Some(path) = model.file.clone() {
            model.open(&path, Hash::of_file(&path)?)?;
        }
        Ok(model)
    }

    fn open(&mut self, path: &Path, content: Hash) -> Result<(), StageError> {
        let weights = Weights::open(path)?;
        self.loaded = Some((content, (self.load)(&weights, &self.device)?));
        Ok(())
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Whether a file is given or a checkpoint connected.
    pub(crate) fn is_given(&self, unit: &Unit) -> bool {
        self.file.is_some() || unit.table(self.port).is_some()
    }

    /// The model for this unit: from the connected checkpoint if there is one, else from the file.
    pub(crate) fn get(&mut self, unit: &Unit) -> Result<(&M, &Device), StageError> {
        if let Some(table) = unit.table(self.port) {
            let row = table.row(0)?;
            let blob: Hash = Checkpoints::view(&row)?.checkpoint(0).blob.parse()?;
            if self.loaded.as_ref().is_none_or(|(content, _)| *content != blob) {
                let path = self.blobs.path(&blob);
                self.open(&path, blob)?;
            }
        }
        match &self.loaded {
            Some((_, model)) => Ok((model, &self.device)),
            None => {
                Err(format!("no weights: set `weights`, or connect a training stage to port `{}`", self.port).into())
            }
        }
    }

    /// The content hash of the weights that [`ModelFile::get`] gave last.
    pub(crate) fn content(&self) -> Option<Hash> {
        self.loaded.as_ref().map(|(content, _)| *content)
    }
}

/// The clip of a batch of one row as a model's input, f32 [1, 3, T, H, W] in [-1, 1].
pub(crate) fn clip_tensor(frames: &Frames<'_>, device: &Device) -> Result<Tensor<5>, StageError> {
    let [t, h, w, _] = frames.shape(0);
    Ok(vw2_kernels::normalise(frames.pixels(0), [t, h, w], device)?)
}

/// A tensor's values as f32, row-major.
pub(crate) fn values<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("converted to f32 above")
}

/// An estimate of a model's peak bytes on a clip: its pixels in f32 times the widest activation's channels over 3.
pub(crate) fn activation_bytes(unit: &Unit, channels: u64) -> u64 {
    match Frames::view(unit.row("frames")) {
        Ok(frames) => frames.pixels(0).len() as u64 / 3 * 4 * channels,
        Err(_) => 1 << 20, // a view that fails is reported when the unit is processed
    }
}
