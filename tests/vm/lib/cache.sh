# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# What does not change from run to run: the distribution's kernel, its modules and the tools of the
# guest, kept outside the tree under a hash of everything that went in. Sourced by `run`.

HOLDFAST_CACHE=${HOLDFAST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast}

# The stock kernel: Debian's own build, the smaller of its two flavours by default (it boots twice
# as fast under emulation). HOLDFAST_VM_FLAVOUR=amd64 takes the general one.
VM_FLAVOUR=${HOLDFAST_VM_FLAVOUR:-cloud-amd64}

VM_MODULES="vfio-pci vfio_iommu_type1 fuse nd_e820 nd_pmem device_dax dax_pmem virtio_blk
  virtio_pci"
VM_TOOLS="kexec ndctl xxhsum"

# need PROGRAM PACKAGE: says which package to install when a tool is missing.
need() {
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null && return
  echo "vm: $1 is missing; install it with: apt-get install $2" >&2
  exit 1
}

check_host_tools() {
  need qemu-system-x86_64 qemu-system-x86
  need cpio cpio
  need modprobe kmod
  need depmod kmod
  need kexec kexec-tools
  need ndctl ndctl
  need xxhsum xxhash
  need dpkg dpkg
  need apt-get apt
  need cc gcc
  [ -x /bin/busybox ] || need /bin/busybox busybox-static
}

# The package name behind the flavour's meta package, for example linux-image-6.1.0-56-cloud-amd64.
kernel_package() {
  apt-cache depends "linux-image-$VM_FLAVOUR" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1
}

# fetch_kernel: leaves the unpacked package in $KERNEL_DIR. Uses the machine's package lists, changes
# nothing outside the cache. Offline, the newest kernel already in the cache serves.
fetch_kernel() {
  local package version
  mkdir -p "$HOLDFAST_CACHE/kernels"
  package=$(kernel_package)
  if [ -n "$package" ]; then
    version=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
    KERNEL_DIR=$HOLDFAST_CACHE/kernels/${package}_${version//:/%}
  else
    KERNEL_DIR=$(find "$HOLDFAST_CACHE/kernels" -maxdepth 1 -name "*-${VM_FLAVOUR}_*" | sort | tail -n 1)
    [ -n "$KERNEL_DIR" ] || {
      echo "vm: apt knows no linux-image-$VM_FLAVOUR; run apt-get update first" >&2
      exit 1
    }
  fi
  [ -f "$KERNEL_DIR/complete" ] && return
  echo "vm: fetching $package $version" >&2
  rm -rf "$KERNEL_DIR.new"
  mkdir -p "$KERNEL_DIR.new"
  (
    cd "$KERNEL_DIR.new" || exit 1
    apt-get download -o APT::Sandbox::User=root "$package=$version" >/dev/null &&
      dpkg -x ./*.deb . && rm -f ./*.deb && touch complete
  ) || {
    echo "vm: cannot fetch $package; is the package mirror reachable?" >&2
    exit 1
  }
  rm -rf "$KERNEL_DIR"
  mv "$KERNEL_DIR.new" "$KERNEL_DIR"
}

# copy_binary ROOT FILE [DEST]: a program and every library that the loader would give it.
copy_binary() {
  local root=$1 file=$2 dest=${3:-$2} library
  mkdir -p "$root$(dirname "$dest")"
  cp -L "$file" "$root$dest"
  LD_LIBRARY_PATH=${VM_LIBRARY_PATH:-} ldd "$file" 2>/dev/null |
    sed -n -e 's/.*=> \(\/[^ ]*\).*/\1/p' -e 's/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' |
    while read -r library; do
      [ -e "$root/lib/$(basename "$library")" ] && continue
      case $library in
        */ld-linux*) mkdir -p "$root/lib64" && cp -L "$library" "$root$library" ;;
        *) cp -L "$library" "$root/lib/" ;;
      esac
    done
}

# pack ROOT FILE: a cpio archive of a folder. Reproducible but for time stamps, owned by root.
pack() {
  (cd "$1" && find . -print0 | cpio --quiet --null -o -H newc -R 0:0) >"$2"
}

# build_base: the part of the initramfs that our sources do not change, in $BASE_DIR.
build_base() {
  local key root tool module release
  fetch_kernel
  key=$({
    echo "$KERNEL_DIR $VM_MODULES $VM_TOOLS"
    cat "${BASH_SOURCE[0]}"
    for tool in $VM_TOOLS busybox; do
      PATH=$PATH:/usr/sbin:/sbin command -v "$tool" | xargs sha256sum
    done
  } | sha256sum | cut -c1-16)
  BASE_DIR=$HOLDFAST_CACHE/vm-base-$key
  [ -f "$BASE_DIR/complete" ] && return
  rm -rf "$BASE_DIR.new"
  root=$BASE_DIR.new/root
  mkdir -p "$root"/{bin,sbin,lib,lib64,usr/bin,usr/sbin,usr/lib,proc,sys,dev,run,tmp,mnt,etc,var,state}
  cp /bin/busybox "$root/bin/busybox"
  for tool in $("$root/bin/busybox" --list); do
    [ "$tool" = busybox ] || ln -sf busybox "$root/bin/$tool"
  done
  # Busybox's mount knows no helpers, so the real one stands next to it.
  copy_binary "$root" "$(command -v mount)" /usr/bin/mount.real
  for tool in $VM_TOOLS; do
    copy_binary "$root" "$(PATH=$PATH:/usr/sbin:/sbin command -v "$tool")" "/usr/bin/$tool"
  done
  echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  release=$(basename "$(echo "$KERNEL_DIR"/lib/modules/*)")
  mkdir -p "$root/lib/modules/$release"
  cp "$KERNEL_DIR/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} \
    "$root/lib/modules/$release/"
  [ -f "$KERNEL_DIR/lib/modules/$release/modules.dep" ] ||
    depmod -b "$KERNEL_DIR" "$release"
  # An installed ndctl puts an "install libnvdimm" rule into modprobe.d that would hide the module:
  # ask with an empty configuration.
  for module in $VM_MODULES; do
    modprobe -C /dev/null -d "$KERNEL_DIR" -S "$release" --show-depends "$module" |
      sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
  done | sort -u | while read -r module; do
    module=${module#"$KERNEL_DIR"}
    mkdir -p "$root${module%/*}"
    cp "$KERNEL_DIR$module" "$root$module"
  done
  depmod -b "$root" "$release"
  cp "$KERNEL_DIR/boot/vmlinuz-$release" "$BASE_DIR.new/vmlinuz"
  echo "$release" >"$BASE_DIR.new/release"
  pack "$root" "$BASE_DIR.new/base.cpio"
  rm -rf "$root"
  touch "$BASE_DIR.new/complete"
  rm -rf "$BASE_DIR"
  mv "$BASE_DIR.new" "$BASE_DIR"
}
