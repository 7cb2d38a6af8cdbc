//! `tilewise docs`, hidden: what the documentation says of this program, as Markdown, for `cargo xtask docs`.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{Arg, Command};

use crate::args::{self, DocsArgs, DocsTopic};
use crate::error::CliError;

pub(crate) fn run(args: &DocsArgs) -> Result<(), CliError> {
    let text = match args.topic {
        DocsTopic::Commands => commands(),
        DocsTopic::Kernels => kernels()?,
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Every command with its flags.
fn commands() -> String {
    let mut root = args::command();
    root.build();
    let mut page = "# Commands\n\nThis page is written by `cargo xtask docs` from what `--help` says; do not edit it.\n\n\
                    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad usage.\n"
        .to_owned();
    describe(&root, &mut page);
    page
}

/// A command and those below it, in their order.
fn describe(command: &Command, page: &mut String) {
    let visible: Vec<&Command> =
        command.get_subcommands().filter(|command| !is_help(command) && !command.is_hide_set()).collect();
    if visible.is_empty() {
        let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
        let about =
            command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(page, "\n## `{name}`\n\n{}\n", sentence(&about));
        page.push_str(&flags(command));
    }
    for command in visible {
        describe(command, page);
    }
}

/// clap's own command, which only repeats the others.
fn is_help(command: &Command) -> bool {
    command.get_name() == "help"
}

/// The arguments of a command as a table.
fn flags(command: &Command) -> String {
    let is_own = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let mut table = "| argument | meaning | default |\n|---|---|---|\n".to_owned();
    for arg in command.get_arguments().filter(is_own) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = match defaults.join(",") {
            text if text.is_empty() || !arg.get_action().takes_values() => String::new(),
            text => format!("`{text}`"),
        };
        let _ = writeln!(
            table,
            "| `{}` | {} | {} |",
            cell(&usage(arg)),
            cell(&(help + &choices(arg))),
            cell(&default)
        );
    }
    table
}

/// A flag with its value, or a value without a flag.
fn usage(arg: &Arg) -> String {
    let takes = arg.get_action().takes_values();
    let names: Vec<String> =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let value = if takes { names.join(" ") } else { String::new() };
    let Some(long) = arg.get_long() else { return value };
    let short = arg.get_short().map(|short| format!("-{short}"));
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let flags: Vec<String> =
        short.into_iter().chain([long].into_iter().chain(aliases).map(|name| format!("--{name}"))).collect();
    format!("{} {value}", flags.join(", ")).trim_end().to_owned()
}

/// The values that a flag may have, where they are few.
fn choices(arg: &Arg) -> String {
    let values = arg.get_possible_values();
    if values.is_empty() || !arg.get_action().takes_values() {
        return String::new();
    }
    let names: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
    format!(" ({})", names.join(", "))
}

/// The processor's attention kernels and the rules that choose among them.
fn kernels() -> Result<String, CliError> {
    let device = tilewise::open("cpu", Some(1))?;
    let policy = device.policy();
    let names: Vec<String> = policy.kernels.iter().map(|kernel| format!("`{}`", kernel.name)).collect();
    let mut page = format!(
        "## Rules that rest on these records\n\nThe attention kernels of the processor are {}. The first rule that applies to a sequence \
         chooses; `tilewise explain` says which, and a test fails when a rule's record is not there.\n\n\
         | kernel | when | record |\n|---|---|---|\n",
        names.join(", ")
    );
    for rule in policy.rules {
        let file = rule.evidence;
        let _ = writeln!(page, "| `{}` | {} | [{file}](../{file}) |", rule.kernel, cell(rule.when));
    }
    Ok(page)
}

/// A text as one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}
