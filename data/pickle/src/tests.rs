use crate::writer::Writer;
use crate::{Array, Dtype, Limits, Value, parse, parse_first};

fn read(bytes: &[u8]) -> Value {
    parse(bytes, &Limits::default()).unwrap()
}

fn text(text: &str) -> Value {
    Value::Str(text.into())
}

fn ints(values: &[i64]) -> Vec<Value> {
    values.iter().map(|value| Value::Int(*value)).collect()
}

fn array(value: &Value) -> &Array {
    let Value::Array(array) = value else { panic!("{value:?}") };
    array
}

/// What Python's `pickle.dumps` makes of the same value in protocols 0 to 5.
#[test]
fn every_protocol_gives_the_same_value() {
    // {"n": None, "t": (True, False), "i": [1, -2, 70000, 2**40], "f": 0.5, "s": "ü\n", "b": b"\x00\xff"}
    let samples: [&[u8]; 6] = [
        include_bytes!("../samples/plain.0.pickle"),
        include_bytes!("../samples/plain.1.pickle"),
        include_bytes!("../samples/plain.2.pickle"),
        include_bytes!("../samples/plain.3.pickle"),
        include_bytes!("../samples/plain.4.pickle"),
        include_bytes!("../samples/plain.5.pickle"),
    ];
    for sample in samples {
        let value = read(sample);
        assert_eq!(value.get("n"), Some(&Value::None));
        assert_eq!(value.get("t"), Some(&Value::Tuple(vec![Value::Bool(true), Value::Bool(false)])));
        assert_eq!(value.get("i"), Some(&Value::List(ints(&[1, -2, 70_000, 1 << 40]))));
        assert_eq!(value.get("f"), Some(&Value::Float(0.5)));
        assert_eq!(value.get("s"), Some(&text("ü\n")));
        assert_eq!(value.get("b"), Some(&Value::Bytes([0, 0xFF].into())));
        assert_eq!(value.get("x"), None);
    }
}

/// What numpy makes of arrays in protocols 0, 2, 4 and 5: see `samples/make.py`.
#[test]
fn numpy_arrays_come_out_row_major_and_little_endian() {
    let samples: [&[u8]; 5] = [
        include_bytes!("../samples/numpy.0.pickle"),
        include_bytes!("../samples/numpy.2.pickle"),
        include_bytes!("../samples/numpy.4.pickle"),
        include_bytes!("../samples/numpy.5.pickle"),
        include_bytes!("../samples/numpy1.5.pickle"),
    ];
    let zero_to_five = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    for sample in samples {
        let value = read(sample);
        for (key, dtype) in [
            ("f2", Dtype::F16),
            ("f4", Dtype::F32),
            ("f8", Dtype::F64),
            ("u1", Dtype::U8),
            ("i1", Dtype::I8),
            ("u2", Dtype::U16),
            ("i2", Dtype::I16),
            ("u4", Dtype::U32),
            ("i4", Dtype::I32),
            ("u8", Dtype::U64),
            ("i8", Dtype::I64),
            ("big_f4", Dtype::F32),
            ("big_i2", Dtype::I16),
            ("column_major", Dtype::F32),
            ("big_column_major", Dtype::I32),
        ] {
            let array = array(value.get(key).unwrap());
            assert_eq!(
                (array.dtype, &array.shape[..], array.f32s()),
                (dtype, &[2, 3][..], zero_to_five.into()),
                "{key}"
            );
            assert_eq!(array.i64s(), (!dtype.is_float()).then(|| vec![0, 1, 2, 3, 4, 5]), "{key}");
        }
        let permuted = array(value.get("permuted").unwrap());
        assert_eq!(permuted.shape, [3, 2, 4]);
        let wanted: Vec<f32> =
            (0..3).flat_map(|b| (0..2).flat_map(move |a| (0..4).map(move |c| (a * 12 + b * 4 + c) as f32))).collect();
        assert_eq!(permuted.f32s(), wanted);
        assert_eq!(array(value.get("bool").unwrap()).i64s(), Some(vec![1, 0]));
        assert_eq!(array(value.get("half").unwrap()).f32s()[..4], [1.5, -65504.0, 5.960_464_5e-8, f32::INFINITY]);
        assert!(array(value.get("half").unwrap()).f32s()[4].is_nan());
        assert_eq!(array(value.get("empty").unwrap()).shape, [0, 1024]);
        assert_eq!(array(value.get("no_axes").unwrap()).f32s(), [7.0]);
        let scalars = [Value::Float(0.1), Value::Float(0.5), Value::Int(-3), Value::Bool(true)];
        assert_eq!(value.get("scalars"), Some(&Value::List(scalars.into())));
        assert_eq!(value.get("set"), Some(&Value::List(ints(&[5]))));
    }
}

#[test]
fn tensors_tell_where_they_lie() {
    let value = read(&Writer::new().op(b"]q\0").text("w").op(b"0").tensor(10, 1, &[2, 3], &[1, 3]).op(b"a").stop());
    let Value::Tensor(tensor) = &value.as_items().unwrap()[0] else { panic!("{value:?}") };
    assert_eq!((&*tensor.storage.key, tensor.storage.elements, tensor.dtype), ("0", 10, Dtype::F32));
    assert_eq!((tensor.offset, &tensor.shape[..], &tensor.strides[..]), (1, &[2, 3][..], &[1, 3][..]));
    let stored: Vec<u8> = (0..10u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    assert_eq!(tensor.dtype.f32s(&tensor.row_major(&stored).unwrap()), [1.0, 4.0, 7.0, 2.0, 5.0, 8.0]);
    assert_eq!(tensor.row_major(&stored[..32]), None);
    // Repeated elements, as `expand` makes them.
    read(&Writer::new().tensor(1, 0, &[1000, 1000], &[0, 0]).stop());
    read(&Writer::new().tensor(0, 0, &[0, i32::MAX, i32::MAX], &[i32::MAX, i32::MAX, 1]).stop());
}

/// What `pickle.dumps` makes of tensors, without `torch.save`: see `samples/make.py`.
#[test]
fn tensors_that_were_pickled_by_themselves_bring_their_bytes() {
    for sample in [&include_bytes!("../samples/torch.2.pickle")[..], include_bytes!("../samples/torch.5.pickle")] {
        let value = read(sample);
        let floats = |key: &str| {
            let Some(Value::Tensor(tensor)) = value.get(key) else { panic!("{key}: {value:?}") };
            let bytes = tensor.row_major(tensor.storage.bytes().unwrap()).unwrap();
            (tensor.shape.clone(), tensor.dtype.f32s(&bytes))
        };
        assert_eq!(floats("obs_images"), (vec![2, 3, 2, 2], (0..24).map(|level| level as f32).collect()));
        assert_eq!(floats("turned"), (vec![2, 2], vec![1.0, 4.0, 2.0, 5.0]));
        assert_eq!(floats("half"), (vec![2], vec![1.5, -2.0]));
    }
}

#[test]
fn the_later_of_two_equal_keys_counts() {
    let value = read(&Writer::new().op(b"}(").text("a").int(1).text("a").int(2).op(b"u").stop());
    assert_eq!(value.get("a"), Some(&Value::Int(2)));
}

#[test]
fn what_is_stored_once_may_be_used_often() {
    let bytes = vec![7; 1 << 20];
    let shared = Writer::new().bytes(&bytes).op(b"q\0](").times(100_000, |w, _| w.op(b"h\0")).op(b"e\x86").stop();
    let Value::Tuple(items) = read(&shared) else { panic!("no tuple") };
    assert_eq!(items[1].as_items().unwrap().len(), 100_000);
}

#[test]
fn one_pickle_after_the_other() {
    let two = b"K\x01.\x80\x02N.";
    let (first, used) = parse_first(two, &Limits::default()).unwrap();
    assert_eq!((first, used), (Value::Int(1), 3));
    assert_eq!(read(&two[used..]), Value::None);
}

#[test]
fn no_cut_and_no_changed_byte_makes_a_panic() {
    let samples: [&[u8]; 5] = [
        include_bytes!("../samples/plain.0.pickle"),
        include_bytes!("../samples/numpy.2.pickle"),
        include_bytes!("../samples/numpy.5.pickle"),
        include_bytes!("../samples/torch.2.pickle"),
        &Writer::new().tensor(10, 1, &[2, 3], &[1, 3]).stop(),
    ];
    for sample in samples {
        for length in 0..sample.len() {
            assert!(parse(&sample[..length], &Limits::default()).is_err(), "cut to {length}");
        }
        let mut changed = sample.to_vec();
        for at in 0..sample.len() {
            for mask in [0x01, 0x10, 0x80, 0xFF] {
                changed[at] ^= mask;
                _ = parse(&changed, &Limits::default());
                changed[at] ^= mask;
            }
        }
    }
}

#[test]
fn each_limit_is_a_knob() {
    let tight = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        parse(include_bytes!("../samples/plain.5.pickle"), &limits).unwrap_err().to_string()
    };
    for (error, wanted) in [
        (tight(|limits| limits.operations = 5), "more than 5 operations"),
        (tight(|limits| limits.items = 3), "more than 3 values"),
        (tight(|limits| limits.memo = 2), "more than 2 stored values"),
        (tight(|limits| limits.depth = 1), "more than 1 containers within each other"),
        (tight(|limits| limits.bytes = 1), "more than 1 bytes in one string"),
        (tight(|limits| limits.total_bytes = 3), "beyond measure"),
    ] {
        assert!(error.contains(wanted), "wanted `{wanted}`: {error}");
    }
}

/// Episodes in the layout of the Open-X data set: JPEG bytes in arrays, or raw arrays, in protocols 2 to 5.
#[test]
fn episodes_of_several_protocols_are_read() {
    let Some(folder) = std::env::var_os("VW2_SHARED_DATA").map(std::path::PathBuf::from) else {
        let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|name| name == "data"),
            "VW2_REQUIRE names data, but VW2_SHARED_DATA is not set"
        );
        return eprintln!("skipped: no folder in VW2_SHARED_DATA");
    };
    let mut read = 0;
    for entry in std::fs::read_dir(folder.join("openx_style_pickles")).unwrap() {
        let path = entry.unwrap().path();
        let episode = crate::read(&path, &Limits::default()).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let steps = episode.get("steps").and_then(Value::as_items).unwrap();
        for step in steps {
            let image = step.get("observation").and_then(|observation| observation.get("image")).unwrap();
            match image {
                Value::Bytes(jpeg) => assert_eq!(jpeg[..2], [0xFF, 0xD8]),
                _ => assert_eq!(array(image).shape, [96, 96, 3]),
            }
            read += 1;
        }
    }
    assert!(read > 100, "{read} steps");
}
