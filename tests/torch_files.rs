//! Files for torch as their user makes them: checkpoints and codes that `torch.load` opens.

use std::fs;
use std::process::Command;

use super::project::{PIPELINE, Project, finished, python, weights};

/// Runs a program of Python with a file as its argument; what it prints.
fn said(project: &Project, python: &str, program: &str, file: &str) -> String {
    let mut command = Command::new(python);
    command.args(["-c", program]).arg(project.path(file));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_checkpoint_goes_to_torch_and_back_unchanged() {
    let project = Project::new();
    let shipped = weights("dldm-tiny");
    let shipped = shipped.to_str().unwrap();
    for arguments in [
        ["convert", shipped, "dldm.pt", "--under", "network"],
        ["convert", "dldm.pt", "back.safetensors", "--prefix", "network"],
    ] {
        let converted = project.vw2(&arguments);
        assert_eq!((converted.code, converted.stderr.as_str()), (0, ""), "{converted:#?}");
    }
    let tensors = |name: &str| {
        let file = fs::read(project.path(name)).unwrap();
        file[8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize..].to_vec()
    };
    assert!(tensors("back.safetensors") == tensors(shipped), "tensors differ after a way through torch's format");
    let shown = project.vw2(&["show", "weights", "dldm.pt"]);
    assert!(shown.code == 0 && shown.stdout.contains("names below `network.`"), "{shown:#?}");
}

/// Every tensor as bytes, beside those that torch's own reader of nothing but bytes finds in the safetensors file.
#[test]
fn torch_loads_a_converted_checkpoint_with_equal_tensors() {
    let Some(python) = python("torch") else { return };
    let project = Project::new();
    fs::copy(weights("dldm-tiny"), project.path("in.safetensors")).unwrap();
    for dtype in ["keep", "f32", "bf16"] {
        let converted = project.vw2(&["convert", "in.safetensors", "typed.safetensors", "--dtype", dtype, "--force"]);
        assert_eq!(converted.code, 0, "{converted:#?}");
        let converted = project.vw2(&["convert", "in.safetensors", "out.pt", "--dtype", dtype, "--force"]);
        assert_eq!(converted.code, 0, "{converted:#?}");
        let program = "import sys, json, struct, torch, collections\n\
            plain = open(sys.argv[1].replace('out.pt', 'typed.safetensors'), 'rb').read()\n\
            size, = struct.unpack('<Q', plain[:8])\n\
            head = json.loads(plain[8:8 + size]); head.pop('__metadata__')\n\
            for only in (True, False):\n\
            \x20   state = torch.load(sys.argv[1], weights_only=only)\n\
            \x20   assert type(state) is collections.OrderedDict and set(state) == set(head)\n\
            \x20   for name, tensor in state.items():\n\
            \x20       start, end = head[name]['data_offsets']\n\
            \x20       assert list(tensor.shape) == head[name]['shape'], name\n\
            \x20       raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()\n\
            \x20       assert raw == plain[8 + size:][start:end], name\n\
            torch.load(sys.argv[1], mmap=True)\n\
            print(len(state))";
        let count: usize = said(&project, &python, program, "out.pt").parse().unwrap();
        assert!(count > 100, "{dtype}: {count} tensors");
    }
}

/// The way back: what torch saves becomes a safetensors file with the same tensors, averages included on request.
#[test]
fn averages_of_a_checkpoint_are_taken_on_request() {
    let Some(python) = python("torch") else { return };
    let project = Project::new();
    let program = "import sys, torch\n\
        t = lambda *v: torch.tensor(v)\n\
        torch.save({'model': {'network.a.w': t(1.), 'network.n': t(7), 'ema.network-a-w': t(2.)}}, sys.argv[1])";
    said(&project, &python, program, "in.pt");
    for (more, wanted) in [(&["--ema"][..], "2.0"), (&[], "1.0")] {
        let arguments = [&["convert", "in.pt", "out.pt", "--prefix", "model", "--force"], more].concat();
        let converted = project.vw2(&arguments);
        assert_eq!(converted.code, 0, "{converted:#?}");
        let program = "import sys, torch; print(torch.load(sys.argv[1])['network.a.w'].item())";
        assert_eq!(said(&project, &python, program, "out.pt"), wanted);
    }
    let none = project.vw2(&["convert", weights("vae-tiny").to_str().unwrap(), "x.pt", "--ema"]);
    let told = none.stderr.replace("\n  │ ", " ");
    assert!(none.code == 2 && told.contains("no name has the form"), "{none:#?}");
}

/// Codes go out as upstream's dictionary, and come in again as those of a rollout.
#[test]
fn exported_codes_are_those_of_a_rollout() {
    let project = Project::with_clips(1);
    project.edit("path = \"out/codes\"", "path = \"out/codes\"\nformat = \"videocraft-codes\"");
    project.run(&["--only", "code_dataset"]);
    let file = "out/codes/latest/VideoCraft-dLDM-codes.pt";
    let codes = vw2_data::formats::upstream_codes::read(&project.path(file)).unwrap();
    assert_eq!((codes.len(), codes[0].name.as_str(), codes[0].clips.len()), (1, "ep_0000", 2));
    fs::rename(project.path("scenes/scene.png"), project.path("scenes/ep_0000.png")).unwrap();
    project.edit("inputs = { scenes = \"scenes\", ar = \"ar\" }", &format!("codes = \"{file}\"\ninput = \"scenes\""));
    project.edit("clips = 2\n", "");
    let finished = finished(project.command(&["run", PIPELINE, "--only", "rollouts"]).spawn().unwrap());
    assert_eq!(finished.code, 0, "{finished:#?}");
    assert!(project.path("out/rollouts/ep_0000/clip_1.mp4").exists(), "a clip for each row of codes");
}
