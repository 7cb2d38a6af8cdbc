//! Timing kernels against each other.

use std::time::Instant;

use tilewise::{AttentionPlan, Device, Tensor};

use super::inputs::Inputs;
use crate::error::CliError;

/// One kernel with its output.
pub(super) struct Run<'a> {
    pub(super) kernel: &'static str,
    pub(super) max_abs_err: f64,
    pub(super) seconds: Vec<f64>,
    /// Launches between two waits.
    launches: u32,
    device: &'a dyn Device,
    inputs: &'a Inputs,
    plan: AttentionPlan,
    out: Tensor,
}

/// Runs that a median needs.
const MIN_RUNS: usize = 5;

/// A kernel this many times slower than the fastest, which takes this many seconds, is no contender: it runs
/// once.
const HOPELESS: f64 = 10.0;
const LONG: f64 = 1.0;

/// Seconds of a sample on a device with a queue: a wait takes about a hundredth of it.
const SAMPLE: f64 = 5e-3;
const MOST_LAUNCHES: u32 = 1024;

/// Seconds of work before a device with a queue is timed: the clocks of one that was idle rise several times over.
const WARM: f64 = 0.5;

impl<'a> Run<'a> {
    pub(super) fn new(
        device: &'a dyn Device,
        inputs: &'a Inputs,
        kernel: &'static str,
    ) -> Result<Self, CliError> {
        let params = &inputs.shape.params;
        Ok(Self {
            kernel,
            max_abs_err: f64::NAN,
            seconds: Vec::new(),
            launches: 1,
            plan: device.plan_attention(params, &inputs.layout, Some(kernel))?,
            out: device.alloc(&inputs.out_axes(), params.q_dtype)?,
            device,
            inputs,
        })
    }

    /// Seconds that one launch takes, on the average of those between two waits.
    pub(super) fn once(&mut self) -> Result<f64, CliError> {
        self.device.wait()?;
        let start = Instant::now();
        for _ in 0..self.launches {
            self.inputs.attend(self.device, &self.plan, &mut self.out)?;
        }
        self.device.wait()?;
        Ok(start.elapsed().as_secs_f64() / f64::from(self.launches))
    }

    /// Makes a sample long enough for a device that is asked through a queue, whose waits take a while.
    fn calibrate(&mut self) -> Result<f64, CliError> {
        let mut seconds = self.once()?;
        while self.device.counts().is_some()
            && seconds * f64::from(self.launches) < SAMPLE
            && self.launches < MOST_LAUNCHES
        {
            self.launches *= 2;
            seconds = self.once()?;
        }
        Ok(seconds)
    }

    /// The last launch's answer.
    pub(super) fn output(&self) -> Result<Vec<f32>, CliError> {
        Ok(self.device.download(&self.out)?)
    }
}

/// Times all kernels in turn, after launches that warm up, until `budget` seconds have passed and each has
/// run often enough for a median.
///
/// Taking turns lets a machine that slows down slow all of them down.
pub(super) fn alternate(runs: &mut [Run<'_>], budget: f64) -> Result<(), CliError> {
    if let Some(run) = runs.first_mut()
        && run.device.counts().is_some()
    {
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < WARM {
            run.once()?;
        }
    }
    let mut warm = Vec::with_capacity(runs.len());
    for run in runs.iter_mut() {
        warm.push(run.calibrate()?);
    }
    let fastest = warm.iter().copied().fold(f64::INFINITY, f64::min);
    let hopeless = |index: usize| warm[index] > LONG && warm[index] > HOPELESS * fastest;
    let start = Instant::now();
    loop {
        let late = start.elapsed().as_secs_f64() >= budget;
        let mut ran = false;
        for (index, run) in runs.iter_mut().enumerate() {
            let enough = if hopeless(index) { 1 } else { MIN_RUNS };
            let done = run.seconds.len() >= enough && (late || hopeless(index));
            if !done {
                let seconds = run.once()?;
                run.seconds.push(seconds);
                ran = true;
            }
        }
        if !ran {
            return Ok(());
        }
    }
}
