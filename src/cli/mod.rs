//! SURFACE. What a person types.
