//! Which kernel a shape gets: rules that are data, each with the record that supports it, and what the owner of a
//! machine has measured on it.

use std::sync::OnceLock;

use crate::{AttentionParams, DType, Error, Result};

/// The sizes a rule may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Regime {
    /// Queries of the sequence.
    pub num_queries: usize,
    /// Keys of the sequence.
    pub num_keys: usize,
    /// Whether they are in pages, in the device's own layout.
    pub paged: bool,
}

/// One row of a dispatch table; the first that applies is taken.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The kernel it chooses.
    pub kernel: &'static str,
    /// When, in words.
    pub when: &'static str,
    /// When, in code.
    pub applies: fn(&AttentionParams, &Regime) -> bool,
    /// The bench record that shows it.
    pub evidence: &'static str,
}

/// How a kernel's work is divided; see [`crate::plan::partition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// A work item is a tile of queries with all their keys.
    Queries,
    /// A work item is a chunk of keys with all queries; chunks are merged in order.
    Keys,
}

/// A row of a backend's table of attention kernels.
#[derive(Debug, Clone, Copy)]
pub struct KernelInfo {
    /// The name, which says the data path.
    pub name: &'static str,
    /// How its work is divided.
    pub split: Split,
    /// Says which feature of the parameters it cannot honour, if any.
    pub refuses: fn(&AttentionParams) -> Option<&'static str>,
}

/// Up to how many rows one kernel wins over another, of keys in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Elements per head of keys and values.
    pub head_dim: usize,
    /// The type of keys and values.
    pub kv_dtype: DType,
    /// Queries times query heads per KV head.
    pub rows: usize,
    /// The kernel for so many rows and fewer.
    pub few: &'static str,
    /// The kernel for more.
    pub many: &'static str,
}

/// What was measured on this very device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// Where it is written down.
    pub evidence: String,
    /// One for each width and type that was measured.
    pub thresholds: Vec<Threshold>,
}

/// Chooses kernels for one device.
#[derive(Debug)]
pub struct DispatchPolicy {
    /// The kernels there are.
    pub kernels: &'static [KernelInfo],
    /// The rules, in order.
    pub rules: &'static [Rule],
    measured: OnceLock<Measured>,
}

/// Why a kernel was taken.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Reason<'a> {
    /// It was asked for.
    Forced,
    /// This rule chose it.
    Rule(&'static Rule),
    /// This threshold, of what was measured here.
    Measured(&'a Threshold, &'a Measured),
}

/// A kernel and why it was taken.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Its index in the device's table.
    pub kernel: usize,
    /// Why.
    pub reason: Reason<'a>,
}

impl Choice<'_> {
    /// The rule that chose it, if one did.
    pub fn rule(&self) -> Option<&'static Rule> {
        match self.reason {
            Reason::Rule(rule) => Some(rule),
            _ => None,
        }
    }
}

impl Threshold {
    fn applies(&self, params: &AttentionParams, regime: &Regime) -> bool {
        regime.paged
            && (params.head_dim, params.value_dim) == (self.head_dim, self.head_dim)
            && params.kv_dtype == self.kv_dtype
    }

    fn kernel(&self, params: &AttentionParams, regime: &Regime) -> &'static str {
        if regime.num_queries * params.group_size() <= self.rows { self.few } else { self.many }
    }
}

impl DispatchPolicy {
    /// The rules alone.
    pub fn new(kernels: &'static [KernelInfo], rules: &'static [Rule]) -> Self {
        Self { kernels, rules, measured: OnceLock::new() }
    }

    /// Puts measured thresholds before the rules, once and for all of the device's later plans.
    ///
    /// # Errors
    /// [`Error::Value`] if the device has such thresholds already, or no kernel of a name.
    pub fn adopt(&self, measured: Measured) -> Result<()> {
        for name in measured.thresholds.iter().flat_map(|threshold| [threshold.few, threshold.many]) {
            self.kernel(name)?;
        }
        let evidence = measured.evidence.clone();
        self.measured.set(measured).map_err(|_| Error::Value {
            name: "policy",
            expected: "the device's only one",
            got: evidence,
        })
    }

    /// The index of a kernel.
    ///
    /// # Errors
    /// [`Error::Value`] if there is none of that name.
    pub fn kernel(&self, name: &str) -> Result<usize> {
        self.kernels.iter().position(|kernel| kernel.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.kernels.iter().map(|kernel| kernel.name).collect();
            let got = format!("{name}: there are {}", names.join(", "));
            Error::Value { name: "kernel", expected: "one of the device's kernels", got }
        })
    }

    /// The kernel for a sequence, or `forced`, which then runs or fails.
    ///
    /// # Errors
    /// [`Error::Value`] for an unknown name, [`Error::Unsupported`] where the kernel refuses the parameters.
    pub fn choose(
        &self,
        params: &AttentionParams,
        regime: &Regime,
        forced: Option<&str>,
    ) -> Result<Choice<'_>> {
        if let Some(name) = forced {
            return self.checked(params, name, Reason::Forced);
        }
        if let Some(choice) = self.by_measurement(params, regime) {
            return Ok(choice);
        }
        let rule = self.rules.iter().find(|rule| (rule.applies)(params, regime));
        let rule =
            rule.ok_or_else(|| Error::unsupported("dispatch", format!("{params:?}: no rule applies")))?;
        self.checked(params, rule.kernel, Reason::Rule(rule))
    }

    fn by_measurement(&self, params: &AttentionParams, regime: &Regime) -> Option<Choice<'_>> {
        let measured = self.measured.get()?;
        let threshold = measured.thresholds.iter().find(|threshold| threshold.applies(params, regime))?;
        // Parameters that were not measured may be refused: then the rules decide.
        self.checked(params, threshold.kernel(params, regime), Reason::Measured(threshold, measured)).ok()
    }

    fn checked<'a>(&self, params: &AttentionParams, name: &str, reason: Reason<'a>) -> Result<Choice<'a>> {
        let kernel = self.kernel(name)?;
        match (self.kernels[kernel].refuses)(params) {
            Some(why) => Err(Error::unsupported(format!("kernel {name}"), why)),
            None => Ok(Choice { kernel, reason }),
        }
    }
}
