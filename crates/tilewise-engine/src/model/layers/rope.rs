//! Cosines and sines of rotary positions (Su et al. 2021).

use tilewise::{Device, HostTensor, Tensor};

use crate::Result;

/// A table that grows by doubling, so that a long context costs nothing until it is used.
pub struct RopeTable {
    table: Tensor,
    theta: f32,
    dim: usize,
    max_positions: usize,
}

impl RopeTable {
    /// A table for the first few positions of heads of `dim` elements.
    ///
    /// # Errors
    /// What uploading returns.
    pub fn new(device: &dyn Device, theta: f64, dim: usize, max_positions: usize) -> Result<Self> {
        let theta = theta as f32;
        let table = upload(device, theta, dim, max_positions.min(512))?;
        Ok(Self { table, theta, dim, max_positions })
    }

    /// Makes the table reach `positions`.
    ///
    /// # Errors
    /// What uploading returns.
    pub fn reserve(&mut self, device: &dyn Device, positions: usize) -> Result<()> {
        if positions > self.table.rows() {
            let grown = positions.next_power_of_two().min(self.max_positions.max(positions));
            self.table = upload(device, self.theta, self.dim, grown)?;
        }
        Ok(())
    }

    /// `[positions, dim]`: cosines, then sines.
    pub fn table(&self) -> &Tensor {
        &self.table
    }
}

/// As Hugging Face transformers computes it: frequencies, and their products with positions, rounded to f32.
fn upload(device: &dyn Device, theta: f32, dim: usize, positions: usize) -> Result<Tensor> {
    let frequencies: Vec<f32> = (0..dim / 2).map(|i| 1.0 / theta.powf(2.0 * i as f32 / dim as f32)).collect();
    let mut table = vec![0.0; positions * dim];
    for (position, row) in table.chunks_exact_mut(dim).enumerate() {
        let (cosines, sines) = row.split_at_mut(dim / 2);
        for ((frequency, cosine), sine) in frequencies.iter().zip(cosines).zip(sines) {
            let (s, c) = f64::from(frequency * position as f32).sin_cos();
            (*sine, *cosine) = (s as f32, c as f32);
        }
    }
    Ok(device.upload(HostTensor::f32(&[positions, dim], &table)?)?)
}
