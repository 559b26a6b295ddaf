//! The agent: one task owns the mesh; events in, commands out.
