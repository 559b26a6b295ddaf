//! What the mesh file's language knows of a plugin: nothing but what is handed in here.

use natpunch_plugin_description::{AnyInstance, Endpoint, Flaw, Settings};
use natpunch_types::{Abilities, PeerKey};
use schemars::{Schema, SchemaGenerator};
use serde::de::IntoDeserializer as _;
use toml_edit::{InlineTable, Value};

/// A plugin that a mesh file may name.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    id: &'static str,
    about: &'static str,
    abilities: Abilities,
    schema: fn(&mut SchemaGenerator) -> Schema,
    read: fn(InlineTable) -> Result<AnyInstance, NotSettings>,
    implied: fn() -> Option<AnyInstance>,
    of_node: fn(&Endpoint, PeerKey) -> Option<AnyInstance>,
}

/// Why a table is no settings of a plugin.
pub(crate) enum NotSettings {
    /// A value has another type than the plugin's settings.
    Form(toml_edit::de::Error),
    /// All values are of the right type, and the plugin refuses them.
    Flaws(Vec<Flaw>),
}

impl Kind {
    /// The plugin with these settings.
    pub const fn of<S: Settings>() -> Self {
        Self {
            id: S::PLUGIN,
            about: S::ABOUT,
            abilities: S::ABILITIES,
            schema: S::json_schema,
            read: read::<S>,
            implied: || S::implied().map(AnyInstance::new),
            of_node: |server, key| S::of_node(server, key).map(AnyInstance::new),
        }
    }

    /// The value of `plugin = "…"`.
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// What it does, in a few words.
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// All that an instance of it can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// The schema of its settings.
    pub(crate) fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.schema)(generator)
    }

    /// The same by itself, for reading by it.
    pub(crate) fn settings_schema(&self) -> Schema {
        self.schema(&mut SchemaGenerator::default())
    }

    /// Reads the settings, and lets the plugin check them.
    pub(crate) fn read(&self, settings: InlineTable) -> Result<AnyInstance, NotSettings> {
        (self.read)(settings)
    }

    /// The instance that a mesh has without writing it, named like the plugin.
    pub(crate) fn implied(&self) -> Option<AnyInstance> {
        (self.implied)()
    }

    /// The instance of a node of the mesh that serves this plugin.
    pub(crate) fn of_node(&self, server: &Endpoint, key: PeerKey) -> Option<AnyInstance> {
        (self.of_node)(server, key)
    }

    /// Whether only instances of this plugin may have its name: one that is there without being
    /// written has it.
    pub(crate) fn keeps_its_name(&self) -> bool {
        self.implied().is_some()
    }
}

fn read<S: Settings>(settings: InlineTable) -> Result<AnyInstance, NotSettings> {
    let value = Value::InlineTable(settings);
    let settings = S::deserialize(value.into_deserializer()).map_err(NotSettings::Form)?;
    let instance = settings.check().map_err(NotSettings::Flaws)?;
    Ok(AnyInstance::new(instance))
}

/// Whether instances of other plugins may not have this name.
pub(crate) fn is_kept(kinds: &[Kind], name: &str) -> bool {
    kinds
        .iter()
        .any(|kind| kind.id == name && kind.keeps_its_name())
}
