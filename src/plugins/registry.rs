//! The built-in discovery plugins: one line each.

use natpunch_plugin::{Discovery, PluginError};

use crate::config::DiscoverySettings;

/// Makes the plugin for a section of the mesh file.
///
/// # Errors
/// A setting that only the plugin itself can judge is wrong.
pub fn build(settings: &DiscoverySettings) -> Result<Box<dyn Discovery>, PluginError> {
    Ok(match settings {
        DiscoverySettings::Static(settings) => {
            Box::new(natpunch_plugin_static::Plugin::new(settings.clone())?)
        }
        DiscoverySettings::NatpunchGo(settings) => {
            Box::new(natpunch_plugin_natpunch_go::Plugin::new(settings.clone())?)
        }
        DiscoverySettings::NatHolePunching(settings) => Box::new(
            natpunch_plugin_nat_hole_punching::Plugin::new(settings.clone())?,
        ),
        DiscoverySettings::Rendezvous(settings) => {
            Box::new(natpunch_plugin_rendezvous::Plugin::new(settings.clone())?)
        }
        DiscoverySettings::Node(node) => {
            Box::new(natpunch_plugin_rendezvous::Plugin::of_node(node.clone())?)
        }
        DiscoverySettings::Http(settings) => {
            Box::new(natpunch_plugin_http::Plugin::new(settings.clone())?)
        }
    })
}
