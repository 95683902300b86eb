use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use tempfile::TempDir;

use super::*;
use crate::error::Error;
use crate::nn::{Init, LayerNorm, Linear};

#[derive(Module, Debug)]
struct Model {
    lin: Linear,
    norm: LayerNorm,
}

impl Model {
    fn new(seed: u64) -> Model {
        let init = &mut Init::new(&Device::flex(), seed);
        Model { lin: Linear::new(init, 2, 3, true), norm: LayerNorm::new(init, 3) }
    }
}

impl Named for Model {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("lin", &mut self.lin);
        names.child("norm", &mut self.norm);
        names.note("norm._arange", &Note::I64(vec![0, 1]));
    }
}

fn floats(values: &[f32], shape: &[usize]) -> TensorData {
    TensorData::new(values.to_vec(), shape)
}

fn write(folder: &TempDir, tensors: &[(&str, TensorData)]) -> PathBuf {
    let path = folder.path().join("weights.safetensors");
    let tensors: Vec<_> = tensors.iter().map(|(name, data)| ((*name).to_owned(), data.clone())).collect();
    save_safetensors(&path, &tensors, &BTreeMap::new(), SaveType::F32).unwrap();
    path
}

fn values(model: &Model) -> Vec<(String, Vec<f32>)> {
    let floats = collect(model).into_iter().filter(|(name, _)| !name.ends_with("_arange"));
    floats.map(|(name, data)| (name, data.try_into_vec().unwrap())).collect()
}

#[test]
fn a_saved_model_loads_unchanged_as_f32_and_rounded_as_f16() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = Model::new(1);
    for (save_type, tolerance) in [(SaveType::F32, 0.0), (SaveType::F16, 5e-4)] {
        save_model(&path, &saved, &BTreeMap::from([("width", 3)]), save_type).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(config_of(&weights, "model").unwrap(), Some(BTreeMap::from([("width".to_owned(), 3)])));
        assert_eq!(weights.i64s("norm._arange").unwrap(), [0, 1]);
        let mut loaded = Model::new(2);
        assert_ne!(values(&loaded), values(&saved));
        load(&mut loaded, &weights, "").unwrap();
        for ((name, ours), (_, saved)) in values(&loaded).into_iter().zip(values(&saved)) {
            assert!(ours.iter().zip(&saved).all(|(a, b)| (a - b).abs() <= tolerance), "{name}: {ours:?}, {saved:?}");
        }
    }
}

#[test]
fn equal_content_gives_equal_bytes() {
    let metadata: BTreeMap<String, String> = (0..20).map(|key| (format!("key{key}"), "x".to_owned())).collect();
    let mut tensors = collect(&Model::new(1));
    let bytes = to_safetensors(&tensors, &metadata, SaveType::F32).unwrap();
    tensors.reverse();
    assert_eq!(bytes, to_safetensors(&tensors, &metadata, SaveType::F32).unwrap());
    // The crate that defined the format reads it.
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), tensors.len());
}

#[test]
fn all_that_differs_stands_in_one_error() {
    let folder = TempDir::new().unwrap();
    let path = write(
        &folder,
        &[
            ("net.lin.weight", floats(&[0.0; 6], &[2, 3])),
            ("net.lin.bias", TensorData::new(vec![1i64, 2, 3], [3])),
            ("net.norm.weight", floats(&[0.0; 3], &[3])),
            ("net.extra.weight", floats(&[0.0], &[1])),
            ("net.quantizer._levels", TensorData::new(vec![8i32], [1])),
            ("other.lin.bias", floats(&[0.0], &[1])),
        ],
    );
    let weights = Weights::open(&path).unwrap();
    let Err(Error::Mismatch(mismatch)) = load(&mut Model::new(1), &weights, "net.") else { panic!("it fits") };
    assert_eq!(
        mismatch.to_string().replace(&path.display().to_string(), "FILE"),
        "weights FILE do not fit the model (names below `net.`)\n\
         1 missing:\n  net.norm.bias [3]\n\
         1 unexpected:\n  net.extra.weight\n\
         1 of another shape:\n  net.lin.weight: wanted [3, 2], found [2, 3]\n\
         1 of another type:\n  net.lin.bias: wanted floats, found I64\n\
         use the configuration that the weights were made with, or other weights"
    );
}

#[test]
fn long_lists_of_names_are_cut() {
    let folder = TempDir::new().unwrap();
    let names: Vec<String> = (0..100).map(|index| format!("x{index:03}")).collect();
    let path = write(&folder, &names.iter().map(|name| (name.as_str(), floats(&[0.0], &[1]))).collect::<Vec<_>>());
    let error = load(&mut Model::new(1), &Weights::open(path).unwrap(), "").unwrap_err().to_string();
    assert!(
        error.contains("4 missing") && error.contains("100 unexpected") && error.contains("and 92 more"),
        "{error}"
    );
}

#[test]
fn the_prefix_is_what_stands_before_a_known_name() {
    let folder = TempDir::new().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["lin.weight"], ""),
        (&["network.lin.weight"], "network."),
        (&["ldm_net.network.lin.weight", "net.x_lin.weight"], "ldm_net.network."),
        (&["ema.a.lin.weight", "net.lin.weight"], "net."),
        (&["other"], ""),
    ];
    for (names, prefix) in cases {
        let tensors: Vec<_> = names.iter().map(|name| (*name, floats(&[0.0], &[1]))).collect();
        assert_eq!(Weights::open(write(&folder, &tensors)).unwrap().prefix_of("lin.weight"), prefix, "{names:?}");
    }
}

/// `nested.pt` is what `torch.save({"step": 7, "model": state_dict})` writes: a transposed f32 matrix, f16, bf16, i64.
#[test]
fn a_nested_torch_checkpoint_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nested.pt");
    let weights = Weights::open(path).unwrap();
    let names: Vec<&str> = weights.names().collect();
    let prefix = weights.prefix_of("lin.weight");
    assert_eq!(prefix, "model.network.");
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(weights.dtype("model.network.norm.weight"), Some(Dtype::BF16));
    let floats = |name: &str| weights.f32s(&format!("{prefix}{name}")).unwrap();
    assert_eq!(weights.shape("model.network.lin.weight"), Some(&[3, 2][..]));
    assert_eq!(floats("lin.weight"), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(floats("lin.bias"), [0.5, -2.0]);
    assert_eq!(floats("norm.weight"), [1.5, -3.0]);
    assert_eq!(weights.i64s("model.network.patcher._arange").unwrap(), [0, 1]);
}

#[test]
fn a_damaged_file_is_an_error_that_says_how() {
    let folder = TempDir::new().unwrap();
    let good = std::fs::read(write(&folder, &[("a", floats(&[1.0, 2.0], &[2]))])).unwrap();
    let header = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 8]].concat();
    let cases: [(Vec<u8>, &str); 8] = [
        (vec![], "neither a safetensors file nor a PyTorch checkpoint"),
        (b"not weights at all".to_vec(), "neither a safetensors file nor a PyTorch checkpoint"),
        (good[..good.len() - 1].to_vec(), "`a` ends beyond the file's"),
        (good[..20].to_vec(), "the header claims"),
        (header("{\"a\": nonsense}"), "its header is not JSON"),
        (header(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#), "does not fill bytes 0..8"),
        (header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#), "does not fill bytes 8..0"),
        (header(r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#), "has type F8_E4M3"),
    ];
    for (bytes, reason) in cases {
        let path = folder.path().join("bad");
        std::fs::write(&path, bytes).unwrap();
        let error = Weights::open(&path).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("bad"), "wanted `{reason}`: {error}");
    }
    assert!(matches!(Weights::open(folder.path().join("none")), Err(Error::Read { .. })));
}

#[test]
fn parts_join_and_a_name_in_two_parts_is_refused() {
    let folder = TempDir::new().unwrap();
    let part = |file: &str, name: &str| {
        let path = folder.path().join(file);
        let tensors = [(name.to_owned(), floats(&[1.0], &[1]))];
        save_safetensors(&path, &tensors, &BTreeMap::new(), SaveType::F32).unwrap();
        path
    };
    let (a, b, again) = (part("a", "x"), part("b", "y"), part("c", "x"));
    assert_eq!(Weights::open_parts(&[&a, &b]).unwrap().names().collect::<Vec<_>>(), ["x", "y"]);
    let error = Weights::open_parts(&[a, b, again]).unwrap_err().to_string();
    assert!(error.contains("`x` also stands in"), "{error}");
}

#[test]
fn loaded_parameters_keep_whether_they_train() {
    let folder = TempDir::new().unwrap();
    let mut param: Param<Tensor<1>> = Init::new(&Device::flex().autodiff(), 0).buffer([2], vec![1.0, 2.0]);
    let mut norm = LayerNorm::new(&mut Init::new(&Device::flex().autodiff(), 0), 2);
    struct Both<'a>(&'a mut Param<Tensor<1>>, &'a mut LayerNorm);
    impl Named for Both<'_> {
        fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
            names.param("buffer", self.0);
            names.child("norm", self.1);
        }
    }
    let tensors = ["buffer", "norm.weight", "norm.bias"].map(|name| (name, floats(&[3.0, 4.0], &[2])));
    load(&mut Both(&mut param, &mut norm), &Weights::open(write(&folder, &tensors)).unwrap(), "").unwrap();
    assert!(!param.is_require_grad() && norm.weight.is_require_grad());
    let x = Tensor::<2>::from_floats([[0.0, 1.0]], &norm.bias.device());
    let grads = (norm.forward(x) * param.val().unsqueeze()).sum().backward();
    let bias: Vec<f32> = norm.bias.grad(&grads).unwrap().into_data().try_into_vec().unwrap();
    assert_eq!(bias, [3.0, 4.0]);
}

#[test]
fn weights_of_linear_maps_stay_bf16_and_count_in_f32() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    save_model(&path, &Model::new(1), &(), SaveType::F32).unwrap();
    let weights = Weights::open(&path).unwrap();
    let x = Tensor::<2>::from_floats([[0.3, -2.0]], &Device::flex());
    let [wide, narrow] = [Precision::F32, Precision::Bf16].map(|precision| {
        let mut model = Model::new(2);
        load_as(&mut model, &weights, "", precision).unwrap();
        let types = [model.lin.weight.dtype(), model.lin.bias.as_ref().unwrap().dtype(), model.norm.weight.dtype()];
        let matrix = if precision == Precision::F32 { DType::F32 } else { DType::BF16 };
        assert_eq!(types, [matrix, DType::F32, DType::F32]);
        let y = model.lin.forward(x.clone());
        assert_eq!(y.dtype(), DType::F32);
        y.into_data().try_into_vec::<f32>().unwrap()
    });
    // With 8 significant bits, a weight below 1 is off by at most 2^-9.
    let bound = (0.3 + 2.0) / 512.0;
    assert!(wide.iter().zip(&narrow).all(|(a, b)| (a - b).abs() <= bound), "{wide:?} {narrow:?}");
    assert_ne!(wide, narrow);
}

#[test]
fn weights_that_do_not_fit_leave_the_model_as_it_was() {
    let folder = TempDir::new().unwrap();
    let weights = Weights::open(write(&folder, &[("lin.weight", floats(&[0.0; 6], &[3, 2]))])).unwrap();
    let mut model = Model::new(1);
    load(&mut model, &weights, "").unwrap_err();
    assert_eq!(values(&model), values(&Model::new(1)));
}

#[test]
fn an_embedded_dldm_is_left_over_unless_it_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let names = ["lin.weight", "lin.bias", "norm.weight", "norm.bias"];
    let shapes: [&[usize]; 4] = [&[3, 2], &[3], &[3], &[3]];
    let mut tensors = Vec::new();
    for prefix in ["", "ldm_net.network."] {
        for (name, shape) in names.iter().zip(shapes) {
            tensors.push((format!("{prefix}{name}"), floats(&vec![0.5; shape.iter().product()], shape)));
        }
    }
    tensors.push(("ldm_net.network.extra".to_owned(), floats(&[0.0], &[1])));
    let tensors: Vec<_> = tensors.iter().map(|(name, data)| (name.as_str(), data.clone())).collect();
    let weights = Weights::open(write(&folder, &tensors)).unwrap();
    load(&mut Model::new(1), &weights, "").unwrap();
    let mismatch = compare(&mut Model::new(1), &weights, "ldm_net.network.");
    assert_eq!((mismatch.count(), mismatch.unexpected), (1, vec!["ldm_net.network.extra".to_owned()]));
}
