//! `tilewise chat`: a conversation with a model, in the terminal or line by line through a pipe.

mod interrupt;
mod lines;
mod session;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use tilewise_engine::KvBudget;
use tilewise_engine::chat::Said;
use tilewise_engine::model::ModelSource;

use super::completion::{self, ABORTED};
use crate::args::{ChatArgs, Format};
use crate::error::CliError;
use crate::model;
use interrupt::Interrupt;
use lines::{Line, Lines};
use session::{Answer, Session};

const HELP: &str = "/help   says this; also /?
/clear  begins a new conversation; --system is kept
/exit   ends, as Ctrl-D, /quit and /bye do
Ctrl-C stops an answer. Several lines that are pasted are one turn. Any other text is said to the model, and so is a line
that begins with a space.";

/// How a terminal is told to write dimly, and as before.
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

pub(crate) fn run(args: &ChatArgs) -> Result<(), CliError> {
    let source = model::source(&args.run.model)?;
    let (tokenizer, sizes) = (source.tokenizer()?, source.config()?);
    let sampling = args.run.sampling.params(&sizes.sampling_defaults)?;
    let device = super::open_device(&args.run.device, &args.run.policy)?;
    let mut session = Session::new(args, &tokenizer, sampling)?;
    // The kept prefix of each turn is what makes the next one quick: room for one whole context.
    let kv = args.kv_tokens.map_or(KvBudget::Fraction(0.8), KvBudget::Tokens);
    let mut engine = model::load(&device, &source, &completion::engine_config(&args.run, kv)?)?;
    model::print_sampling(&args.run.sampling.of_model(&sizes.sampling_defaults));

    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut lines = Lines::open(is_terminal)?;
    let interrupt = Interrupt::listen(is_terminal)?;
    if is_terminal {
        let device = &device.caps().name;
        say!("{} on {device}; /help says what there is besides text, Ctrl-D ends", source.name());
        if matches!(source, ModelSource::Embedded(_)) {
            say!(
                "This model is a toy that knows Python: \"Write a function that adds two numbers\". --model takes another."
            );
        }
    }
    while let Some(line) = lines.next()? {
        match line {
            Line::Help => say!("{HELP}"),
            Line::Clear => session.clear(),
            Line::Exit => break,
            Line::Unknown(line) => {
                say!(
                    "tilewise: there is no command {line}; /help says which there are, and a space before it says it to the \
                     model"
                );
            }
            Line::Turn(text) => match say(&mut session, &mut engine, &text, args.run.format, &interrupt) {
                // A conversation goes on without the turn; a script is told by the exit code.
                Err(error) if is_terminal && !matches!(error, CliError::Closed) => {
                    say!("tilewise: {error}");
                }
                other => other?,
            },
        }
    }
    Ok(())
}

/// One turn, and its answer as it comes.
fn say(
    session: &mut Session<'_>,
    engine: &mut tilewise_engine::Engine,
    text: &str,
    format: Format,
    interrupt: &Interrupt,
) -> Result<(), CliError> {
    let mut out = Shown { out: std::io::stdout().lock(), format, is_thinking: false };
    let guard = interrupt.answering();
    let answer = session.answer(engine, text, |said| {
        out.show(said)?;
        Ok(if guard.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    drop(guard);
    out.end(&answer)?;
    if let Some(why) = session.why_cut(&answer) {
        say!("tilewise: {why}");
    }
    Ok(())
}

/// Where answers are written.
struct Shown<W> {
    out: W,
    format: Format,
    /// Whether a thought was the last that was shown.
    is_thinking: bool,
}

impl<W: Write + IsTerminal> Shown<W> {
    /// Shows a piece of an answer; what is thought, dimly, where somebody looks.
    fn show(&mut self, said: &Said) -> std::io::Result<()> {
        if self.format == Format::Json {
            return Ok(());
        }
        if !said.reasoning().is_empty() && self.out.is_terminal() {
            self.is_thinking = true;
            write!(self.out, "{DIM}{}{PLAIN}", said.reasoning())?;
        }
        if !said.content().is_empty() {
            let between = if std::mem::take(&mut self.is_thinking) { "\n\n" } else { "" };
            write!(self.out, "{between}{}", said.content())?;
        }
        self.out.flush()
    }

    fn end(&mut self, answer: &Answer) -> Result<(), CliError> {
        match self.format {
            Format::Text => writeln!(self.out)?,
            Format::Json => writeln!(self.out, "{}", super::json_line(answer)?)?,
        }
        Ok(self.out.flush()?)
    }
}
