//! The whole program in front of a real application.

mod flask;
