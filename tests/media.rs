//! Real and broken files, and what other programs say of the outputs.

use std::fs;
use std::process::{Child, Command};
use std::thread::JoinHandle;
use std::time::Duration;

use super::project::{self, PIPELINE, Project, finished, sample};

#[test]
fn broken_files_are_quarantined_and_the_good_ones_extracted() {
    let project = Project::with_clips(2);
    let whole = fs::read(sample(5)).unwrap();
    project.write("videos/empty.mp4", b"");
    project.write("videos/text.mp4", "this is no video, whatever its name says\n".repeat(50));
    project.write("videos/truncated.mp4", &whole[..whole.len() * 2 / 3]);

    let first = project.run(&[]);
    assert_eq!(first.count("videos", "quarantined"), 3);
    assert_eq!((first.count("videos", "added"), first.count("codes", "added")), (2, 4));
    let rows = first.0["quarantined"].as_array().unwrap();
    let told: Vec<(&str, &str)> =
        rows.iter().map(|row| (row["unit"].as_str().unwrap(), row["reason"].as_str().unwrap())).collect();
    assert_eq!(told.iter().map(|(unit, _)| *unit).collect::<Vec<_>>(), ["empty.mp4", "text.mp4", "truncated.mp4"]);

    // What a person sees: the summary of a run with nothing left to do, and `status`.
    let again = project.vw2(&["run", PIPELINE]);
    assert_eq!(again.code, 0, "{again:#?}");
    let status = project.vw2(&["status"]);
    assert_eq!(status.code, 0, "{status:#?}");
    for (unit, reason) in told {
        for (where_, text) in [("summary", &again.stdout), ("status", &status.stdout)] {
            let path = format!("videos/{unit}");
            assert!(text.lines().any(|line| line.contains(&path) && line.contains(reason)), "{where_}: {unit}: {text}");
        }
    }

    // A limit makes it an exit code, and lets the rest be done all the same.
    let project = Project::with_clips(1);
    project.write("videos/empty.mp4", b"");
    project.edit("[runtime]", "[runtime]\nmax_quarantined = 0");
    let limited = project.vw2(&["run", PIPELINE, "--only", "codes"]);
    assert_eq!(limited.code, 1, "{limited:#?}");
    assert!(limited.stdout.contains("empty.mp4"), "{limited:#?}");
}

#[test]
fn other_programs_open_the_outputs() {
    let (ffmpeg, python) = (project::ffmpeg(), project::python("pyarrow, duckdb"));
    if !ffmpeg && python.is_none() {
        return;
    }
    let project = Project::with_clips(2);
    let report = project.run(&[]);
    if let Some(python) = python {
        let script = r#"
import sys, duckdb, pyarrow.parquet
folder = sys.argv[1]
table = pyarrow.parquet.read_table(folder)
rows = duckdb.sql(f"select id, video, clip, len(codes), queries, len(levels) from '{folder}/*.parquet' order by id")
print(table.num_rows)
for row in rows.fetchall(): print(*row)
"#;
        let mut call = Command::new(python);
        call.args(["-c", script, project.path("out/codes/latest").to_str().unwrap()]);
        let output = call_checked(&mut call);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[0], "4", "{output}");
        let ids: Vec<&str> = lines[1..].iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(ids, ["ep_0000.mp4#0", "ep_0000.mp4#1", "ep_0001.mp4#0", "ep_0001.mp4#1"]);
        for line in &lines[1..] {
            let numbers: Vec<u32> = line.split(' ').skip(2).map(|word| word.parse().unwrap()).collect();
            // 17 frames are 4 latent pairs of `queries` codes each.
            let [_, codes, queries, levels] = numbers[..] else { panic!("{line}") };
            assert!(queries > 0 && levels > 0 && codes == 4 * queries, "{line}");
        }
    }
    if ffmpeg {
        let folder = report.0["outputs"]["rollouts"].as_str().unwrap().to_owned();
        let videos: Vec<_> =
            project.tree(&folder).into_keys().filter(|p| p.extension().is_some_and(|e| e == "mp4")).collect();
        assert!(videos.iter().any(|video| video.ends_with("rollout.mp4")), "no film in {folder}: {videos:?}");
        for video in videos {
            let fields = "stream=codec_name,pix_fmt,width,height,nb_frames,nb_read_frames";
            let mut probe = Command::new("ffprobe");
            probe.args(["-v", "error", "-count_frames", "-show_entries", fields, "-of", "default=nk=1:nw=1"]);
            let output = call_checked(probe.arg(project.path(&video)));
            let words: Vec<&str> = output.split_whitespace().collect();
            let [codec, width, height, pixels, stated, decoded] = words[..] else { panic!("{video:?}: {output}") };
            assert_eq!((codec, width, height, pixels), ("h264", "64", "64", "yuv420p"), "{video:?}");
            // Each clip for itself; and all as one film, without the last frame of each.
            let frames = if video.ends_with("rollout.mp4") { "32" } else { "17" };
            assert_eq!((stated, decoded), (frames, frames), "{video:?}");
        }
    }
}

fn call_checked(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Watches a running child; its peak memory in MiB once it has ended.
pub(crate) fn watch_memory(child: &Child) -> JoinHandle<u64> {
    let status = format!("/proc/{}/status", child.id());
    std::thread::spawn(move || {
        let mut peak_kib = 0;
        while let Ok(text) = fs::read_to_string(&status) {
            let line = text.lines().find(|line| line.starts_with("VmHWM:"));
            let Some(kib) = line.and_then(|line| line.split_whitespace().nth(1)) else { break };
            peak_kib = peak_kib.max(kib.parse::<u64>().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        peak_kib >> 10
    })
}

#[test]
fn memory_stays_within_bounds_on_a_long_video() {
    if !project::ffmpeg() {
        return;
    }
    let project = Project::with_clips(0);
    fs::create_dir_all(project.path("videos")).unwrap();
    // 3,000 pictures in GOPs of 25; clips of 17 take one a second. At 30 a second the test would only be longer.
    let mut make = Command::new("ffmpeg");
    make.args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=5", "-t", "600"]);
    make.args(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "35", "-g", "25", "-pix_fmt", "yuv420p"]);
    // With CAVLC, which is what `ultrafast` means otherwise, the ffmpeg program would decode.
    make.args(["-x264-params", "cabac=1"]);
    call_checked(make.arg(project.path("videos/long.mp4")));
    project.edit("frames = 17", "frames = 17\nsampling = { every = 5 }");

    let arguments = ["run", PIPELINE, "--json", "--only", "codes", "--set", "runtime.memory=512MiB"];
    let child = project.command(&arguments).spawn().unwrap();
    let peak = watch_memory(&child);
    let done = finished(child);
    let peak_mib = peak.join().unwrap();
    assert_eq!(done.code, 0, "{done:#?}");
    let clips = done.json()["stages"]["codes"]["added"].as_u64().unwrap();
    assert_eq!(clips, 37, "600 frames, a clip every 16");
    assert!((50..1024).contains(&peak_mib), "peak memory {peak_mib} MiB; the budget is 512 MiB, the limit 1 GiB");
    println!("peak memory {peak_mib} MiB over {clips} clips");
}
