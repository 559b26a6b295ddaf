//! Discovery from endpoints that the mesh file names.

mod settings;

pub use settings::Settings;
