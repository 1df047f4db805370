//! Decisions for plants whose load follows from what they do: one by one, as properties, by mode, by number of workers.

mod decisions;
mod modes;
mod properties;
mod support;
mod workers;
