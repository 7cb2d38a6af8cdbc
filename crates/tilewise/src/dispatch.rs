//! Which kernel a shape gets: rules that are data, each with the record that supports it.

use crate::{AttentionParams, Error, Result};

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

/// Chooses kernels for one device.
#[derive(Debug, Clone, Copy)]
pub struct DispatchPolicy {
    /// The kernels there are.
    pub kernels: &'static [KernelInfo],
    /// The rules, in order.
    pub rules: &'static [Rule],
}

/// A kernel and why it was taken.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Its index in the device's table.
    pub kernel: usize,
    /// The rule that chose it; `None` if it was forced.
    pub rule: Option<&'static Rule>,
}

impl DispatchPolicy {
    /// The kernel for a sequence, or `forced`, which then runs or fails.
    ///
    /// # Errors
    /// [`Error::Value`] for an unknown name, [`Error::Unsupported`] where the kernel refuses the parameters.
    pub fn choose(&self, params: &AttentionParams, regime: &Regime, forced: Option<&str>) -> Result<Choice> {
        let rule = match forced {
            Some(_) => None,
            None => Some(
                self.rules
                    .iter()
                    .find(|rule| (rule.applies)(params, regime))
                    .ok_or_else(|| Error::unsupported("dispatch", format!("{params:?}: no rule applies")))?,
            ),
        };
        let name = forced.or(rule.map(|rule| rule.kernel)).unwrap_or_default();
        let kernel = self.kernels.iter().position(|kernel| kernel.name == name).ok_or_else(|| {
            Error::Value { name: "kernel", expected: "one of the device's kernels", got: name.to_owned() }
        })?;
        match (self.kernels[kernel].refuses)(params) {
            Some(why) => Err(Error::unsupported(format!("kernel {name}"), why)),
            None => Ok(Choice { kernel, rule }),
        }
    }
}
