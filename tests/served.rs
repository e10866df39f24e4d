//! Runs the binary against a local hub with a cache of its own. No tests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use test_hub::{Hub, Repo};

use crate::conversion::{convert, model};

/// The repository.
pub(crate) const ID: &str = "org/tiny";

/// A hub, and a directory with the cache (`hub`) and whatever a test puts there.
pub(crate) struct Served {
    pub(crate) hub: Hub,
    home: TempDir,
    environment: Vec<(String, String)>,
}

impl Served {
    /// Serves the trained model as [`ID`].
    pub(crate) fn model() -> Self {
        Self::repo(Repo::from_directory(ID, &model()).unwrap())
    }

    pub(crate) fn repo(repo: Repo) -> Self {
        let hub = Hub::start(vec![repo]).unwrap();
        Self { hub, home: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// Sets a variable for every command from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        command.args(arguments).current_dir(self.home.path());
        environment(&mut command, &self.hub, &self.path("home"), &self.path("hub"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A command that succeeds, with `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json", "--quiet"]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that fails says on stderr.
    pub(crate) fn failure(&self, arguments: &[&str]) -> String {
        let output = self.run(&[arguments, &["--quiet"]].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        text(&output.stderr)
    }

    /// The cache as another tool would have left it after downloading the model.
    pub(crate) fn fill_cache(&self) -> PathBuf {
        let folder = self.path("hub/models--org--tiny");
        let fetched = self.json(&["fetch", ID, "-o", "for-the-cache"]);
        let commit = fetched["commit"].as_str().unwrap();
        let snapshot = folder.join("snapshots").join(commit);
        for directory in [&folder.join("blobs"), &folder.join("refs"), &snapshot] {
            std::fs::create_dir_all(directory).unwrap();
        }
        for file in fetched["files"].as_array().unwrap() {
            let digest = file.get("sha256").unwrap_or(&file["blob_id"]).as_str().unwrap();
            let name = file["name"].as_str().unwrap();
            std::fs::copy(model().join(name), folder.join("blobs").join(digest)).unwrap();
            std::os::unix::fs::symlink(format!("../../blobs/{digest}"), snapshot.join(name)).unwrap();
        }
        std::fs::write(folder.join("refs/main"), commit).unwrap();
        std::fs::remove_dir_all(self.path("for-the-cache")).unwrap();
        self.hub.clear_requests();
        snapshot
    }
}

/// Digest of a local conversion of the model under the name of its repository.
pub(crate) fn local_digest(format: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let named = directory.path().join("tiny");
    std::os::unix::fs::symlink(model(), &named).unwrap();
    let output = directory.path().join("m.gguf");
    convert(&named, format, 2, &output).unwrap().manifest.files[0].sha256.clone()
}

/// Points `command` to `hub`, with a home and a cache of its own and nothing of this process's.
pub(crate) fn environment(command: &mut Command, hub: &Hub, home: &Path, cache: &Path) {
    let ours = |name: &str| name.starts_with("HF_") || name.starts_with("HUGGING");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
        .env("HF_ENDPOINT", hub.url())
        .env("HF_HOME", home)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "2");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Names of the model's files.
pub(crate) fn model_files() -> Vec<String> {
    crate::conversion::names(&model())
}

/// Inverts a bit of a file, which may be a link.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
