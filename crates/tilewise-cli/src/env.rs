//! The only reader of the command line and of what surrounds the program.

use std::ffi::OsString;
use std::path::PathBuf;

use tilewise_engine::model::hub::HubConfig;

/// What the shell gave.
pub(crate) struct Environment {
    /// The command line, program name first.
    pub(crate) args: Vec<OsString>,
    /// What clients of a server have to present: other processes see a command line, but not this.
    pub(crate) api_key: Option<String>,
    /// The same for what the administrator alone may do.
    pub(crate) admin_api_key: Option<String>,
}

impl Environment {
    /// Reads it.
    pub(crate) fn read() -> Self {
        Self {
            args: std::env::args_os().collect(),
            api_key: std::env::var("TILEWISE_API_KEY").ok(),
            admin_api_key: std::env::var("TILEWISE_ADMIN_API_KEY").ok(),
        }
    }
}

/// Where the program keeps what a user would miss, such as the history of lines; `None` for a user without a home.
pub(crate) fn data_folder() -> Option<PathBuf> {
    // A path that is not absolute is to be ignored, says the XDG base directory specification.
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let of_system = || {
        if cfg!(windows) {
            path("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            path("HOME").map(|home| home.join("Library/Application Support"))
        } else {
            path("HOME").map(|home| home.join(".local/share"))
        }
    };
    path("XDG_DATA_HOME").or_else(of_system).map(|folder| folder.join("tilewise"))
}

/// How the Hugging Face hub is reached and where its cache is: by the variables that its Python library reads.
pub(crate) fn hub() -> HubConfig {
    let text = |name: &str| std::env::var(name).ok().map(|text| text.trim().to_owned());
    let text = |name: &str| text(name).filter(|text| !text.is_empty());
    let first = |names: &[&str]| names.iter().find_map(|name| text(name));
    let path = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
    let cache = || path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
    let hf_home = path("HF_HOME").unwrap_or_else(|| cache().join("huggingface"));
    let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
    let written = || std::fs::read_to_string(token_file).ok().map(|token| token.trim().to_owned());
    let is_set = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_uppercase().as_str());
    let is_disabled = text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_set);
    let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(written);
    let default = HubConfig::default();
    HubConfig {
        endpoint: text("HF_ENDPOINT").unwrap_or(default.endpoint),
        cache: path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| hf_home.join("hub")),
        token: token.filter(|token| !token.is_empty() && !is_disabled),
        offline: first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(is_set),
        proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
        no_proxy: first(&["NO_PROXY", "no_proxy"]),
        ..default
    }
}

/// The system, and the processor's name where the system tells it.
pub(crate) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map(|(_, name)| format!(", {}", name.trim())).unwrap_or_default();
    format!("{} on {}{name}", std::env::consts::OS, std::env::consts::ARCH)
}
