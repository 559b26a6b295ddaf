//! The mesh file: raw (as written, with spans), merged, resolved, validated, diffed.
