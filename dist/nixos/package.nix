# natpunch for nixpkgs: `pkgs.callPackage ./package.nix { }`.
#
# Not built by a test: only `nix-instantiate --parse` has read it. It needs the Rust of rust-toolchain.toml or a newer
# one.
{ lib, rustPlatform, cmake }:

rustPlatform.buildRustPackage {
  pname = "natpunch";
  version = (lib.importTOML ../../Cargo.toml).workspace.package.version;
  src = lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;
  cargoBuildFlags = [ "--bin" "natpunch" ];
  nativeBuildInputs = [ cmake ];
  dontUseCmakeConfigure = true;
  # They make network namespaces.
  doCheck = false;

  postInstall = ''
    mkdir -p $out/lib/systemd/system $out/share/man/man1
    for unit in dist/systemd/*; do
      sed "s,/usr/bin/natpunch,$out/bin/natpunch,g" $unit > $out/lib/systemd/system/$(basename $unit)
    done
    $out/bin/natpunch manual $out/share/man/man1
    install -d $out/share/bash-completion/completions $out/share/zsh/site-functions $out/share/fish/vendor_completions.d
    $out/bin/natpunch completions bash > $out/share/bash-completion/completions/natpunch
    $out/bin/natpunch completions zsh > $out/share/zsh/site-functions/_natpunch
    $out/bin/natpunch completions fish > $out/share/fish/vendor_completions.d/natpunch.fish
  '';

  meta = {
    description = "A WireGuard mesh as code: one TOML file in git, any NAT, no account";
    homepage = "https://github.com/natpunch/natpunch";
    license = with lib.licenses; [ mit asl20 ];
    platforms = lib.platforms.linux;
    mainProgram = "natpunch";
  };
}
