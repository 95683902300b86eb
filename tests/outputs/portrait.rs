//! What identifies results across processors: all that is exact, and sums over floats.

use std::fs::{self, File};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use arrow::util::display::array_value_to_string;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use vw2_data::media::VideoReader;

/// What was yielded, row by row.
#[derive(Default)]
pub(super) struct Portrait {
    exact: blake3::Hasher,
    has_any: bool,
    numbers: Vec<[f64; 2]>,
}

impl Portrait {
    pub(super) fn is_empty(&self) -> bool {
        !self.has_any
    }

    pub(super) fn to_json(&self) -> Value {
        // Seven digits: more differ between processors.
        let round = |number: &f64| format!("{number:.6e}").parse::<f64>().unwrap();
        let numbers: Vec<[f64; 2]> = self.numbers.iter().map(|[a, b]| [round(a), round(b)]).collect();
        json!({ "exact": self.exact.finalize().to_hex()[..16], "numbers": numbers })
    }

    pub(super) fn row(&mut self, id: &str, row: &RecordBatch) {
        self.text(id);
        self.columns(row);
    }

    /// A published file, by the kind that its name tells.
    pub(super) fn file(&mut self, name: &str, path: &Path) {
        self.text(name);
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension {
            "parquet" => {
                let batches = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
                batches.build().unwrap().for_each(|batch| self.columns(&batch.unwrap()));
            }
            "safetensors" => self.tensors(&fs::read(path).unwrap()),
            "json" | "svg" | "md" | "html" => self.prose(&fs::read_to_string(path).unwrap()),
            "png" => {
                let picture = image::load_from_memory(&fs::read(path).unwrap()).unwrap().to_rgb8();
                self.text(&format!("{:?}", picture.dimensions()));
                self.floats(picture.as_raw().iter().map(|value| f64::from(*value)));
            }
            "mp4" => {
                // The reader tells a video's format by its name.
                let folder = tempfile::tempdir().unwrap();
                let video = folder.path().join("video.mp4");
                fs::copy(path, &video).unwrap();
                let mut reader = VideoReader::open(&video).unwrap();
                let info = reader.info();
                self.text(&format!("{} {} {}", info.frames, info.width, info.height));
                let frames: Vec<u32> = (0..info.frames).collect();
                let mut pictures = Vec::new();
                let keep = &mut |frame, picture: &vw2_data::media::Picture| {
                    pictures.push((frame, picture.planes[0].data.clone()));
                    Ok(())
                };
                reader.read(&frames, keep).unwrap();
                pictures.sort();
                self.floats(pictures.iter().flat_map(|(_, luma)| luma).map(|value| f64::from(*value)));
            }
            other => panic!("no portrait is known of `.{other}` files; add one here"),
        }
    }

    fn columns(&mut self, batch: &RecordBatch) {
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            self.text(field.name());
            self.text(&format!("{} {}", column.data_type(), column.len()));
            self.column(column);
        }
    }

    fn column(&mut self, column: &ArrayRef) {
        match column.data_type() {
            DataType::Float16 => self.floats(column.as_primitive::<Float16Type>().values().iter().map(|f| f.to_f64())),
            DataType::Float32 => {
                self.floats(column.as_primitive::<Float32Type>().values().iter().map(|f| f64::from(*f)))
            }
            DataType::Float64 => self.floats(column.as_primitive::<Float64Type>().values().iter().copied()),
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                self.text(&format!("{:?}", list.offsets().as_ref()));
                self.column(list.values());
            }
            DataType::LargeList(_) => {
                let list = column.as_list::<i64>();
                self.text(&format!("{:?}", list.offsets().as_ref()));
                self.column(list.values());
            }
            DataType::FixedSizeList(..) => self.column(column.as_fixed_size_list().values()),
            DataType::Struct(_) => column.as_struct().columns().iter().for_each(|column| self.column(column)),
            _ => {
                for at in 0..column.len() {
                    let text = array_value_to_string(column, at).unwrap();
                    // The hash of what was trained, or of a file that was made of floats, is another one elsewhere.
                    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                    self.text(if is_hash { "a hash" } else { &text });
                }
            }
        }
    }

    /// Names, shapes and types exactly, values as floats.
    fn tensors(&mut self, bytes: &[u8]) {
        let (length, rest) = bytes.split_at(8);
        let (header, values) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
        let mut all = Vec::new();
        for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            self.text(&format!("{name} {} {}", tensor["dtype"], tensor["shape"]));
            let at = |end: usize| tensor["data_offsets"][end].as_u64().unwrap() as usize;
            if tensor["dtype"] == "F32" {
                let floats = values[at(0)..at(1)].chunks_exact(4);
                all.extend(floats.map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))));
            }
        }
        self.floats(all.into_iter());
    }

    /// Numbers in it as floats, and the rest exactly.
    fn prose(&mut self, text: &str) {
        let (mut words, mut numbers) = (String::new(), Vec::new());
        let is_number = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
        for part in text.split_inclusive(|c: char| !is_number(c)) {
            let digits = part.trim_end_matches(|c: char| !is_number(c));
            match digits.parse::<f64>() {
                Ok(number) => {
                    numbers.push(number);
                    words += "#";
                }
                Err(_) => words += digits,
            }
            words += &part[digits.len()..];
        }
        self.text(&words);
        self.floats(numbers.into_iter());
    }

    fn text(&mut self, text: &str) {
        self.has_any = true;
        self.exact.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }

    fn floats(&mut self, values: impl Iterator<Item = f64>) {
        let (mut sizes, mut projection, mut draw) = (0.0, 0.0, 1_u64);
        for value in values {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sizes += value.abs();
            projection += value * ((draw >> 40) as f64 / f64::from(1 << 23) - 1.0);
        }
        self.numbers.push([sizes, projection]);
    }
}
