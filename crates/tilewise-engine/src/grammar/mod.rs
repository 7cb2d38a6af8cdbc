//! Texts that obey a grammar: which tokens may come next. Grammars are compiled on any thread and followed in the engine.
//!
//! The matching is llguidance's: an Earley parser over lexemes whose regular expressions are derivatives, walked along the
//! trie of the vocabulary.

mod build;
mod schema;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};

use crate::chat::ReasoningTags;
use crate::model::ModelSource;
use crate::scheduler::BatchPlan;
use crate::{Error, FinishReason, RequestId, Result};

pub use schema::check_multiples;

/// What a generated text has to obey, from its first character to its last.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Is JSON that a schema describes, written as Python's `json.dumps` does unless the schema's `x-guidance` says
    /// otherwise. Formats that are not known and keywords that cannot be enforced are ignored.
    JsonSchema(serde_json::Value),
    /// The same, with keywords that cannot be enforced as an error.
    StrictJsonSchema(serde_json::Value),
    /// Matches a regular expression in Rust's syntax as a whole.
    Regex(String),
    /// Is derived from the rule `start` of a grammar in llguidance's variant of Lark.
    Lark(String),
    /// Is a call of one of these functions, as [`crate::chat`] reads it.
    Calls {
        /// What may be called.
        functions: Vec<Call>,
        /// Whether more calls may follow.
        several: bool,
        /// What it obeys if it calls nothing; it has to call otherwise.
        or: Option<Box<Grammar>>,
    },
    /// Is free up to the end of the model's reasoning and obeys a grammar from there on.
    AfterReasoning {
        /// How the model marks its reasoning.
        tags: ReasoningTags,
        /// Whether the prompt has opened it; if not, there may be none.
        is_open: bool,
        /// What follows.
        then: Box<Grammar>,
    },
}

/// A function that a text may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
    /// The schema of its arguments. References begin at its own root.
    pub schema: serde_json::Value,
    /// As for [`Grammar::StrictJsonSchema`].
    pub strict: bool,
}

/// The tokens that some rows of logits may draw.
#[derive(Debug, Default)]
pub struct AllowedTokens {
    /// Rows that are restricted, ascending.
    pub rows: Vec<u32>,
    /// For each of them the bits of its tokens, as [`tilewise::Device::mask_logits`] takes them.
    pub bits: Vec<u32>,
}

impl AllowedTokens {
    fn push(&mut self, row: u32, mask: &SimpleVob, words: usize) {
        self.rows.push(row);
        self.bits.extend_from_slice(&mask.as_slice()[..words]);
    }

    /// Adds what may follow each of `drafts`, from `row` on, up to one that is not allowed or ends the text: what follows
    /// that one is never looked at.
    fn push_drafts(&mut self, mut ahead: Matcher, row: u32, drafts: &[u32], words: usize) {
        for (row, &draft) in (row..).zip(drafts) {
            if !ahead.try_consume_tokens(&[draft]).is_ok_and(|taken| taken == 1) || ahead.is_stopped() {
                return;
            }
            let Ok(mask) = ahead.compute_mask() else { return };
            self.push(row, &mask, words);
        }
    }
}

/// Compiles grammars for the tokens of a model. That may take seconds, so it is done apart from the engine, which all
/// requests share, on any thread.
pub struct GrammarCompiler {
    source: ModelSource,
    /// Made for the first grammar: it takes a pass over the vocabulary.
    factory: Mutex<Option<Arc<ParserFactory>>>,
}

/// A grammar that texts of a model can follow; clones are the same one.
#[derive(Clone)]
pub struct CompiledGrammar {
    start: Arc<Matcher>,
    vocab_size: usize,
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl CompiledGrammar {
    /// Tokens of the model that it was compiled for.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

impl GrammarCompiler {
    /// For the model of `source`, which is opened for the first grammar.
    pub fn new(source: &ModelSource) -> Self {
        Self { source: source.clone(), factory: Mutex::default() }
    }

    /// What texts follow.
    ///
    /// # Errors
    /// [`Error::Grammar`] for one that cannot be compiled, [`Error::Tools`] for a function whose schema cannot be,
    /// [`Error::Unsupported`] if the model has no end-of-text token or a tokenizer whose tokens are no bytes,
    /// [`Error::File`] if it has no tokenizer.
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar> {
        let factory = self.factory()?;
        let matcher = Matcher::new(factory.create_parser(build::top_level(grammar)));
        match matcher.get_error() {
            Some(why) => Err(refusal(&factory, grammar, &why)),
            None => {
                let vocab_size = factory.tok_env().tok_trie().vocab_size();
                Ok(CompiledGrammar { start: Arc::new(matcher), vocab_size })
            }
        }
    }

    fn factory(&self) -> Result<Arc<ParserFactory>> {
        let mut made = self.factory.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(factory) => Ok(factory.clone()),
            None => Ok(made.insert(Arc::new(factory(&self.source)?)).clone()),
        }
    }
}

/// A request and which of its completions.
type Completion = (RequestId, usize);

/// Where the texts of all requests with a grammar are.
#[derive(Default)]
pub(crate) struct Grammars {
    matchers: HashMap<Completion, Followed>,
}

/// The tokens of a completion so far, hashed: completions of a request at one place may go on alike.
type Place = [u8; 32];

/// A completion on its way through its grammar.
struct Followed {
    matcher: Matcher,
    place: Place,
}

impl Grammars {
    /// Follows the `n` completions of a request from now on.
    pub(crate) fn insert(&mut self, request: RequestId, n: usize, grammar: &CompiledGrammar) {
        let begin = |index| {
            let followed = Followed { matcher: grammar.start.deep_clone(), place: [0; 32] };
            ((request, index), followed)
        };
        self.matchers.extend((0..n).map(begin));
    }

    /// Forgets a completion that is over.
    pub(crate) fn remove(&mut self, completion: Completion) {
        self.matchers.remove(&completion);
    }

    /// Forgets a request.
    pub(crate) fn abort(&mut self, request: RequestId) {
        self.matchers.retain(|completion, _| completion.0 != request);
    }

    /// What the rows of a batch may draw, and those after which a completion can go no further.
    pub(crate) fn allowed(
        &mut self,
        batch: &BatchPlan,
        vocab_size: usize,
    ) -> (AllowedTokens, Vec<(usize, FinishReason)>) {
        let (mut allowed, mut failed) = (AllowedTokens::default(), Vec::new());
        if self.matchers.is_empty() {
            return (allowed, failed);
        }
        let words = vocab_size.div_ceil(32);
        // Completions that have not parted share a mask.
        let mut masks: HashMap<(RequestId, Place), SimpleVob> = HashMap::new();
        for (place, sequence) in batch.sequences.iter().enumerate() {
            let (completion, mut row) = ((sequence.request, sequence.index), sequence.first_row as u32);
            let has_rows = sequence.num_rows() > 0;
            let Some(Followed { matcher, place: at }) =
                self.matchers.get_mut(&completion).filter(|_| has_rows)
            else {
                continue;
            };
            if !sequence.is_branch {
                let mask = match masks.entry((sequence.request, *at)) {
                    Entry::Occupied(made) => Ok(made.into_mut()),
                    Entry::Vacant(room) => matcher.compute_mask().map(|mask| room.insert(mask)),
                };
                match mask {
                    Ok(mask) => allowed.push(row, mask, words),
                    Err(why) => {
                        let why = FinishReason::Ungrammatical(sentence(&why.to_string()));
                        failed.push((row as usize, why));
                    }
                }
                row += 1;
            }
            if sequence.num_drafts > 0 {
                allowed.push_drafts(matcher.clone(), row, batch.drafts(place), words);
            }
        }
        (allowed, failed)
    }

    /// Takes over a token; says why the completion ends with it, if it does.
    pub(crate) fn push(&mut self, completion: Completion, id: u32) -> Option<FinishReason> {
        let Followed { matcher, place } = self.matchers.get_mut(&completion)?;
        *place =
            *blake3::Hasher::new().update(place.as_slice()).update(&id.to_be_bytes()).finalize().as_bytes();
        match matcher.consume_token(id) {
            Err(why) => Some(FinishReason::Ungrammatical(sentence(&why.to_string()))),
            Ok(()) => matcher.is_stopped().then_some(FinishReason::Grammar),
        }
    }
}

/// Why a grammar cannot be compiled, in words for whoever wrote it: `why` shows the place in our own text.
fn refusal(factory: &ParserFactory, grammar: &Grammar, why: &str) -> Error {
    match grammar {
        Grammar::AfterReasoning { then, .. } => refusal(factory, then, why),
        Grammar::Calls { functions, or, .. } => {
            let wrong = functions.iter().find_map(|Call { name, schema, strict }| {
                let alone = match strict {
                    true => Grammar::StrictJsonSchema(schema.clone()),
                    false => Grammar::JsonSchema(schema.clone()),
                };
                let why = Matcher::new(factory.create_parser(build::top_level(&alone))).get_error()?;
                Some(format!("the parameters of {name:?}: {}", schema_sentence(&why)))
            });
            match (wrong, or) {
                (None, Some(or)) => refusal(factory, or, why),
                (wrong, _) => {
                    Error::Tools(wrong.unwrap_or_else(|| "their schemas are too large together".to_owned()))
                }
            }
        }
        Grammar::JsonSchema(_) | Grammar::StrictJsonSchema(_) => Error::Grammar(schema_sentence(why)),
        Grammar::Regex(_) | Grammar::Lark(_) => Error::Grammar(sentence(why)),
    }
}

/// An error of a schema on one line.
fn schema_sentence(why: &str) -> String {
    let why = sentence(why);
    let keys = why.split_once("Unimplemented keys: [").and_then(|(_, keys)| Some(keys.split_once(']')?.0));
    match keys {
        Some(keys) => {
            format!("keywords that cannot be enforced: {keys}; leave them out, or leave out strict")
        }
        None => why,
    }
}

/// An error on one line, without the parser's state and what a panic leaves.
fn sentence(why: &str) -> String {
    /// Characters of a long one.
    const LENGTH: usize = 300;
    let words = why.split(" <").next().unwrap_or_default();
    let words =
        words.split("\n<").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(LENGTH).collect()
}

/// Work for the automaton of a grammar, in nodes of expressions: some milliseconds.
const LEXER_FUEL: u64 = 200_000;

/// States of that automaton: one or two KB each.
const LEXER_STATES: usize = 30_000;

fn factory(source: &ModelSource) -> Result<ParserFactory> {
    let unsupported = |why: String| Error::unsupported("a grammar", why);
    let config = source.config()?;
    let vocabulary = source.tokenizer()?.to_json()?;
    let mut words = token_bytes_from_tokenizer_json(&vocabulary).map_err(|e| unsupported(e.to_string()))?;
    // A model may have more rows of logits than its tokenizer has tokens: nothing is spelled by them.
    words.resize(config.vocab_size, Vec::new());
    let Some(&end) = config.eos_ids.iter().find(|&&id| (id as usize) < words.len()) else {
        return Err(unsupported("the model has no end-of-text token".to_owned()));
    };
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
    let ends: Vec<u32> = config.eos_ids.iter().copied().filter(|&id| (id as usize) < words.len()).collect();
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|e| unsupported(e.to_string()))?;
    factory.quiet();
    // Errors go to whoever sent the grammar, and shall not tell how the program is built.
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    // A schema of a page takes some thousands; a regular expression can be made to take anything, time and memory.
    limits.initial_lexer_fuel = LEXER_FUEL;
    limits.max_lexer_states = LEXER_STATES;
    Ok(factory)
}
