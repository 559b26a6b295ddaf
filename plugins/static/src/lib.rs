//! Discovery from endpoints that the mesh file names.
