//! The command `tilewise`.
#![forbid(unsafe_code)]

#[macro_use]
mod say;

mod args;
mod commands;
mod embedded;
mod env;
mod error;
mod model;
mod progress;

use std::io::Write;
use std::process::ExitCode;

use args::{Bench, Command};
use clap::error::ErrorKind;
use commands::serve::Keys;
use error::CliError;

fn main() -> ExitCode {
    let env::Environment { args, api_key, admin_api_key } = env::Environment::read();
    let (named, words) = args::named(&args);
    let result = match args::parse(args) {
        Ok(command) => run(command, Keys { api_key, admin_api_key }),
        // Whoever says nothing asks for help too.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            std::io::stdout().write_all(error.render().to_string().as_bytes()).map_err(CliError::from)
        }
        Err(error) if error.use_stderr() => Err(CliError::of_line(&error, &words)),
        // Help and version were asked for.
        Err(error) => error.print().map_err(CliError::from),
    };
    match result {
        // Whoever read the output has closed it, and with it any interest in the rest.
        Ok(()) | Err(CliError::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            let error = error.with_flag(&named);
            say::last(format!("tilewise: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command, keys: Keys) -> Result<(), CliError> {
    match command {
        Command::Generate(args) => commands::generate::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Bench(Bench::Attention(args)) => commands::bench_attention::run(&args),
        Command::BenchOneBatch(args) => commands::bench_one_batch::run(&args),
        Command::BenchServingOffline(args) => commands::bench_serving_offline::run(&args),
        Command::Docs(args) => commands::docs::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Serve(args) => commands::serve::run(&args, keys),
        Command::Tune(args) => commands::tune::run(&args),
    }
}
