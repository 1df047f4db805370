//! [`Calibrate`] on the GPU.

use super::{
    Cuda,
    content::CudaBuffer,
    graph::Command,
    kernels::{Launch, Ptr, Rows, Side},
    launch::calibrate::{self as launch, Rounding},
    operations::{fits, read, write},
    scratch::Slot,
};
use crate::{Calibrate, Device, GroupRounding, HostTensor, KernelError, Result};

impl Cuda {
    fn run(&self, launch: Launch) -> Result<()> {
        self.submit(Command::Launch(launch))
    }
}

impl Calibrate for Cuda {
    fn gram(&mut self, rows: usize, x: &CudaBuffer, gram: &mut CudaBuffer) -> Result<()> {
        let k = x.width;
        fits("the calibration rows", x, rows, k)?;
        fits("the Gram matrix", gram, k, k)?;
        let side = Side::new("the calibration rows", k)?;
        let Some(rows) = Rows::new(rows)? else { return Ok(()) };
        read(self, x)?;
        read(self, gram)?;
        write(self, gram)?;
        self.run(launch::gram(rows, x.at(), side, gram.at()))
    }

    fn column_absmax(&mut self, rows: usize, x: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        let k = x.width;
        fits("the calibration rows", x, rows, k)?;
        fits("the maxima", out, 1, k)?;
        let side = Side::new("the calibration rows", k)?;
        let Some(rows) = Rows::new(rows)? else { return Ok(()) };
        read(self, x)?;
        read(self, out)?;
        write(self, out)?;
        self.run(launch::column_absmax(rows, x.at(), side, out.at()))
    }

    fn rounding_changes(
        &mut self,
        rows: usize,
        weights: &CudaBuffer,
        rounding: &GroupRounding<'_, CudaBuffer>,
        changes: &mut CudaBuffer,
    ) -> Result<()> {
        let k = weights.width;
        fits("the weights", weights, rows, k)?;
        fits("the changes", changes, rows, k)?;
        if let Some(scales) = rounding.scales {
            fits("the scales", scales, 1, k)?;
            read(self, scales)?;
        }
        let &GroupRounding { bits, group, grid, scales, cut } = rounding;
        // The kernel's groups are whole float4 of a lane each.
        let sound = matches!(bits, 4 | 8) && group > 0 && group.is_multiple_of(4) && k.is_multiple_of(group);
        if !(sound && cut > 0.0 && cut <= 1.0) {
            return Err(KernelError::Shape(format!("{bits} bits in groups of {group}, cut to {cut}, of {k} columns")));
        }
        let side = Side::new("the weights", k)?;
        let Some(rows) = Rows::new(rows)? else { return Ok(()) };
        read(self, weights)?;
        write(self, changes)?;
        let scales = scales.map_or(Ptr::NULL, CudaBuffer::at);
        let rounding = Rounding { bits: u32::from(bits), group: group as u32, grid, scales, cut };
        self.run(launch::rounding_changes(rows, weights.at(), side, &rounding, changes.at()))
    }

    fn quadratic_forms(
        &mut self,
        rows: usize,
        delta: &CudaBuffer,
        gram: &CudaBuffer,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let k = delta.width;
        fits("the changes", delta, rows, k)?;
        fits("the Gram matrix", gram, k, k)?;
        let side = Side::new("the changes", k)?;
        out.clear();
        let Some(count) = Rows::new(rows)? else { return Ok(()) };
        read(self, delta)?;
        read(self, gram)?;
        let partials = Ptr::new(self.scratch(Slot::Forms, launch::tiles(side) * rows * size_of::<f64>())?);
        let forms = self.buffer(1, rows)?;
        self.run(launch::quadratic_partials(count, delta.at(), gram.at(), side, partials))?;
        self.run(launch::quadratic_forms(count, partials, side, forms.at()))?;
        let mut host = HostTensor::default();
        self.download(&forms, 1, &mut host)?;
        *out = host.data;
        Ok(())
    }
}
