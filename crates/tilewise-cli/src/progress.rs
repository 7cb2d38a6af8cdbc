//! Progress on the terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use tilewise_engine::model::Progress;
use tilewise_engine::model::hub::Download;

/// A bar for loading weights; hidden where nobody looks.
pub(crate) struct LoadingBar(ProgressBar);

impl LoadingBar {
    pub(crate) fn new() -> Self {
        Self(bar("loading {bar:32} {bytes}/{total_bytes} {bytes_per_sec}"))
    }

    pub(crate) fn report(&self, progress: Progress) {
        self.0.set_length(progress.total as u64);
        self.0.set_position(progress.done as u64);
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn bar(template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A bar per file that is fetched; lines that say the file where nobody looks at bars.
#[derive(Default)]
pub(crate) struct DownloadBar {
    file: String,
    bar: Option<ProgressBar>,
}

impl DownloadBar {
    pub(crate) fn report(&mut self, download: Download<'_>) {
        let Download { file, done, total } = download;
        if self.file != file {
            file.clone_into(&mut self.file);
            self.clear();
            let bar = bar("fetching {msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            if bar.is_hidden() {
                say!("tilewise: fetching {file} ({total} bytes)");
            }
            bar.set_length(total);
            bar.set_message(file.to_owned());
            // What was here before counts for nothing in the speed.
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for DownloadBar {
    fn drop(&mut self) {
        self.clear();
    }
}
