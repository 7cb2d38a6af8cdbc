//! Models by name, against a hub of our own that is slow, broken and refuses.

#[path = "../common/mod.rs"]
mod common;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{model_folder, qwen3, safetensors, small, tiny_config};
use safetensors::tensor::Dtype;
use serde_json::json;
use server::{Asked, COMMIT, Fault, Hub, sha256};
use tempfile::TempDir;
use tilewise_engine::Error;
use tilewise_engine::model::hub::{self, HubConfig, HubModel};
use tilewise_engine::model::{ModelConfig, ModelSource};

/// The files of a model in two shards, with others that nobody needs.
fn files() -> BTreeMap<String, Vec<u8>> {
    let sizes = ModelConfig::from_json("config.json", &tiny_config().to_string()).unwrap();
    let mut first = qwen3(&sizes);
    let second = first.split_off(first.len() / 2);
    let mut map = serde_json::Map::new();
    let mut files = BTreeMap::new();
    for (file, tensors) in [("a.safetensors", &first), ("sub/b.safetensors", &second)] {
        map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        files.insert(file.to_owned(), safetensors(tensors, Dtype::F32));
    }
    let index = json!({ "weight_map": map }).to_string();
    for (file, bytes) in [
        ("config.json", tiny_config().to_string()),
        ("model.safetensors.index.json", index),
        ("tokenizer.json", "{}".to_owned()),
        ("tokenizer_config.json", "{} ".to_owned()),
        ("pytorch_model.bin", "a pickle".to_owned()),
        ("other.safetensors", "not named by the index".to_owned()),
        ("README.md", "words".to_owned()),
    ] {
        files.insert(file.to_owned(), bytes.into_bytes());
    }
    files
}

/// A hub and a cache for it.
struct Case {
    hub: Hub,
    config: HubConfig,
    cache: TempDir,
}

impl Case {
    fn new() -> Self {
        Self::with(files(), None)
    }

    fn with(files: BTreeMap<String, Vec<u8>>, storage: Option<&Hub>) -> Self {
        let (hub, cache) = (Hub::start(files, storage), tempfile::tempdir().unwrap());
        let config = HubConfig {
            endpoint: hub.address.clone(),
            cache: cache.path().to_owned(),
            timeout: Duration::from_millis(400),
            pause: Duration::from_millis(10),
            ..HubConfig::default()
        };
        Self { hub, config, cache }
    }

    fn locate(&self, model: &str) -> Result<PathBuf, Error> {
        hub::locate(Path::new(model), None, &self.config, &mut |_| {})
    }

    /// The model, which must come whole.
    #[track_caller]
    fn fetched(&self) -> PathBuf {
        let folder = self.locate("org/name").unwrap();
        for (file, bytes) in files() {
            let wanted = !["pytorch_model.bin", "other.safetensors", "README.md"].contains(&file.as_str());
            assert_eq!(fs::read(folder.join(&file)).ok(), wanted.then_some(bytes), "{file}");
        }
        folder
    }

    /// The error of fetching, checked to say all of `words`, and that no half of a model is taken for one.
    #[track_caller]
    fn refused(&self, model: &str, words: &[&str]) {
        let error = self.locate(model).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{error:?}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} does not say {word:?}");
        }
        assert!(!self.cache.path().join("models--org--name/refs/main").exists());
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.cache.path().join("models--org--name/blobs").join(sha256(&files()[file]))
    }
}

fn gets(asked: &[Asked], file: &str) -> Vec<Option<String>> {
    let asked = asked.iter().filter(|asked| asked.method == "GET" && asked.path.ends_with(file));
    asked.map(|asked| asked.headers.get("range").cloned()).collect()
}

#[test]
fn a_model_is_fetched_once_with_the_files_that_it_needs_and_runs() {
    let case = Case::new();
    let folder = case.fetched();
    assert_eq!(folder, case.cache.path().join("models--org--name/snapshots").join(COMMIT));
    let source = ModelSource::Folder(folder.clone());
    assert_eq!(source.repository().as_deref(), Some("org/name"));
    common::open(&folder, &small()).unwrap();
    assert!(!case.hub.asked().is_empty());
    assert_eq!(case.fetched(), folder);
    assert_eq!(case.hub.asked().len(), 0, "the cache has it");
    for other in [format!("org/name@{COMMIT}"), "org/name@main".to_owned()] {
        assert_eq!(case.locate(&other).unwrap(), folder);
    }
    assert_eq!(case.hub.asked().len(), 0, "the cache knows its commit");
    assert_eq!(case.locate("org/name@refs/pr/1").unwrap(), folder);
    let asked = case.hub.asked();
    assert!(asked.iter().all(|asked| asked.method == "HEAD" || asked.path.starts_with("/api/")), "{asked:?}");
    let root = case.cache.path().join("models--org--name");
    assert_eq!(hub::locate(&root, None, &case.config, &mut |_| {}).unwrap(), folder);
    assert_eq!(hub::locate(&root, Some("refs/pr/1"), &case.config, &mut |_| {}).unwrap(), folder);
}

#[test]
fn progress_is_told_by_file_and_reaches_its_size() {
    let case = Case::new();
    let mut last = BTreeMap::new();
    let mut report = |download: hub::Download<'_>| {
        last.insert(download.file.to_owned(), (download.done, download.total));
    };
    hub::locate(Path::new("org/name"), None, &case.config, &mut report).unwrap();
    for (file, bytes) in files().iter().filter(|(file, _)| last.contains_key(*file)) {
        assert_eq!(last[file], (bytes.len() as u64, bytes.len() as u64), "{file}");
    }
    assert_eq!(last.len(), 6, "{last:?}");
}

#[test]
fn a_download_that_breaks_goes_on_where_it_broke() {
    let case = Case::new();
    case.hub.fail("a.safetensors", [Fault::Cut(1000), Fault::Close, Fault::Cut(500)]);
    case.fetched();
    let ranges = gets(&case.hub.asked(), "a.safetensors");
    let range = |from: u64| Some(format!("bytes={from}-"));
    assert_eq!(ranges, [None, range(1000), range(1000), range(1500)]);
}

#[test]
fn a_download_that_was_given_up_goes_on_at_the_next_call() {
    let case = Case::new();
    case.hub.fail("b.safetensors", std::iter::once(Fault::Cut(2000)).chain(vec![Fault::Close; 3]));
    case.refused("org/name", &["org/name", "127.0.0.1", "try again later"]);
    let part = fs::metadata(case.blob("sub/b.safetensors").with_extension("part")).unwrap();
    assert_eq!(part.len(), 2000);
    case.hub.asked();
    case.fetched();
    let asked = case.hub.asked();
    assert_eq!(gets(&asked, "b.safetensors"), [Some("bytes=2000-".to_owned())]);
    assert_eq!(gets(&asked, "a.safetensors").len(), 0, "it is whole");
    assert!(!case.blob("sub/b.safetensors").with_extension("part").exists());
}

#[test]
fn a_host_without_ranges_sends_the_file_anew() {
    let case = Case::new();
    case.hub.fail("a.safetensors", [Fault::Cut(1000), Fault::NoRanges]);
    case.fetched();
    case.hub.asked();
    let case = Case::new();
    case.hub.fail("a.safetensors", [Fault::Cut(1000), Fault::Status(416, &[])]);
    case.fetched();
    let ranges = gets(&case.hub.asked(), "a.safetensors");
    assert_eq!(ranges, [None, Some("bytes=1000-".to_owned()), None]);
}

#[test]
fn bytes_that_are_not_those_that_the_hub_names_are_fetched_again_once() {
    let case = Case::new();
    case.hub.fail("a.safetensors", [Fault::Damaged]);
    case.fetched();
    let case = Case::new();
    case.hub.fail("a.safetensors", [Fault::Damaged, Fault::Damaged]);
    case.refused("org/name", &["a.safetensors", "another hash"]);
    assert!(!case.blob("a.safetensors").exists());
}

#[test]
fn a_hub_that_is_slow_is_asked_again_and_one_that_stays_so_given_up() {
    let case = Case::new();
    let slow = || Fault::Slow(Duration::from_millis(900));
    case.hub.fail("/api/models", [slow()]);
    case.hub.fail("a.safetensors", [slow()]);
    case.fetched();
    let case = Case::new();
    case.hub.fail("/api/models", vec![slow(); 8]);
    let start = Instant::now();
    case.refused("org/name", &["does not answer in 0.4 s", "try again later"]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_busy_hub_is_asked_again_after_the_pause_that_it_asks_for() {
    let case = Case::new();
    let busy = Fault::Status(429, &[("retry-after", "1")]);
    case.hub.fail("/api/models", [busy, Fault::Status(503, &[]), Fault::Status(500, &[])]);
    let start = Instant::now();
    case.fetched();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let case = Case::new();
    case.hub.fail("/api/models", [Fault::Status(429, &[("retry-after", "3600")])]);
    case.refused("org/name", &["429", "3600 s", "HF_TOKEN"]);
    case.hub.fail("/api/models", vec![Fault::Status(502, &[]); 4]);
    case.refused("org/name", &["502", "try again later"]);
}

#[test]
fn refusals_say_what_to_do() {
    let mut case = Case::new();
    case.hub.fail("/api/models", [Fault::Status(401, &[]), Fault::Status(403, &[])]);
    case.refused("org/name", &["org/name", "401", "set HF_TOKEN", "correct it"]);
    case.config.token = Some("hf_secret".to_owned());
    case.refused("org/name", &["403", "accept the terms at", "/org/name"]);
    case.config.token = None;
    case.hub.fail("/api/models", [Fault::Status(404, &[])]);
    case.refused("org/name", &["no such model", "404"]);
    case.refused("org/name@nowhere", &["org/name@nowhere", "no revision nowhere", "--revision"]);
    case.hub.fail("config.json", [Fault::Status(404, &[])]);
    case.refused("org/name", &["404"]);
    assert_eq!(case.hub.asked().iter().filter(|asked| asked.path.ends_with("config.json")).count(), 2);
}

#[test]
fn a_token_goes_to_the_hub_and_follows_no_redirect_to_another_host() {
    let storage = Hub::start(files(), None);
    let mut case = Case::with(files(), Some(&storage));
    case.config.token = Some("hf_secret".to_owned());
    case.fetched();
    let asked = case.hub.asked();
    assert!(
        asked
            .iter()
            .all(|asked| asked.headers.get("authorization").is_some_and(|auth| auth == "Bearer hf_secret"))
    );
    let elsewhere = storage.asked();
    assert_eq!(elsewhere.len(), 2, "{elsewhere:?}");
    assert!(elsewhere.iter().all(|asked| !format!("{asked:?}").contains("secret")), "{elsewhere:?}");
    assert!(!format!("{:?}", case.config).contains("secret"));
}

#[test]
fn a_redirect_within_the_hub_is_followed_and_one_without_end_is_not() {
    let case = Case::new();
    let folder = case.locate("org/renamed").unwrap();
    assert!(folder.ends_with(format!("models--org--renamed/snapshots/{COMMIT}")), "{folder:?}");
    let case = Case::new();
    let here = Fault::Status(302, &[("location", "/api/models/org/name/revision/main")]);
    case.hub.fail("/api/models", vec![here; 20]);
    case.refused("org/name", &["without end"]);
    let case = Case::new();
    case.hub.fail("/api/models", [Fault::Status(302, &[("location", "file:///etc/passwd")])]);
    case.refused("org/name", &["nowhere"]);
    let case = Case::new();
    case.hub.fail("/api/models", [Fault::Status(302, &[])]);
    case.refused("org/name", &["nowhere"]);
}

#[test]
fn a_list_of_files_that_is_hostile_is_refused() {
    for index in [
        json!({ "weight_map": { "a": "../../../evil.safetensors" } }),
        json!({ "weight_map": { "a": "/tmp/evil.safetensors" } }),
        json!([]),
    ] {
        let mut files = files();
        files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        let case = Case::with(files, None);
        let error = case.locate("org/name").unwrap_err().to_string();
        assert!(error.contains("model.safetensors.index.json"), "{error}");
    }
    let case = Case::new();
    case.hub.fail("/api/models", vec![Fault::Status(200, &[]); 4]);
    case.refused("org/name", &["no JSON"]);
}

#[test]
fn what_a_repository_holds_in_place_of_a_model_is_named() {
    let only = |names: &[&str]| {
        let files = names.iter().map(|name| ((*name).to_owned(), tiny_config().to_string().into_bytes()));
        Case::with(files.collect(), None)
    };
    only(&["model-q4.gguf"]).refused("org/name", &["model-q4.gguf is a GGUF file"]);
    only(&["config.json", "pytorch_model.bin"]).refused("org/name", &["pytorch_model.bin is a pickle"]);
    only(&["adapter_config.json", "adapter_model.safetensors"]).refused("org/name", &["adapter (LoRA)"]);
    let case = only(&["config.json"]);
    case.refused("org/name", &["neither model.safetensors"]);
    assert_eq!(case.hub.asked().len(), 1, "nothing is fetched in vain");
}

#[test]
fn offline_only_the_cache_is_looked_up() {
    let mut case = Case::new();
    case.config.offline = true;
    case.refused("org/name", &["not in the cache", "HF_HUB_OFFLINE"]);
    assert_eq!(case.hub.asked().len(), 0);
    case.config.offline = false;
    let folder = case.fetched();
    case.hub.asked();
    case.config.offline = true;
    assert_eq!(case.fetched(), folder);
    fs::remove_file(folder.join("sub/b.safetensors")).unwrap();
    let error = case.locate("org/name").unwrap_err().to_string();
    assert!(error.contains("sub/b.safetensors of it is not in the cache"), "{error}");
    assert_eq!(case.hub.asked().len(), 0);
    case.config.offline = false;
    case.fetched();
    assert_eq!(gets(&case.hub.asked(), ".safetensors").len(), 0, "the blob is still there");
}

#[test]
fn a_hub_that_is_not_there_is_said_to_be_so() {
    let mut case = Case::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    case.config.endpoint = format!("http://{free}");
    case.refused("org/name", &["127.0.0.1 cannot be reached", "refused"]);
    for endpoint in ["huggingface", "ftp://host", ""] {
        case.config.endpoint = endpoint.to_owned();
        let error = case.locate("org/name").unwrap_err().to_string();
        assert!(error.contains("endpoint"), "{error}");
    }
}

#[test]
fn a_cache_that_lacks_no_weights_serves_when_the_hub_does_not() {
    let case = Case::new();
    let folder = case.fetched();
    fs::remove_file(folder.join("tokenizer_config.json")).unwrap();
    case.hub.fail("/api/models", [Fault::Status(404, &[])]);
    assert_eq!(case.locate("org/name").unwrap(), folder);
    assert!(!folder.join("tokenizer_config.json").exists());
    assert_eq!(case.fetched(), folder, "the hub gives what lacks, when it can");
}

#[test]
fn two_that_fetch_the_same_model_get_it_both() {
    let case = Case::new();
    std::thread::scope(|scope| {
        let fetch = || scope.spawn(|| case.locate("org/name").unwrap());
        let (first, second) = (fetch(), fetch());
        assert_eq!(first.join().unwrap(), second.join().unwrap());
    });
    case.fetched();
    let asked = case.hub.asked();
    assert_eq!(gets(&asked, "/a.safetensors"), [None], "the second waits for the first");
}

#[test]
fn names_of_models_are_told_from_paths() {
    for (text, revision) in [
        ("Qwen/Qwen3-0.6B", "main"),
        ("org/name@v1", "v1"),
        ("org/name@refs/pr/1", "refs/pr/1"),
        ("a/b_c.d-e", "main"),
    ] {
        assert_eq!(HubModel::parse(text).unwrap().revision, revision, "{text}");
    }
    for text in [
        "",
        "name",
        "/org/name",
        "./name",
        "../name",
        "org/",
        "org/name/x",
        "org/na me",
        "org/name@",
        "org/name@../x",
        "org/name@/x",
        "~/name",
        "org/..",
        "org/-x",
        "o--g/name",
        "org/name@a b",
        "org\\name",
    ] {
        assert_eq!(HubModel::parse(text), None, "{text}");
    }
}

#[test]
fn a_path_that_is_no_folder_says_what_it_is() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let config = HubConfig { cache: folder.path().join("none"), offline: true, ..HubConfig::default() };
    let locate = |path: &Path, revision| hub::locate(path, revision, &config, &mut |_| {});
    assert_eq!(locate(folder.path(), None).unwrap(), folder.path());
    let refused = |path: &Path, revision, words: &[&str]| {
        let error = locate(path, revision).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    };
    refused(folder.path(), Some("v1"), &["no revision v1", "--revision"]);
    refused(&folder.path().join("none"), None, &["there is no such folder", "org/name"]);
    refused(&folder.path().join("model.safetensors"), None, &["give the folder that it is in"]);
    let gguf = folder.path().join("q.bin");
    fs::write(&gguf, "GGUF\x03\0\0\0").unwrap();
    refused(&gguf, None, &["GGUF", "safetensors"]);
    refused(Path::new("org/name@a"), Some("b"), &["revision", "org/name@a"]);

    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("models--org--name");
    for commit in ["abc", "def"] {
        fs::create_dir_all(root.join("snapshots").join(commit)).unwrap();
    }
    refused(&root, None, &["no snapshot of main", "abc, def"]);
    assert_eq!(locate(&root, Some("def")).unwrap(), root.join("snapshots/def"));
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), "abc\n").unwrap();
    assert_eq!(locate(&root, None).unwrap(), root.join("snapshots/abc"));
    refused(cache.path(), None, &["a cache of 1 models", "org/name"]);
}
