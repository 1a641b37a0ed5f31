//! Laws that hold of every decision.
