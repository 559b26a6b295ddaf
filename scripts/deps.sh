#!/usr/bin/env bash
# deps.sh demo|test|vm|bench|supply|browser|package|packages: makes sure that the programs this needs are there. As root on a
# Debian-like machine it installs what is missing; elsewhere it says what is missing and how to get it, and fails.
set -euo pipefail

# program:Debian package
demo='cargo:cargo cc:gcc ip:iproute2 nft:nftables ping:iputils-ping setpriv:util-linux unshare:util-linux'
# miniupnpd: the daemon alone, without the package of its service.
test="$demo git:git ssh-keygen:openssh-client sshd:openssh-server openssl:openssl tinyproxy:tinyproxy wg:wireguard-tools wireguard-go:wireguard-go systemd-analyze:systemd jq:jq miniupnpd:miniupnpd-nftables redis-server:redis-server knotd:knot kdig:knot-dnsutils tayga:tayga yamllint:yamllint"
bench="$test iperf3:iperf3"
supply='cargo:cargo pip3:python3-pip'
package='cargo:cargo cc:gcc dpkg-deb:dpkg objdump:binutils rpmbuild:rpm'
packages="$package debootstrap:debootstrap systemd-nspawn:systemd-container"
browser="cargo:cargo cc:gcc chromium:chromium"
vm='qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod zstd:zstd xz:xz-utils dpkg-deb:dpkg'

what=${1:-}
case $what in
  demo | test | bench | supply | browser | vm | package | packages) needed=${!what} ;;
  *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac

# sbin is where ip and nft live, and not on every user's path.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# The guest of the virtual machine has no libraries: a busybox that needs some is none for it.
is_there() {
  command -v "$1" >/dev/null || return 1
  [ "$1" != busybox ] || ! ldd "$(command -v busybox)" >/dev/null 2>&1
}

missing='' packages=''
for entry in $needed; do
  if ! is_there "${entry%%:*}"; then
    missing+=" ${entry%%:*}" packages+=" ${entry#*:}"
  fi
done
[ -n "$missing" ] || exit 0

case $missing in
  *' cargo'*) echo "missing: cargo. Install Rust: https://rustup.rs (the version is in Cargo.toml)" >&2; exit 1 ;;
esac
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing:$packages (for$missing)"
  export DEBIAN_FRONTEND=noninteractive
  # Only the tests start these, in namespaces of their own: this machine does not become a server.
  mkdir -p /etc/systemd/system
  for entry in openssh-server:ssh.service openssh-server:ssh.socket tinyproxy:tinyproxy.service \
    redis-server:redis-server.service knot:knot.service tayga:tayga.service; do
    unit=${entry#*:}
    case " $packages " in
      *" ${entry%%:*} "*)
        [ -e "/etc/systemd/system/$unit" ] || ln -s /dev/null "/etc/systemd/system/$unit"
        echo "$unit is masked: systemctl unmask $unit, if this machine shall run it" ;;
    esac
  done
  # shellcheck disable=SC2086 # a list of words
  apt-get install -qq --yes --no-install-recommends $packages </dev/null >/dev/null ||
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends $packages </dev/null >/dev/null; }
else
  echo "missing programs:$missing" >&2
  echo "On Debian or Ubuntu: sudo apt-get install$packages" >&2
  exit 1
fi
