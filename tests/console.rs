//! What leaves to terminals and pipes: nothing unsafe, nothing endless, and no panic.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use requant_formats::Dtype;
use requant_formats::container::gguf::{GgmlType, Metadata, TensorSpec};
use serde_json::{Value, json};

use crate::conversion::{convert, fixtures, model};
use crate::maker::{self, Size, Storage};
use crate::served::text;

/// Moves the cursor, changes colours, turns the direction of writing round, and begins new lines, in every way.
const HOSTILE: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nOK\u{8}\u{7f}\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{2029}\u{61c}end";

fn requant<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn is_unsafe(c: char) -> bool {
    c != '\n' && c.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}\u{61c}".contains(c)
}

/// Nothing unsafe is on either stream, and no line is one that a name has made.
fn check(output: &Output) -> String {
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(!all.contains(is_unsafe), "{all:?}");
    assert!(!all.lines().any(|line| line.starts_with("OK")), "{all}");
    assert!(!all.contains("panicked"), "{all}");
    all
}

/// A GGUF file with a tensor of that name.
fn gguf(path: &Path, name: &str) {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("general.name", name);
    let spec = TensorSpec { name: name.into(), shape: vec![32], ggml_type: GgmlType::F32 };
    maker::gguf(path, metadata, vec![spec], &[vec![0; 128]]);
}

/// A checkpoint whose tensors of one kind have `name` in theirs.
fn checkpoint(directory: &Path, name: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Plain(Dtype::BF16));
    checkpoint.tensors[3].name = format!("model.layers.0.{name}");
    checkpoint.write(directory);
    maker::copy_tokenizer(directory);
}

#[test]
fn names_from_outside_do_not_reach_the_terminal_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    gguf(&file, HOSTILE);
    let source = directory.path().join("source");
    checkpoint(&source, HOSTILE);
    // A shard and a directory with such a name.
    let odd = directory.path().join(format!("odd{}", HOSTILE.replace('/', "")));
    checkpoint(&odd, "name");
    std::fs::write(odd.join(format!("{HOSTILE}.safetensors")), b"12").unwrap();
    for path in [&file, &source, &odd] {
        let path = path.as_os_str();
        for command in [
            &["inspect"][..],
            &["plan", "--to", "q4_0"],
            &["plan", "--to", "mlx-4bit"],
            &["verify"],
            &["perplexity", "--text", "no-such-text"],
            &["perplexity", "--text", "/dev/null"],
            &["verify", "--sums", HOSTILE],
            &["plan", "--to", HOSTILE],
            &["plan", "--to", "q4_0", "--tokenizer-pre", HOSTILE],
            &["plan", "--to", "q4_0", "--tensor-type", HOSTILE],
            &["plan", "--to", "q4_0", HOSTILE],
            &["convert", "--to", "q4_0", "-o", HOSTILE],
        ] {
            let arguments: Vec<&OsStr> = command[..1]
                .iter()
                .map(OsStr::new)
                .chain([path])
                .chain(command[1..].iter().map(OsStr::new))
                .collect();
            check(
                &Command::new(env!("CARGO_BIN_EXE_requant"))
                    .args(arguments)
                    .current_dir(directory.path().join("source"))
                    .output()
                    .unwrap(),
            );
        }
    }
    let shown = check(&requant(&[OsStr::new("inspect"), file.as_os_str()]));
    assert!(
        shown.contains("\\u{1b}[2J") && shown.contains("\\r\\nOK") && shown.contains("\\u{202e}"),
        "{shown}"
    );

    // JSON keeps the name itself, in its own way of writing it.
    let output = requant(&[OsStr::new("inspect"), file.as_os_str(), OsStr::new("--json")]);
    check(&output);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["tensors"][0]["name"], HOSTILE);

    // Of a manifest, too.
    let result = directory.path().join("r.gguf");
    convert(&model(), "q4_0", 2, &result).unwrap();
    let manifest = directory.path().join("r.gguf.manifest.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    value["tensors"][0]["name"] = json!(HOSTILE);
    let nothing = "0".repeat(64);
    for (digest, said) in [(nothing.as_str(), "checks failed"), (HOSTILE, "is no 64 hex digits")] {
        value["tensors"][0]["sha256"] = json!(digest);
        value["files"][0]["sha256"] = json!(digest);
        std::fs::write(&manifest, value.to_string()).unwrap();
        for more in [&[][..], &["--json"]] {
            let arguments: Vec<&OsStr> = [OsStr::new("verify"), result.as_os_str()]
                .into_iter()
                .chain(more.iter().map(OsStr::new))
                .collect();
            let shown = check(&requant(&arguments));
            assert!(shown.contains(said), "{shown}");
        }
    }
}

#[test]
fn a_message_is_a_few_kilobytes_at_most() {
    let directory = tempfile::tempdir().unwrap();
    let long = "x".repeat(10_000_000);
    checkpoint(directory.path(), &long);
    let path = directory.path().to_str().unwrap();
    for command in [&["plan", path, "--to", "q4_0"][..], &["inspect", path]] {
        let output = requant(command);
        let longest = |bytes: &[u8]| text(bytes).lines().map(str::len).max().unwrap_or(0);
        assert!(longest(&output.stdout) < 5000 && output.stderr.len() < 5000, "{command:?}");
    }
    let message = check(&requant(&["plan", path, "--to", "q4_0"]));
    assert!(message.contains("bytes more"), "{message}");
    let message = text(&requant(&["plan", path, "--to", &long[..100_000]]).stderr);
    // What can be done is still in it.
    assert!(message.len() < 5000 && message.contains("mlx-4bit"), "{message}");
}

#[test]
fn a_stream_that_takes_nothing_is_an_error_and_no_panic() {
    let model = model();
    let model = model.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    let done = requant(&["convert", model, "--to", "q4_0", "-o", file.to_str().unwrap(), "-q"]);
    assert!(done.status.success());
    let heldout = fixtures().join("text/heldout.txt");
    let heldout = std::fs::read_to_string(heldout).unwrap();
    std::fs::write(directory.path().join("t"), &heldout[..3000]).unwrap();
    let measured = directory.path().join("t");
    let (file, measured) = (file.to_str().unwrap(), measured.to_str().unwrap());
    let again = directory.path().join("again.gguf");
    let again = again.to_str().unwrap();
    for command in [
        &["inspect", model][..],
        &["inspect", model, "--json"],
        &["plan", model, "--to", "q4_0"],
        &["plan", model, "--to", "q4_0", "--json"],
        &["verify", file],
        &["verify", file, "--json"],
        &["perplexity", file, "--text", measured, "-c", "64"],
        &["perplexity", file, "--text", measured, "-c", "64", "--json"],
        &["convert", model, "--to", "q4_0", "--force", "-o", again],
        &["--help"],
        &["convert", "--help"],
        &["plan", "-h"],
        &["--version"],
    ] {
        let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let run = |stdout: Stdio, stderr: Stdio| {
            let mut command_line = Command::new(env!("CARGO_BIN_EXE_requant"));
            command_line.args(command).stdout(stdout).stderr(stderr).output().unwrap()
        };
        let output = run(full(), Stdio::piped());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {message}");
        assert!(
            message.contains("error: standard output: write failed: No space left"),
            "{command:?}: {message}"
        );
        assert!(!message.contains("panicked") && !message.contains("run the same command"), "{message}");

        // Without a reader: not a word about it.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(writer.into(), Stdio::piped());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {message}");
        assert!(!message.contains("error") && !message.contains("panicked"), "{command:?}: {message}");

        // Progress that nobody sees is no reason to fail.
        let output = run(Stdio::piped(), full());
        assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output.stdout));
        assert!(!output.stdout.is_empty());
    }
    // Nor does what is wrong with a command change its exit code.
    for (command, code) in [(&["plan", "no/such/place", "--to", "q4_0"][..], 1), (&["plan"], 2), (&[], 2)] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_requant"))
            .args(command)
            .stderr(full)
            .stdout(Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(code), "{command:?}");
    }
}

/// `name` with a byte in it that is no UTF-8.
fn odd(directory: &Path, name: &str) -> PathBuf {
    directory.join(OsString::from_vec([b"\xff", name.as_bytes()].concat()))
}

#[test]
fn arguments_need_not_be_text() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let source = odd(place, "source");
    std::fs::create_dir(&source).unwrap();
    for name in crate::conversion::names(&model()) {
        std::fs::copy(model().join(&name), source.join(&name)).unwrap();
    }
    let heldout = odd(place, "heldout.txt");
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&heldout, &whole[..4000]).unwrap();
    let recipe = odd(place, "recipe.toml");
    std::fs::write(&recipe, "[[rule]]\ntarget = \"down\"\ntype = \"q8_0\"\n").unwrap();
    let saved = odd(place, "saved.toml");
    let file = place.join("m.gguf");
    let os = |text: &'static str| OsString::from(text);
    let at = |path: &Path| path.as_os_str().to_owned();
    let convert = |format: &'static str, output: &Path| {
        let mut arguments = vec![os("convert"), at(&source), os("--to"), os(format), os("-o"), at(output)];
        arguments.extend([os("--validate"), at(&heldout), os("--validate-context"), os("128"), os("--json")]);
        arguments
    };
    let with_rules = [os("--recipe"), at(&recipe), os("--save-recipe"), at(&saved)];
    for arguments in [
        [convert("q4_0", &file), with_rules.to_vec()].concat(),
        [vec![os("perplexity"), at(&file), os("--against"), at(&source)], vec![os("--text"), at(&heldout)]]
            .concat(),
        convert("mlx-4bit", &odd(place, "m")),
        vec![os("verify"), at(&file), os("--json")],
        vec![os("verify"), at(&odd(place, "m")), os("--json")],
        vec![os("verify"), at(&file)],
        vec![os("inspect"), at(&source)],
        vec![os("inspect"), at(&odd(place, "m")), os("--json")],
        vec![os("plan"), at(&source), os("--to"), os("q4_0"), os("--json")],
        vec![
            os("perplexity"),
            at(&source),
            os("--text"),
            at(&heldout),
            os("--tokens"),
            at(&odd(place, "ids")),
            os("--json"),
        ],
    ] {
        let output = requant(&arguments);
        let shown = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {shown}");
        if arguments.contains(&os("--json")) {
            serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
    }
    // What cannot be is said.
    let renamed = odd(place, "m.gguf");
    std::fs::rename(&file, &renamed).unwrap();
    let not_text = OsString::from_vec(vec![b'x', 0xff]);
    for (arguments, code, words) in [
        (vec![os("inspect"), at(&renamed)], 1, "not UTF-8"),
        (vec![os("perplexity"), at(&renamed), os("--text"), at(&heldout)], 1, "not UTF-8"),
        (convert("q4_0", &odd(place, "n.gguf")), 1, "not UTF-8"),
        (vec![os("plan"), not_text.clone(), os("--to"), os("q4_0")], 1, "no such file"),
        (vec![os("verify"), not_text.clone()], 1, "no such file"),
        (vec![os("inspect"), not_text.clone()], 1, "no such file"),
        (vec![os("fetch"), not_text.clone(), os("-o"), not_text.clone()], 1, "not a hub id"),
        (vec![os("perplexity"), at(&source), os("--text"), not_text.clone()], 1, "No such file"),
        (vec![os("plan"), at(&source), os("--to"), not_text.clone()], 2, "UTF-8"),
        (vec![not_text.clone()], 2, "unrecognized"),
    ] {
        let output = requant(&arguments);
        let message = check(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(words), "{arguments:?}: {message}");
    }
}

/// `--color`, before or after the command; what is no terminal gets colours only when it is told so.
#[test]
fn colours_are_for_those_who_want_them() {
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        let output = command.args(arguments).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
        output.stderr
    };
    let red = |stderr: &[u8]| stderr.starts_with(b"\x1b[1;31merror:\x1b[0m ");
    let wrong = ["plan", ".", "--to", "q4km"];
    assert!(!run(&wrong, &[]).contains(&0x1b));
    for arguments in [
        &["plan", ".", "--to", "q4km", "--color", "always"][..],
        &["plan", "--color=always", ".", "--to", "q4km"],
        &["--color", "always", "plan", ".", "--to", "q4km"],
        &["plan", "--color=never", "--color=always"],
        &["plan", "--color", "always"],
    ] {
        // One that is given twice is an error too.
        assert!(red(&run(arguments, &[("NO_COLOR", "1")])), "{arguments:?}");
    }
    for arguments in
        [&["plan", ".", "--to", "q4km", "--color", "never"][..], &["plan", "--color", "sometimes", "."]]
    {
        assert!(!run(arguments, &[("CLICOLOR_FORCE", "1")]).contains(&0x1b), "{arguments:?}");
    }
    // A name with colours of its own stays without.
    let odd = run(&["plan", ".", "--to", "\x1b[32mgreen", "--color=always"], &[]);
    assert!(
        red(&odd) && odd.iter().filter(|byte| **byte == 0x1b).count() == 2,
        "{}",
        String::from_utf8_lossy(&odd)
    );
}
