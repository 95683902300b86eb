//! Pickles that are meant to hurt: each ends in an error, soon, and without using much memory.

use std::process::Command;
use std::time::Instant;

use crate::writer::Writer;
use crate::{LEGACY_START, Limits, parse};

/// Peak memory of this process in MiB; none where the system does not tell.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
}

/// The error says `reason`, soon; alone in a process, within 100 MB.
fn check(name: &str, bytes: &[u8], reason: &str) {
    let start = Instant::now();
    let error = parse(bytes, &Limits::default()).map(|_| ()).expect_err(name).to_string();
    assert!(error.contains(reason), "{name}: {error}");
    assert!(error.len() < 1000, "{name}: a message of {} bytes", error.len());
    // Milliseconds, but for a busy machine; what is not bounded would take minutes.
    assert!(start.elapsed().as_secs_f64() < 10.0, "{name}: {:?}", start.elapsed());
    if std::env::var_os(ALONE).is_some() {
        let peak = peak_mib();
        assert!(peak.is_none_or(|peak| peak < 95), "{name}: {peak:?} MiB");
    }
}

/// Set for the process that measures memory.
const ALONE: &str = "VW2_HOSTILE_ALONE";

/// Peak memory is the process's: beside other tests it would be theirs, too.
#[test]
fn little_memory_is_taken() {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["--test-threads=1", "hostile::", "--skip=little_memory"]).env(ALONE, "1");
    let output = tests.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("7 passed"), "{said}");
}

fn new() -> Writer {
    Writer::new()
}

#[test]
fn calls_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("_codecs", "decode"),
        ("collections", "OrderedDict.pop"),
        ("copyreg", "_reconstructor"),
    ] {
        let reason = format!("`{module}.{name}` is asked for");
        let call = |writer: Writer| writer.text("touch owned").op(b"\x85R").stop();
        check(name, &call(new().global(module, name)), &reason);
        check(name, &call(new().stack_global(module, name)), &reason);
        check(name, &new().op(b"(").text("x").op(format!("i{module}\n{name}\n.").as_bytes()).stop(), &reason);
        check(name, &new().op(b"(").global(module, name).op(b"o").stop(), &reason);
        check(name, &new().global(module, name).op(b")\x81").stop(), &reason);
        check(name, &new().op(b"](").global(module, name).op(b"e").stop(), &reason);
    }
    let endless = "x".repeat(1 << 20) + "\u{1b}[2J";
    check("a long name", &new().stack_global(&endless, "\n").stop(), "xxx…` is asked for");
}

#[test]
fn allowed_names_do_only_what_data_needs() {
    let ordered = |writer: Writer| writer.global("collections", "OrderedDict");
    let float = |writer: Writer| writer.global("torch", "FloatStorage");
    for (name, bytes, reason) in [
        ("a text is called", new().text("os.system").op(b")R").stop(), "called as if it were a function"),
        ("a dtype is called", float(new()).op(b")R").stop(), "`torch.FloatStorage` is called in another way"),
        ("no tuple", ordered(new()).op(b"]R").stop(), "something else than a few arguments"),
        ("no list", ordered(new()).op(b"K\x01\x85R").stop(), "an OrderedDict of what is no list"),
        ("no pairs", ordered(new()).op(b"]K\x01a\x85R").stop(), "an OrderedDict of what are no pairs"),
        ("a new object", ordered(new()).op(b")\x81").stop(), "an object of `collections.OrderedDict`"),
        ("a new object with keys", ordered(new()).op(b")}\x92").stop(), "an object of a class"),
        ("an old-style object", new().op(b"(icollections\nOrderedDict\n").stop(), "an old-style object"),
        ("state of a number", new().op(b"K\x01}b").stop(), "a value is changed"),
        ("state of a name", float(new()).op(b"}b").stop(), "a value is changed"),
        ("state of a list", new().op(b"]}b").stop(), "contents that do not fit"),
        (
            "an array that is none",
            new().global("numpy.core.multiarray", "_reconstruct").op(b"NNN\x87R").stop(),
            "called",
        ),
        (
            "a subclass of a subclass",
            new().times(3, |w, _| w.global("torch._tensor", "_rebuild_from_type_v2")).op(b")\x87R").stop(),
            "is called in another way",
        ),
        ("numbers beyond i64", new().op(b"\x8a\x0a0123456789").stop(), "an integer of 10 bytes"),
        ("out of band", new().op(&[0x97]).stop(), "outside of the pickle"),
        ("an extension", new().op(&[0x82, 1]).stop(), "a name by number"),
        ("a text as reference", new().op(b"P0\n").stop(), "outside the file"),
        ("a storage of a dtype", new().text("storage").op(b"\x85Q").stop(), "names no storage"),
        (
            "a code that is none",
            new().global("_codecs", "encode").text("x").text("rot13").op(b"\x86R").stop(),
            "encoding",
        ),
    ] {
        check(name, &bytes, reason);
    }
}

#[test]
fn lengths_are_held_against_the_input() {
    let ones = [0xFF; 8];
    for (op, width) in [
        (b'X', 4),
        (b'B', 4),
        (b'T', 4),
        (b'U', 1),
        (b'C', 1),
        (0x8c, 1),
        (0x8d, 8),
        (0x8e, 8),
        (0x96, 8),
        (0x95, 8),
        (0x8a, 1),
        (0x8b, 4),
    ] {
        let name = format!("operation {op:02x}");
        check(&name, &new().op(&[op]).op(&ones[..width]).stop(), "more bytes are wanted, but 1 are left");
        // One byte more than there is.
        let mut size = [0; 8];
        size[0] = 4;
        check(&name, &new().op(&[op]).op(&size[..width]).op(b"12.").0, "4 more bytes are wanted, but 3 are left");
    }
    for op in [b'I', b'L', b'F', b'V', b'S', b'c', b'i', b'g', b'p'] {
        check("a line without end", &new().op(&[op]).op(&[b'1'; 1 << 20]).0, "are left");
    }
}

#[test]
fn arrays_and_tensors_are_as_large_as_their_data() {
    let max = i32::MAX;
    let shape = |shape: &[i32]| new().array(shape, "f4", "<", false, &[0; 8]).stop();
    let tensor =
        |elements, offset, shape: &[i32], strides: &[i32]| new().tensor(elements, offset, shape, strides).stop();
    for (name, bytes, reason) in [
        ("a huge shape", shape(&[max, max]), "8 bytes do not fill"),
        ("an overflowing shape", shape(&[max; 64]), "8 bytes do not fill"),
        ("a shape that overflows to its size", shape(&[1 << 30, 1 << 30, 1 << 2, 2]), "8 bytes do not fill"),
        ("a negative shape", shape(&[-2, -1]), "no number from 0 up"),
        ("too many dimensions", shape(&[1; 65]), "at most 64"),
        ("too little data", shape(&[3]), "8 bytes do not fill"),
        ("objects", new().array(&[2], "O8", "|", false, b"").stop(), "an array of Python objects"),
        ("texts", new().array(&[2], "U1", "<", false, &[0; 8]).stop(), "an array of dtype `U1`"),
        ("another order", new().array(&[2], "f4", "!", false, &[0; 8]).stop(), "unknown byte order"),
        (
            "an array without contents",
            new().global("numpy.core.multiarray", "_reconstruct").global("numpy", "ndarray").op(b"NN\x87R").stop(),
            "without its contents",
        ),
        (
            "axes that are none",
            new()
                .global("numpy._core.numeric", "_frombuffer")
                .op(b"(")
                .bytes(&[0; 8])
                .dtype("f4", "<")
                .ints(&[1, 2])
                .text("K")
                .ints(&[0, 0])
                .op(b"tR")
                .stop(),
            "axes [0, 0]",
        ),
        ("a tensor beyond its storage", tensor(4, 1, &[2, 2], &[2, 1]), "does not lie in storage `0` of 4 elements"),
        ("a huge tensor", tensor(4, 0, &[max, max, max], &[0, 0, 0]), "does not lie in storage"),
        ("a repeated element", tensor(4, 0, &[1 << 20, 2], &[0, 0]), "does not lie in storage"),
        ("strides that overflow", tensor(4, 0, &[max; 4], &[max; 4]), "does not lie in storage"),
        ("ranks that differ", tensor(4, 0, &[2], &[1, 1]), "does not lie in storage"),
        ("a negative stride", tensor(4, 3, &[2], &[-1]), "no number from 0 up"),
    ] {
        check(name, &bytes, reason);
    }
}

#[test]
fn a_file_within_a_pickle_is_held_to_the_same() {
    let file = |storage: Writer, keys: Writer, count: u64, contents: &[u8]| {
        let machine = new().op(b"}").text("little_endian").op(b"\x88s").stop();
        [LEGACY_START, &machine, &storage.stop(), &keys.stop(), &count.to_le_bytes(), contents].concat()
    };
    let keys = |key: &str| new().op(b"]").text(key).op(b"a");
    let load = |bytes: &[u8]| new().global("torch.storage", "_load_from_bytes").bytes(bytes).op(b"\x85R").stop();
    let good = file(new().storage("0", 2), keys("0"), 2, &[0; 8]);
    parse(&load(&good), &Limits::default()).unwrap();
    let other_keys = file(new().storage("0", 2), keys("1"), 2, &[0; 8]);
    let big_endian = good.iter().map(|&byte| if byte == 0x88 { 0x89 } else { byte }).collect::<Vec<u8>>();
    for (name, bytes, reason) in [
        ("no file", load(b"touch owned"), "does not begin as torch writes it"),
        ("a call", load(&file(new().global("os", "system"), keys("0"), 2, &[0; 8])), "`os.system` is asked for"),
        (
            "a file in the file",
            load(&file(new().op(&load(&good)[2..]), keys("0"), 2, &[0; 8])),
            "a file within its bytes",
        ),
        ("a huge storage", load(&file(new().storage("0", i32::MAX), keys("0"), 2, &[0; 8])), "longer or shorter"),
        ("another number", load(&file(new().storage("0", 2), keys("0"), 3, &[0; 8])), "longer or shorter"),
        ("too little", load(&good[..good.len() - 1]), "longer or shorter"),
        ("no number", load(&good[..good.len() - 9]), "longer or shorter"),
        ("no storage", load(&file(new().op(b"N"), keys("0"), 2, &[0; 8])), "something else is there"),
        ("another key", load(&other_keys), "not in its list of keys"),
        ("big-endian", load(&big_endian), "big-endian"),
        (
            "one file, read often",
            new()
                .bytes(&good)
                .op(b"q\0")
                .times(1000, |w, _| w.global("torch.storage", "_load_from_bytes").op(b"h\0\x85R0"))
                .stop(),
            "beyond measure",
        ),
    ] {
        check(name, &bytes, reason);
    }
}

#[test]
fn nesting_and_sharing_are_bounded() {
    // More than the limits' half a many.
    let many = 600_000;
    let deep = "containers within each other";
    for (name, bytes, reason) in [
        ("marks", new().times(many, |w, _| w.op(b"(")).stop(), deep),
        ("tuples", new().op(b")").times(many, |w, _| w.op(b"\x85")).stop(), "more than"),
        ("fewer tuples", new().op(b")").times(400_000, |w, _| w.op(b"\x85")).stop(), deep),
        ("lists", new().times(400_000, |w, _| w.op(b"]")).times(399_999, |w, _| w.op(b"a")).stop(), deep),
        (
            "dictionaries",
            new().times(200_000, |w, _| w.op(b"}N")).op(b"N").times(200_000, |w, _| w.op(b"s")).stop(),
            deep,
        ),
        // Each list is put into the next while it is still empty: what is deep is only known at the end.
        (
            "lists from outside",
            new().op(b"]\x94").times(100_000, |w, i| w.op(b"]\x94a").op(b"0").get(i as u32 + 1)).op(b"0").get(0).stop(),
            deep,
        ),
        ("a list in itself", new().op(b"]q\0h\0a").stop(), deep),
        ("a dictionary in itself", new().op(b"}q\0Nh\0s").stop(), deep),
        ("2^40 values", new().op(b")").times(40, |w, _| w.op(b"2\x86")).stop(), "again and again"),
        (
            "10^10 values",
            new().op(b"]\x94").times(10, |w, i| w.op(b"0](").times(10, |w, _| w.get(i as u32)).op(b"e\x94")).stop(),
            "more than",
        ),
        ("2^40 keys", new().op(b"}").times(40, |w, _| w.op(b"q\x000}h\0h\0s")).stop(), "again and again"),
        ("values on the stack", new().times(many, |w, _| w.op(b"N")).stop(), "values on the stack"),
        ("values in the arena", new().times(many, |w, _| w.op(b"]0")).stop(), "more than"),
        ("values in the memo", new().op(b"N").times(many, |w, i| w.put(i as u32)).stop(), "stored values"),
        ("operations", new().times(3_000_000, |w, _| w.op(b"N0")).stop(), "operations"),
        (
            "values in sets",
            new()
                .op(b"](")
                .times(10_000, |w, _| w.op(b"N"))
                .op(b"eq\0")
                .times(1000, |w, _| w.global("builtins", "set").op(b"h\0\x85R0"))
                .stop(),
            "values in containers",
        ),
        (
            "one text, many bytes",
            new()
                .text(&"x".repeat(1 << 20))
                .op(b"q\0")
                .times(1000, |w, _| w.global("_codecs", "encode").op(b"h\0").text("latin1").op(b"\x86R0"))
                .stop(),
            "beyond measure",
        ),
        (
            "one buffer, many arrays",
            new()
                .bytes(&[0; 1 << 20])
                .op(b"q\0")
                .dtype("u1", "|")
                .op(b"q\x01")
                .times(1000, |w, _| {
                    let call =
                        w.global("numpy._core.numeric", "_frombuffer").op(b"(h\0h\x01").ints(&[1 << 10, 1 << 10]);
                    call.text("F").op(b"tR0")
                })
                .stop(),
            "beyond measure",
        ),
    ] {
        check(name, &bytes, reason);
    }
}

#[test]
fn broken_programs_are_told() {
    for (name, bytes, reason) in [
        ("nothing", vec![], "1 more bytes are wanted, but 0 are left"),
        ("no value", new().stop(), "a value is wanted"),
        ("no end", new().op(b"N").0, "are left"),
        ("two values", new().op(b"NN").stop(), "ends within a list or tuple"),
        ("an open list", new().op(b"(N").stop(), "ends within a list or tuple"),
        ("something behind", new().op(b"N.N").0, "1 bytes follow"),
        ("protocol 6", vec![0x80, 6, b'N', b'.'], "protocol 6"),
        ("no operation", new().op(&[0xFF]).stop(), "there is no operation 0xff"),
        ("no pickle", b"{\"a\": 1}".to_vec(), "there is no operation"),
        ("no such memo", new().get(u32::MAX).stop(), "value 4294967295 is referred to"),
        ("no such memo, protocol 0", new().op(b"g99999999999999999999\n").stop(), "no number of a stored value"),
        ("a tuple of too few", new().op(b"N\x87").stop(), "3 values are wanted, but there are 1"),
        ("an end without begin", new().op(b"Nt").stop(), "a container ends that was not begun"),
        ("a value from before the mark", new().op(b"]((a").stop(), "1 values are wanted, but there are 0"),
        ("a key without a value", new().op(b"}(Nu").stop(), "a key without a value"),
        ("append to a dictionary", new().op(b"}Na").stop(), "no list"),
        ("set in a list", new().op(b"]NNs").stop(), "no dictionary"),
        ("call of nothing", new().op(b"R").stop(), "a value is wanted"),
        ("a name of no text", new().op(b"NN\x93").stop(), "a name is not a string"),
        ("text that is none", new().op(b"U\x01\xFFX\x01\0\0\0\xFF").stop(), "not UTF-8"),
        ("an escape", new().op(b"V\\uD800\n").stop(), "an escape is broken"),
        ("quotes", new().op(b"S'a\"\n").stop(), "quotes are broken"),
        ("a number", new().op(b"I12x\n").stop(), "no number"),
        ("a long number", new().op(b"L99999999999999999999L\n").stop(), "no number of at most 64 bits"),
    ] {
        check(name, &bytes, reason);
    }
    for op in 0..=u8::MAX {
        // Whatever it wants, it does not find it.
        assert!(parse(&[op], &Limits::default()).is_err(), "{op:02x}");
        assert!(parse(&[0x80, 2, b'(', op], &Limits::default()).is_err(), "{op:02x}");
    }
}
