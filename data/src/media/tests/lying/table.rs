//! The table: names of files, how they are made, and what has to become of them.

use super::Case;
use super::Made::{Changed, Ffmpeg, H264, Inputs, Sample};
use super::Want::{Bad, Equal, Near};
use super::boxes::Mp4;

/// The start of a playlist, which names another file.
const PLAYLIST: &[u8] = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nwhole.ts\n#EXT-X-ENDLIST\n";

/// A decoder's configuration whose pictures have 4096 x 4096 macroblocks.
const HUGE_AVCC: &[u8] =
    b"\x01\x42\x00\x0a\xff\xe1\x00\x0c\x67\x42\x00\x0a\xf4\x00\x08\x00\x00\x04\x00\x32\x01\x00\x04\x68\xce\x38\x80";

/// The turn by which a player is to show the pictures.
fn rotated(file: Mp4, turn: [i32; 4]) -> Mp4 {
    let places = [40, 44, 52, 56];
    places.into_iter().zip(turn).fold(file, |file, (at, value)| file.set("tkhd", at, (value << 16) as u32))
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

pub(super) fn cases() -> Vec<Case> {
    let case = |name, made, want| Case { name, made, want };
    let yuv = Equal("yuv420p");
    vec![
        // Cut off.
        case("cut_0.mp4", Sample(|f| f.cut(0)), Bad("the file is empty")),
        case("cut_1.mp4", Sample(|f| f.cut(1)), Bad("has 1 bytes")),
        case("cut_8.mp4", Sample(|f| f.cut(8)), Bad("box `ftyp` reaches to byte 32")),
        case("cut_after_ftyp.mp4", Sample(|f| f.cut(32)), Bad("the index (`moov`) is missing")),
        case("cut_in_moov.mp4", Sample(|f| f.cut(600)), Bad("box `moov` reaches to byte 1175")),
        case("cut_after_moov.mp4", Sample(|f| f.cut(1183)), Bad("sample 0 of 33 lies at")),
        case("cut_in_mdat.mp4", Sample(|f| f.cut(6000)), Bad("file ends at byte 6000, but sample")),
        case("cut_last_byte.mp4", Sample(|f| f.shorter_by(1)), Bad("but sample 32 of 33")),
        // Other things under a name of a video, and a video under that of another.
        case(
            "picture.mp4",
            Sample(|_| Mp4(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0".to_vec())),
            Bad("a PNG picture and no video"),
        ),
        case("text.mp4", Sample(|_| Mp4(b"a film, some day".repeat(9))), Bad("this is text and no video")),
        case(
            "umlauts.mp4",
            Sample(|_| Mp4("Käse über Öl\n".repeat(50).into_bytes())),
            Bad("this is text and no video"),
        ),
        case("playlist.mp4", Sample(|_| Mp4(PLAYLIST.to_vec())), Bad("this is text and no video")),
        case(
            "playlist_with_a_zero.mp4",
            Sample(|_| Mp4([PLAYLIST, &[0]].concat())),
            Bad("no video that ffprobe knows"),
        ),
        case("archive.mp4", Sample(|_| Mp4(b"PK\x03\x04 and more".to_vec())), Bad("a ZIP archive and no video")),
        case(
            "sound.mp4",
            Sample(|_| Mp4(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0".to_vec())),
            Bad("an audio file and no video"),
        ),
        case(
            "noise.mp4",
            Sample(|_| Mp4((0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect())),
            Bad("no video that ffprobe knows"),
        ),
        case("zeros.mp4", Sample(|_| Mp4(vec![0; 4096])), Bad("no video that ffprobe knows")),
        case("mp4_named.avi", Sample(|f| f), yuv),
        // Boxes whose sizes or names lie.
        case("moov_of_7_bytes.mp4", Sample(|f| f.resize("moov", 7)), Bad("says that it has 7 bytes")),
        case(
            "moov_of_2_63_bytes.mp4",
            Sample(|f| f.resize("moov", 1).set("moov", 0, 1 << 31).set("moov", 4, 0)),
            Bad("box `moov` reaches to byte 9223372036854775840"),
        ),
        case("mdat_to_the_end.mp4", Sample(|f| f.resize("mdat", 0)), yuv),
        case(
            "trak_beyond_moov.mp4",
            Sample(|f| f.resize("trak", 5000)),
            Bad("the box `moov` is shorter than its content"),
        ),
        case("stbl_of_4_bytes.mp4", Sample(|f| f.resize("stbl", 4)), Bad("shorter than its content")),
        case("avcc_beyond_avc1.mp4", Sample(|f| f.resize("avcC", 900)), Bad("shorter than its content")),
        case("tiny_boxes.mp4", Sample(|_| Mp4(b"\0\0\0\x08free".repeat((1 << 18) + 1))), Bad("more than 262144 boxes")),
        case("without_mdia.mp4", Sample(|f| f.rename("mdia", "free")), Bad("no box `mdia`")),
        case("without_mdhd.mp4", Sample(|f| f.rename("mdhd", "free")), Bad("no box `mdhd`")),
        case("without_hdlr.mp4", Sample(|f| f.rename("hdlr", "free")), Bad("no box `hdlr`")),
        case("without_minf.mp4", Sample(|f| f.rename("minf", "free")), Bad("no box `minf`")),
        case("without_stbl.mp4", Sample(|f| f.rename("stbl", "free")), Bad("no box `stbl`")),
        case("without_stsd.mp4", Sample(|f| f.rename("stsd", "free")), Bad("no box `stsd`")),
        case("without_stts.mp4", Sample(|f| f.rename("stts", "free")), Bad("no box `stts`")),
        case("without_stsc.mp4", Sample(|f| f.rename("stsc", "free")), Bad("no box `stsc`")),
        case("without_stsz.mp4", Sample(|f| f.rename("stsz", "free")), Bad("no box `stsz`")),
        case("without_stco.mp4", Sample(|f| f.rename("stco", "free")), Bad("no box `co64`")),
        case("without_avcc.mp4", Sample(|f| f.rename("avcC", "free")), Bad("no box `avcC`")),
        case("without_mvhd.mp4", Sample(|f| f.rename("mvhd", "free")), Bad("no box `mvhd`")),
        case("without_stss.mp4", Sample(|f| f.rename("stss", "free")), yuv),
        case("without_ctts.mp4", Sample(|f| f.rename("ctts", "free")), Bad("the stream shows it on the other side")),
        case("without_edts.mp4", Sample(|f| f.rename("edts", "free")), yuv),
        // Tables of the index that lie.
        case(
            "stts_count.mp4",
            Sample(|f| f.set("stts", 4, u32::MAX)),
            Bad("the box `stts` is shorter than its content"),
        ),
        case(
            "ctts_count.mp4",
            Sample(|f| f.set("ctts", 4, u32::MAX)),
            Bad("the box `ctts` is shorter than its content"),
        ),
        case(
            "stsc_count.mp4",
            Sample(|f| f.set("stsc", 4, u32::MAX)),
            Bad("the box `stsc` is shorter than its content"),
        ),
        case(
            "stco_count.mp4",
            Sample(|f| f.set("stco", 4, u32::MAX)),
            Bad("the box `stco` is shorter than its content"),
        ),
        case(
            "stss_count.mp4",
            Sample(|f| f.set("stss", 4, u32::MAX)),
            Bad("the box `stss` is shorter than its content"),
        ),
        case(
            "elst_count.mp4",
            Sample(|f| f.set("elst", 4, u32::MAX)),
            Bad("the box `elst` is shorter than its content"),
        ),
        case("stsz_count.mp4", Sample(|f| f.set("stsz", 8, u32::MAX)), Bad("lists 4294967295 samples, more than")),
        case("stsz_count_in_bounds.mp4", Sample(|f| f.set("stsz", 8, 1 << 20)), Bad("the box `stsz` is shorter")),
        case("stsz_one_sample_less.mp4", Sample(|f| f.set("stsz", 8, 32)), yuv),
        case("stsz_size_of_one.mp4", Sample(|f| f.set("stsz", 12 + 5 * 4, 40)), Bad("sample 5 of 33")),
        case("stsz_equal_sizes.mp4", Sample(|f| f.set("stsz", 4, 1 << 31)), Bad("of 2147483648 bytes")),
        case("stts_run.mp4", Sample(|f| f.set("stts", 8, 3)), Bad("times for only 3")),
        case("stts_long_frames.mp4", Sample(|f| f.set("stts", 12, 1024 + (1 << 20))), yuv),
        case("stts_no_time.mp4", Sample(|f| f.set("stts", 12, 0)), Bad("the stream shows it on the other side")),
        case("ctts_one_offset.mp4", Sample(|f| f.set("ctts", 8 + 8 + 4, 0)), yuv),
        case("stsc_samples.mp4", Sample(|f| f.set("stsc", 12, 32)), Bad("says only for 32 where they lie")),
        case("stsc_first_chunk.mp4", Sample(|f| f.set("stsc", 8, 2)), Bad("says only for 0 where they lie")),
        case(
            "stco_by_one.mp4",
            Sample(|f| {
                let at = f.sample(0).start as u32 - 1;
                f.set("stco", 8, at)
            }),
            Bad("ffprobe finds no picture in it"),
        ),
        case("stco_beyond.mp4", Sample(|f| f.set("stco", 8, u32::MAX)), Bad("sample 0 of 33 lies at")),
        case(
            "co64_of_2_63.mp4",
            Sample(|f| f.rename("stco", "co64").replace("co64", b"\0\0\0\0\0\0\0\x01\x80\0\0\0\0\0\0\0")),
            Bad("sample 0 of 33 lies at"),
        ),
        case("stss_wrong.mp4", Sample(|f| f.set("stss", 12, 7)), yuv),
        case("elst_start_beyond.mp4", Sample(|f| f.set("elst", 12, 1 << 30)), Bad("the video track has no frames")),
        case("elst_short.mp4", Sample(|f| f.set("elst", 8, 500)), yuv),
        case("elst_late.mp4", Sample(|f| f.set("elst", 12, 5000)), yuv),
        case("elst_rate_0.mp4", Sample(|f| f.set("elst", 16, 0)), yuv),
        case(
            "elst_two_pieces.mp4",
            Sample(|f| f.replace("elst", &words(&[0, 2, 1000, 2048, 1 << 16, 800, 12 * 1024, 1 << 16]))),
            yuv,
        ),
        case(
            "elst_pause_first.mp4",
            Sample(|f| f.replace("elst", &words(&[0, 2, 1000, u32::MAX, 1 << 16, 3300, 2048, 1 << 16]))),
            yuv,
        ),
        case("mdhd_timescale_0.mp4", Sample(|f| f.set("mdhd", 12, 0)), Bad("time unit is 0")),
        case("mdhd_duration.mp4", Sample(|f| f.set("mdhd", 16, u32::MAX)), yuv),
        case("mvhd_timescale_0.mp4", Sample(|f| f.set("mvhd", 12, 0)), yuv),
        case(
            "tkhd_size_and_id.mp4",
            Sample(|f| f.set("tkhd", 12, 77).set("tkhd", 76, u32::MAX).set("tkhd", 80, u32::MAX)),
            yuv,
        ),
        case("avc1_of_65535.mp4", Sample(|f| f.set("avc1", 24, u32::MAX)), yuv),
        case("hdlr_sound.mp4", Sample(|f| f.set("hdlr", 8, u32::from_be_bytes(*b"soun"))), Bad("no video track")),
        // The decoder's configuration.
        case("avcc_version_0.mp4", Sample(|f| f.flip("avcC", 0, 1)), Bad("avcC: unsupported configurationVersion")),
        case(
            "avcc_truncated.mp4",
            Sample(|f| {
                let avcc = f.0[f.content("avcC")].to_vec();
                f.replace("avcC", &avcc[..20])
            }),
            Bad("avcC: truncated SPS data"),
        ),
        case("avcc_no_sps.mp4", Sample(|f| f.set("avcC", 4, 0xffe0_0000)), Bad("ffprobe finds no picture in it")),
        case("avcc_length_of_3.mp4", Sample(|f| f.flip("avcC", 4, 1)), Bad("invalid lengthSizeMinusOne")),
        case("avcc_length_of_2.mp4", Sample(|f| f.flip("avcC", 4, 2)), Bad("holds an empty unit")),
        case("sps_of_65536.mp4", Sample(|f| f.replace("avcC", HUGE_AVCC)), Bad("pictures of 65536 x 65536 pixels")),
        case(
            "pps_flipped.mp4",
            Sample(|f| f.flip("avcC", 39, 0x40)),
            Bad("sample 0 of 33 at byte 1191 cannot be decoded"),
        ),
        // Damage in the pictures.
        case(
            "unit_length.mp4",
            Sample(|f| {
                let at = f.slices(4)[0].start;
                f.fill(at - 4..at, 0xff)
            }),
            Bad("runs past the sample"),
        ),
        case("unit_first_bit.mp4", Sample(|f| f.slice(4, 0, |s| s[0] |= 0x80)), Bad("whose first bit is set")),
        case("unit_kind.mp4", Sample(|f| f.slice(4, 0, |s| s[0] |= 31)), Bad("gave 0 pictures")),
        case(
            "slice_header.mp4",
            Sample(|f| f.slice(4, 0, |s| s[1] ^= 0x40)),
            Bad("sample 4 of 33 at byte 3456 cannot be decoded"),
        ),
        case(
            "slice_type.mp4",
            Sample(|f| f.slice(4, 0, |s| s[1] ^= 0x08)),
            Bad("sample 4 of 33 at byte 3456 cannot be decoded"),
        ),
        case("slice_zeros.mp4", Sample(|f| f.slice(0, 0, |s| s[200..].fill(0))), Bad("leaves pixels of row")),
        case("slice_ones.mp4", Sample(|f| f.slice(0, 0, |s| s[200..].fill(0xff))), Bad("leaves pixels of row 32 out")),
        case(
            "slice_bits.mp4",
            Sample(|f| f.slice(0, 0, |s| s.iter_mut().skip(100).step_by(97).for_each(|byte| *byte ^= 0x10))),
            Bad("leaves pixels of row"),
        ),
        case(
            "sample_of_zeros.mp4",
            Sample(|f| {
                let range = f.sample(6);
                f.fill(range, 0)
            }),
            Bad("holds an empty unit"),
        ),
        case(
            "no_keyframe_at_the_start.mp4",
            Sample(|f| f.slice(0, 0, |s| s[0] = s[0] & !31 | 1)),
            Bad("ffmpeg gave none after frame 0"),
        ),
        case("no_second_keyframe.mp4", Sample(|f| f.slice(12, 0, |s| s[0] = s[0] & !31 | 1)), Bad("sample 12 of 33")),
        case("slices.mp4", H264("-x264-params slices=4"), yuv),
        case(
            "slice_2_of_4_zeros.mp4",
            Changed("slices.mp4", |f| f.slice(0, 1, |s| s[8..].fill(0))),
            Bad("ffmpeg gave none after frame"),
        ),
        case(
            "slice_2_of_4_header.mp4",
            Changed("slices.mp4", |f| f.slice(5, 1, |s| s[1] ^= 0xff)),
            Bad("ffmpeg gave none after frame"),
        ),
        case(
            "slice_3_of_4_lost.mp4",
            Changed("slices.mp4", |f| f.slice(7, 2, |s| s[0] = 12)),
            Bad("ffmpeg gave none after frame"),
        ),
        case(
            "slice_4_of_4_ones.mp4",
            Changed("slices.mp4", |f| f.slice(0, 3, |s| s[40..].fill(0xff))),
            Bad("ffmpeg gave none after frame"),
        ),
        case(
            "slice_1_of_4_ends_early.mp4",
            Changed("slices.mp4", |f| {
                f.slice(9, 0, |s| {
                    let half = s.len() / 2;
                    s[half..].fill(0)
                })
            }),
            Bad("ffmpeg gave none after frame"),
        ),
        case("cavlc_slices.mp4", H264("-x264-params cabac=0:8x8dct=0:slices=4"), yuv),
        case(
            "cavlc_slice_2_of_4.mp4",
            Changed("cavlc_slices.mp4", |f| f.slice(0, 1, |s| s[20..].fill(0xff))),
            Bad("ffmpeg gave none after frame"),
        ),
        case(
            "cavlc_slice_3_of_4_lost.mp4",
            Changed("cavlc_slices.mp4", |f| f.slice(3, 2, |s| s[0] = 12)),
            Bad("ffmpeg gave none after frame"),
        ),
        // Odd, and good.
        case("plain.mp4", H264(""), yuv),
        case("bframes_open_gop.mp4", H264("-bf 3 -x264-params open-gop=1:keyint=10:min-keyint=5"), yuv),
        case("size_66x34.mp4", H264("-vf scale=66:34"), yuv),
        case("size_65x33.mkv", Ffmpeg("-c:v ffv1 -pix_fmt yuv420p -vf scale=65:33"), yuv),
        case("size_65x33.mp4", Ffmpeg("-c:v libx264 -pix_fmt yuv444p -vf scale=65:33"), Equal("yuv444p")),
        case("size_16x16.mp4", H264("-vf scale=16:16"), yuv),
        case("variable_rate.mp4", H264("-vf select=not(mod(n\\,3))+lt(n\\,9) -fps_mode vfr"), yuv),
        case("chroma_422.mp4", Ffmpeg("-c:v libx264 -pix_fmt yuv422p -bf 2"), Equal("yuv422p")),
        case("ten_bits.mp4", Ffmpeg("-c:v libx264 -pix_fmt yuv420p10le -bf 2"), Near("yuv420p10le")),
        case("ten_bits_422.mp4", Ffmpeg("-c:v libx264 -pix_fmt yuv422p10le"), Near("yuv422p10le")),
        case("monochrome.mp4", Ffmpeg("-c:v libx264 -pix_fmt gray"), Equal("gray")),
        case("interlaced.mp4", H264("-flags +ilme+ildct -x264-params tff=1"), yuv),
        case("lossless.mp4", Ffmpeg("-c:v libx264 -qp 0 -pix_fmt yuv444p"), Equal("yuv444p")),
        case("one_frame.mp4", H264("-frames:v 1"), yuv),
        case("two_frames.mp4", H264("-frames:v 2"), yuv),
        case("hevc.mp4", Ffmpeg("-c:v libx265 -pix_fmt yuv420p -x265-params log-level=none:keyint=15"), yuv),
        case("vp9.webm", Ffmpeg("-c:v libvpx-vp9 -pix_fmt yuv420p -deadline realtime -cpu-used 8"), yuv),
        case("mpeg4.avi", Ffmpeg("-c:v mpeg4 -g 12 -pix_fmt yuv420p"), yuv),
        case("mjpeg.mov", Ffmpeg("-c:v mjpeg -pix_fmt yuvj422p"), Equal("yuvj422p")),
        case("prores.mov", Ffmpeg("-c:v prores -pix_fmt yuv422p10le"), Near("yuv422p10le")),
        case("transport.ts", Ffmpeg("-c:v mpeg2video -bf 2 -pix_fmt yuv420p"), yuv),
        case("fragments.mp4", H264("-g 6 -movflags +frag_keyframe+empty_moov"), yuv),
        case("matroska.mkv", H264("-bf 3 -g 12"), yuv),
        case("small.m2v", Ffmpeg("-c:v mpeg2video -pix_fmt yuv420p -vf scale=48:32"), yuv),
        case("large.m2v", Ffmpeg("-c:v mpeg2video -pix_fmt yuv420p"), yuv),
        case("sound_and_video.mp4", Inputs("-i plain.mp4 -f lavfi -i sine=duration=0.8 -map 1 -map 0 -c:v copy"), yuv),
        case("two_videos.mp4", Inputs("-i one_frame.mp4 -i plain.mp4 -map 0 -map 1 -c copy"), yuv),
        case("sound_only.mp4", Inputs("-f lavfi -i sine=duration=0.2"), Bad("no video track")),
        case("sound_only.mkv", Inputs("-f lavfi -i sine=duration=0.2"), Bad("no video that ffprobe knows")),
        case("rotated_90.mp4", Sample(|f| rotated(f, [0, 1, -1, 0])), yuv),
        case("rotated_180.mp4", Sample(|f| rotated(f, [-1, 0, 0, -1])), yuv),
        case("rotated_270.mp4", Sample(|f| rotated(f, [0, -1, 1, 0])), yuv),
        case("starts_between_keyframes.mp4", Inputs("-ss 0.2 -i bframes_open_gop.mp4 -c copy"), yuv),
        case(
            "free_boxes.mp4",
            Changed("plain.mp4", |f| {
                let free = b"\0\0\0\x10free12345678".repeat(9);
                Mp4([&f.0[..], &free].concat())
            }),
            yuv,
        ),
        case("index_cut.mp4", Changed("plain.mp4", |f| f.shorter_by(1)), Bad("box `moov` reaches")),
        case(
            "index_missing.mp4",
            Changed("plain.mp4", |f| {
                let end = f.sample(9).start;
                f.cut(end)
            }),
            Bad("box `mdat` reaches"),
        ),
        // Damage in what ffmpeg reads.
        case(
            "hevc_damaged.mp4",
            Changed("hevc.mp4", |f| {
                let sample = f.sample(3);
                f.fill(sample.start + 8..sample.end, 0x55)
            }),
            Bad("ffmpeg gave none after"),
        ),
        case(
            "hevc_cut.mp4",
            Changed("hevc.mp4", |f| {
                let end = f.sample(9).start;
                f.cut(end)
            }),
            Bad("box `mdat` reaches"),
        ),
        case(
            "vp9_damaged.webm",
            Changed("vp9.webm", |f| {
                let half = f.0.len() / 2;
                f.fill(half..half + 200, 0x55)
            }),
            yuv,
        ),
        case(
            "matroska_damaged.mkv",
            Changed("matroska.mkv", |f| {
                let half = f.0.len() / 2;
                f.fill(half..half + 900, 0x55)
            }),
            Bad("damaged or was cut off"),
        ),
        case(
            "matroska_cut.mkv",
            Changed("matroska.mkv", |f| {
                let half = f.0.len() / 2;
                f.cut(half)
            }),
            Bad("cut off"),
        ),
        case(
            "fragments_cut.mp4",
            Changed("fragments.mp4", |f| {
                let most = f.0.len() * 3 / 4;
                f.cut(most)
            }),
            Bad("damaged or was cut off"),
        ),
        case(
            "fragments_damaged.mp4",
            Changed("fragments.mp4", |f| {
                let half = f.0.len() / 2;
                f.fill(half..half + 300, 0x55)
            }),
            Bad("ffmpeg gave none after"),
        ),
        case(
            "transport_damaged.ts",
            Changed("transport.ts", |f| {
                let half = f.0.len() / 2;
                f.fill(half..half + 400, 0x55)
            }),
            Bad("ffmpeg gave none after"),
        ),
        case(
            "mpeg4_damaged.avi",
            Changed("mpeg4.avi", |f| {
                let half = f.0.len() / 2;
                f.fill(half..half + 300, 0x55)
            }),
            Bad("ffmpeg gave none after"),
        ),
        case(
            "changes_its_size.m2v",
            Inputs("-i concat:large.m2v|small.m2v -c copy"),
            Bad("ffmpeg gave none after frame 17"),
        ),
    ]
}
