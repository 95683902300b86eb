//! Any bytes as a pickle: no panic, no endless loop, no memory beyond measure; and what is read can be used.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vw2_pickle::{Limits, Value, parse, parse_first};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    if let Ok((value, used)) = parse_first(bytes, &limits) {
        assert!(used <= bytes.len());
        use_it(&value);
        // What follows the pickle makes no difference (a frame alone may announce bytes behind it).
        if let Ok(whole) = parse(&bytes[..used], &limits) {
            assert_eq!(format!("{whole:?}"), format!("{value:?}"));
        }
    }
});

/// Walks all of a value; whatever it claims must be so.
fn use_it(value: &Value) {
    assert!(!value.kind().is_empty());
    match value {
        Value::List(items) | Value::Tuple(items) => items.iter().for_each(use_it),
        Value::Dict(pairs) => {
            pairs.iter().for_each(|(key, value)| [key, value].into_iter().for_each(use_it));
            let key = pairs.iter().find_map(|(key, _)| key.as_str());
            assert!(key.is_none_or(|key| value.get(key).is_some()));
        }
        Value::Array(array) => {
            let elements = array.bytes.len() / array.dtype.size();
            assert_eq!(array.f32s().len(), elements);
            assert!(array.i64s().is_none_or(|values| values.len() == elements));
        }
        Value::Tensor(tensor) => {
            // Where the storage is small enough to be made up, the tensor lies in it.
            let size = tensor.storage.dtype.map_or(1, |dtype| dtype.size());
            if tensor.storage.elements < 1 << 16 {
                let bytes = tensor.row_major(&vec![0; tensor.storage.elements * size]).expect("it lies in its storage");
                assert_eq!(bytes.len(), tensor.elements() * tensor.dtype.size());
            }
        }
        _ => {}
    }
}
