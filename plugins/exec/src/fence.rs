//! The files that a program reaches, and the processes that it can signal: Landlock, where the
//! kernel has it.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use natpunch_plugin::{PluginError, SettingFlaw};

use crate::Program;

/// The newest Landlock that this knows; of an older one it uses what that has.
const VERSION: ABI = ABI::V6;
/// What programs are made of, and how they resolve names. A directory where a file is replaced by
/// another: a rule is of the file that was there.
const SYSTEM: [&str; 15] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/etc",
    "/proc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Fences the calling thread, and what it starts from then on. It can't be undone.
///
/// # Errors
/// A path of the settings is missing, or the kernel refuses.
pub(crate) fn enter(program: &Program) -> Result<(), PluginError> {
    let lists = [
        ("read_paths", &program.read_paths),
        ("write_paths", &program.write_paths),
    ];
    let missing = |key: &str, path: &Path| SettingFlaw {
        key: key.to_owned(),
        problem: format!("names {}, which is not there", path.display()),
        help: "make it on this node, or take it out".to_owned(),
    };
    let flaws: Vec<SettingFlaw> = lists
        .iter()
        .flat_map(|(key, paths)| paths.iter().map(move |path| (key, path)))
        .filter(|(_, path)| !path.exists())
        .map(|(key, path)| missing(key, path))
        .collect();
    if !flaws.is_empty() {
        return Err(PluginError::Settings(flaws));
    }
    let status = restrict(program)
        .map_err(|error| PluginError::Failed(format!("can't fence it by Landlock: {error}")))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            tracing::info!(
                "this kernel's Landlock is an old one, and fences a plugin only in part"
            );
        }
        RulesetStatus::NotEnforced => {
            tracing::warn!(
                "this kernel has no Landlock: a plugin's program reaches every file that its user \
                 reaches"
            );
        }
    }
    Ok(())
}

fn restrict(program: &Program) -> Result<RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let read = AccessFs::from_read(VERSION);
    let write: BitFlags<AccessFs> = all & !BitFlags::from(AccessFs::Execute);
    let own: Vec<PathBuf> = program.read_paths.clone();
    Ruleset::default()
        .handle_access(all)?
        .scope(Scope::from_all(VERSION))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(own, read))?
        .add_rules(path_beneath_rules(DEVICES, AccessFs::from_file(VERSION)))?
        .add_rules(path_beneath_rules(&program.write_paths, write))?
        .restrict_self()
}
