//! The memory that bodies hold while they come in and go out.

mod held;
