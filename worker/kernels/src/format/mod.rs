//! The 8-bit floating-point formats (OCP 8-bit Floating Point Specification, 2023). BF16 and FP16 come from `half`.

pub mod e4m3;
pub mod e5m2;
pub mod table;
