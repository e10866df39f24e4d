//! Where results go: what may be replaced, and what a result must stay away from.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use requant_formats::Dtype;
use tempfile::TempDir;

use crate::conversion::convert;
use crate::maker::{self, Size, Storage};
use crate::served::{ID, Served, text};

/// A directory with a checkpoint called `src` in it, to run commands in.
struct Desk {
    home: TempDir,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let desk = Self { home };
        desk.checkpoint("src");
        desk
    }

    fn checkpoint(&self, name: &str) {
        std::fs::create_dir_all(self.path(name)).unwrap();
        maker::checkpoint(Size::default(), Storage::Plain(Dtype::BF16)).write(&self.path(name));
        maker::copy_tokenizer(&self.path(name));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), content).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_requant"))
            .args(arguments)
            .current_dir(self.home.path())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    /// The command fails, says all of `words`, and has changed nothing, whether it is forced or not.
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let before = contents(self.home.path());
        for force in [&["--force"][..], &[]] {
            let arguments = [&["convert"][..], arguments, &["-q"], force].concat();
            let (code, message) = self.run(&arguments);
            assert_eq!(code, 1, "{arguments:?}: {message}");
            assert!(words.iter().all(|word| message.contains(word)), "{arguments:?}: {message}");
            assert!(contents(self.home.path()) == before, "{arguments:?} changed something: {message}");
        }
    }

    fn converts(&self, arguments: &[&str]) {
        let arguments = [&["convert"][..], arguments, &["-q"]].concat();
        let (code, message) = self.run(&arguments);
        assert_eq!(code, 0, "{arguments:?}: {message}");
    }
}

/// What is below a directory: names with bytes of files and targets of links.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            found.insert(path, target.as_os_str().as_bytes().to_vec());
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn a_result_is_never_its_source_by_any_name() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path("deep/er")).unwrap();
    symlink(desk.path(""), desk.path("deep/up")).unwrap();
    symlink("src", desk.path("alias")).unwrap();
    let absolute = desk.path("src");
    let absolute = absolute.to_str().unwrap();
    for source in ["src", "./src/", "deep/../src", "deep/up/src", "alias", absolute] {
        for output in
            ["src", "./src", "src/", "src/.", "src//", "deep/../src", "deep/up/src", "./././src", absolute]
        {
            desk.refuses(&[source, "--to", "mlx-4bit-g32", "-o", output], &["is the source"]);
        }
        for output in ["src/out", "deep/up/src/out", "deep/er/../up/src/out"] {
            desk.refuses(&[source, "--to", "mlx-4bit-g32", "-o", output], &["lies inside the source"]);
        }
        for output in ["src/out.gguf", "deep/up/src/out.gguf"] {
            desk.refuses(&[source, "--to", "q4_0", "-o", output], &["lies inside the source"]);
        }
        desk.refuses(&[source, "--to", "q4_0", "-o", "src"], &["is a directory", "a file"]);
        desk.refuses(&[source, "--to", "mlx-4bit-g32", "-o", "alias"], &["is the source"]);
    }
    // The source's directory as the current one, and a result that would hold it.
    desk.checkpoint("family/child");
    desk.refuses(&["family/child", "--to", "mlx-4bit-g32", "-o", "family"], &["contains the source"]);
    desk.refuses(&["deep/up/family/child", "--to", "mlx-4bit-g32", "-o", "family"], &["contains the source"]);
    // A run's own files beside its result.
    for name in ["out.partial", "out.replaced", "out.journal"] {
        std::fs::rename(desk.path("family/child"), desk.path(name)).unwrap();
        desk.refuses(&[name, "--to", "mlx-4bit-g32", "-o", "out"], &[name, "the source"]);
        std::fs::rename(desk.path(name), desk.path("family/child")).unwrap();
    }
}

#[test]
fn a_result_is_no_file_of_its_source() {
    let desk = Desk::new();
    // A file of the source that lies elsewhere, as in the Hugging Face cache.
    std::fs::create_dir(desk.path("blobs")).unwrap();
    let shard = "model-00001-of-00001.safetensors";
    std::fs::rename(desk.path("src").join(shard), desk.path("blobs/ab12")).unwrap();
    symlink("../blobs/ab12", desk.path("src").join(shard)).unwrap();
    desk.refuses(&["src", "--to", "q4_0", "-o", "blobs/ab12"], &["is a file of the source"]);
    desk.refuses(&["src", "--to", "mlx-4bit-g32", "-o", "blobs"], &["contains a file of the source"]);
    std::fs::hard_link(desk.path("blobs/ab12"), desk.path("hard.gguf")).unwrap();
    desk.refuses(&["src", "--to", "q4_0", "-o", "hard.gguf"], &["is a file of the source"]);
    // What a run would throw away as its own.
    std::fs::hard_link(desk.path("blobs/ab12"), desk.path("m.gguf.partial")).unwrap();
    desk.refuses(&["src", "--to", "q4_0", "-o", "m.gguf"], &["m.gguf.partial", "a file of the source"]);

    // GGUF sources: one file, and a set.
    convert(&desk.path("src"), "q8_0", 2, &desk.path("one.gguf")).unwrap();
    std::fs::hard_link(desk.path("one.gguf"), desk.path("two.gguf")).unwrap();
    for output in ["one.gguf", "./one.gguf", "blobs/../one.gguf", "two.gguf"] {
        desk.refuses(&["one.gguf", "--to", "q8_0", "-o", output], &["is the source"]);
    }
    desk.converts(&["src", "--to", "q8_0", "-o", "set.gguf", "--split-max-size", "1M"]);
    let first = std::fs::read_dir(desk.home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let first =
        first.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("set-00001-of-")).unwrap();
    let first = first.as_str();
    desk.refuses(&[first, "--to", "q8_0", "-o", first], &["is the source"]);
    let second = first.replace("00001-of", "00002-of");
    desk.refuses(&[first, "--to", "q8_0", "-o", &second], &["is a file of the source"]);
    // The set that is asked for would have the names of the source's.
    let request = [first, "--to", "q8_0", "-o", "set.gguf", "--split-max-size", "1M"];
    desk.refuses(&request, &["set-00001-of-", "is the source"]);
}

#[test]
fn a_result_is_nothing_else_that_the_command_names() {
    let desk = Desk::new();
    desk.write("text/t.txt", &"some text ".repeat(2000));
    desk.write("r/recipe.toml", "[[rule]]\ntarget = \"down\"\ntype = \"q8_0\"\n");
    let common = ["src", "--to", "q4_0", "-o"];
    for (output, more, what) in [
        ("text/t.txt", ["--validate", "text/t.txt"], "is the text of --validate"),
        ("r/recipe.toml", ["--recipe", "r/../r/recipe.toml"], "is the recipe"),
        ("new.toml", ["--save-recipe", "new.toml"], "is the file of --save-recipe"),
    ] {
        desk.refuses(&[&common[..], &[output], &more].concat(), &[what]);
    }
    std::fs::hard_link(desk.path("r/recipe.toml"), desk.path("m.gguf.journal")).unwrap();
    desk.refuses(&["src", "--to", "q4_0", "-o", "m.gguf", "--recipe", "r/recipe.toml"], &["m.gguf.journal"]);
    desk.refuses(
        &["src", "--to", "mlx-4bit-g32", "-o", "text", "--validate", "text/t.txt"],
        &["contains the text of --validate"],
    );

    let served = Served::model();
    std::fs::create_dir_all(served.path("hub/models--a--b")).unwrap();
    for (output, more, what) in [
        ("hub/out", &[][..], "lies inside the Hugging Face cache"),
        ("hub", &[], "is the Hugging Face cache"),
        ("sp/out", &["--spool", "sp"], "lies inside the directory of --spool"),
        ("sp", &["--spool", "sp/deeper/still"], "contains the directory of --spool"),
    ] {
        std::fs::create_dir_all(served.path("sp")).unwrap();
        let arguments = [&["convert", ID, "--to", "mlx-4bit-g32", "--force", "-o", output], more].concat();
        let message = served.failure(&arguments);
        assert!(message.contains(what), "{message}");
    }
    let message = served.failure(&["fetch", ID, "-o", "hub/models--a--b"]);
    assert!(message.contains("Hugging Face cache"), "{message}");
    assert!(served.hub.requests().is_empty(), "nothing was asked of the hub");
}

#[test]
fn a_directory_is_replaced_only_when_a_manifest_shows_it_to_be_a_result() {
    let desk = Desk::new();
    let request = ["src", "--to", "mlx-4bit-g32", "-o", "out"];
    let forced = ["src", "--to", "mlx-4bit-g32", "-o", "out", "--force"];
    // Somebody's own.
    desk.write("out/precious/thesis.txt", "years");
    desk.refuses(&request, &["is a directory without requant.manifest.json", "remove it yourself"]);
    desk.refuses(&["src", "--to", "q4_0", "-o", "out"], &["is a directory", "out/model-q4_0.gguf"]);
    std::fs::remove_dir_all(desk.path("out")).unwrap();

    desk.converts(&request);
    let (code, message) = desk.run(&[&["convert"][..], &request].concat());
    assert!(code == 1 && message.contains("out exists; --force replaces it"), "{message}");
    desk.converts(&forced);
    desk.converts(&["src", "--to", "mlx-4bit-g32", "-o", "out/", "--force"]);
    // The manifest may lie in it or beside it.
    let (beside, inside) = (desk.path("out.manifest.json"), desk.path("out/requant.manifest.json"));
    if beside.exists() {
        std::fs::rename(&beside, &inside).unwrap();
    } else {
        std::fs::rename(&inside, &beside).unwrap();
    }
    desk.converts(&forced);

    // What was put there later is named, and stays.
    for name in ["notes.txt", "eval/log.txt"] {
        desk.write(&format!("out/{name}"), "mine");
        desk.refuses(&request, &["does not list", name]);
        std::fs::remove_file(desk.path("out").join(name)).unwrap();
    }
    std::fs::create_dir_all(desk.path("out/empty")).unwrap();
    std::fs::remove_dir(desk.path("out/eval")).unwrap();
    desk.refuses(&request, &["does not list", "empty"]);
    std::fs::remove_dir(desk.path("out/empty")).unwrap();
    std::fs::rename(desk.path("out/config.json"), desk.path("mine.json")).unwrap();
    symlink("../mine.json", desk.path("out/config.json")).unwrap();
    desk.refuses(&request, &["does not list", "config.json"]);
    std::fs::remove_file(desk.path("out/config.json")).unwrap();
    desk.converts(&forced);

    // The manifest of a result that is gone says nothing about a directory that has its name now.
    let manifest = if beside.exists() { &beside } else { &inside };
    let manifest = std::fs::read(manifest).unwrap();
    std::fs::remove_dir_all(desk.path("out")).unwrap();
    std::fs::write(&beside, &manifest).unwrap();
    desk.write("out/config.json", "{}");
    desk.refuses(&request, &["does not list", "config.json"]);
    // Nor does one that cannot be read, or is about a file.
    for bad in ["", "{}", "null", "[[[["] {
        std::fs::write(&beside, bad).unwrap();
        desk.refuses(&request, &["manifest", "remove it yourself"]);
    }
}

#[test]
fn files_directories_and_links_are_told_apart_before_any_work() {
    let desk = Desk::new();
    desk.write("file", "precious");
    desk.write("dir/file", "precious");
    symlink("file", desk.path("to-file")).unwrap();
    symlink("dir", desk.path("to-dir")).unwrap();
    symlink("nowhere", desk.path("to-nothing")).unwrap();
    for (format, output, words) in [
        ("mlx-4bit-g32", "file", &["is a file", "a directory"][..]),
        ("q4_0", "dir", &["is a directory", "a file", "dir/model-q4_0.gguf"]),
        ("q4_0", "dir/", &["is a directory", "a file"]),
        ("q4_0", "new/", &["names a directory", "a file"]),
        ("q4_0", "new/.", &["names a directory"]),
        ("q4_0", "to-file", &["symbolic link to file"]),
        ("q4_0", "to-nothing", &["symbolic link to nowhere"]),
        ("mlx-4bit-g32", "to-nothing", &["symbolic link to nowhere"]),
        ("mlx-4bit-g32", "to-dir", &["symbolic link to dir"]),
        ("q4_0", "-", &["standard output"]),
        ("mlx-4bit-g32", "-", &["standard output"]),
        ("q4_0", "..", &["not a name"]),
        ("q4_0", "no/such/m.gguf", &["the directory no/such does not exist"]),
        ("mlx-4bit-g32", "no/such", &["the directory no does not exist"]),
        ("q4_0", "file/m.gguf", &["file is not a directory"]),
        ("q4_0", "file/deeper/m.gguf", &["file/deeper"]),
        ("q4_0", "/dev/null", &["neither a file nor a directory"]),
    ] {
        desk.refuses(&["src", "--to", format, "-o", output], words);
    }
    let before = contents(desk.home.path());
    for (output, words) in
        [("file", "no directory"), ("file/deeper", "no directory"), ("-", "standard output")]
    {
        let (code, message) = desk.run(&["fetch", "org/name", "-o", output]);
        assert!(code == 1 && message.contains(words), "{message}");
    }
    assert!(contents(desk.home.path()) == before);
}

/// Root may write everywhere, so that the command runs as somebody else then.
#[test]
fn a_directory_that_cannot_be_written_to_is_named_before_any_work() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let desk = Desk::new();
    std::fs::create_dir(desk.path("locked")).unwrap();
    std::fs::set_permissions(desk.path("locked"), PermissionsExt::from_mode(0o555)).unwrap();
    std::fs::set_permissions(desk.home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = desk.path("requant");
    std::fs::copy(env!("CARGO_BIN_EXE_requant"), &binary).unwrap();
    let mut command = Command::new(binary);
    command.args(["convert", "src", "--to", "q4_0", "-o", "locked/m.gguf"]).current_dir(desk.home.path());
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|of_self| {
        use std::os::unix::fs::MetadataExt;
        of_self.uid() == 0
    });
    if is_root {
        command.uid(65_534);
    }
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot write to the directory locked"), "{message}");
}

#[test]
fn the_manifest_of_another_result_is_not_replaced_by_the_way() {
    let desk = Desk::new();
    desk.converts(&["src", "--to", "q4_0", "-o", "m.gguf"]);
    let manifest = std::fs::read(desk.path("m.gguf.manifest.json")).unwrap();
    let split = ["src", "--to", "q4_0", "-o", "m.gguf", "--split-max-size", "1M"];
    let (code, message) = desk.run(&[&["convert"][..], &split].concat());
    assert!(
        code == 1 && message.contains("m.gguf.manifest.json") && message.contains("--force"),
        "{message}"
    );
    assert_eq!(std::fs::read(desk.path("m.gguf.manifest.json")).unwrap(), manifest);
    desk.converts(&[&split[..], &["--force"]].concat());
    desk.converts(&[&split[..], &["--force"]].concat());
}
