# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# The part of the initramfs that our sources change: Holdfast's binaries, the guest's programs and
# scripts. Sourced by `run`.

GUEST_CFLAGS="-std=gnu11 -O2 -g -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror
  -D_GNU_SOURCE"

# guest_program NAME SOURCE...: a program that knows only the kernel.
guest_program() {
  local name=$1
  shift
  # shellcheck disable=SC2086 # flags are words
  (cd "$here/guest" && cc $GUEST_CFLAGS -static -s -o "$IMAGE_ROOT/usr/bin/$name" "$@")
}

# client_program NAME SOURCE...: a program on libholdfast.
client_program() {
  local name=$1
  shift
  # shellcheck disable=SC2086 # flags are words
  (cd "$here/guest" && cc $GUEST_CFLAGS -I"$tree/persist/client" -o "$VM_DIR/$name" "$@" \
    -L"$HOLDFAST_BUILD/lib" -lholdfast)
  install_binary "$VM_DIR/$name" "/usr/bin/$name"
}

# preloaded NAME SOURCE: what the guest puts in front of a program's own calls.
preloaded() {
  # shellcheck disable=SC2086 # flags are words
  (cd "$here/guest" && cc $GUEST_CFLAGS -shared -fPIC -s -o "$IMAGE_ROOT/lib/$1" "$2")
}

# install_binary FILE DEST: stripped, with its libraries.
install_binary() {
  VM_LIBRARY_PATH=$HOLDFAST_BUILD/lib copy_binary "$IMAGE_ROOT" "$1" "$2"
  strip "$IMAGE_ROOT$2"
}

install_holdfast() {
  local name
  for name in holdfast holdfastd mount.holdfast; do
    [ -x "$HOLDFAST_BUILD/bin/$name" ] || {
      echo "vm: $HOLDFAST_BUILD/bin/$name is missing; run ./dev build first" >&2
      exit 1
    }
    install_binary "$HOLDFAST_BUILD/bin/$name" "/usr/bin/$name"
  done
  # where mount(8) looks for helpers
  ln -sf ../usr/bin/mount.holdfast "$IMAGE_ROOT/sbin/mount.holdfast"
  mkdir -p "$IMAGE_ROOT/usr/libexec/holdfast"
  install -m 755 "$tree/kexec/hooks/pre-kexec" "$tree/kexec/hooks/post-boot" \
    "$IMAGE_ROOT/usr/libexec/holdfast/"
}

# build_image [with-holdfast]: $VM_INITRD (for QEMU and for kexec) and $VM_BOOT_TAR (what the guest kexecs).
build_image() {
  IMAGE_ROOT=$VM_DIR/root
  VM_INITRD=$VM_DIR/initrd.cpio
  VM_BOOT_TAR=$VM_DIR/boot.tar
  rm -rf "$IMAGE_ROOT"
  mkdir -p "$IMAGE_ROOT"/{usr/bin,sbin,vm/chains,lib,boot}
  guest_program vmexit vmexit.c
  guest_program raw_dma raw_dma.c edu.c vfio.c
  guest_program raw_loop raw_loop.c e1000e.c vfio.c
  guest_program raw_adopt raw_adopt.c adopt.c vfio.c
  guest_program raw_refused raw_refused.c adopt.c vfio.c
  guest_program raw_pool raw_pool.c adopt.c vfio.c
  guest_program raw_units raw_units.c adopt.c vfio.c
  guest_program raw_scale raw_scale.c adopt.c vfio.c
  guest_program raw_pair raw_pair.c adopt.c vfio.c
  guest_program raw_bell raw_bell.c adopt.c vfio.c
  if [ "${1:-}" = with-holdfast ]; then
    install_holdfast
    client_program edu_driver edu_driver.c driver.c edu.c vfio.c
    client_program e1000e_driver e1000e_driver.c driver.c e1000e.c vfio.c
    client_program live_driver live_driver.c adopt.c vfio.c
    preloaded kill_at.so kill_at.c
    client_program adopt-driver "$tree/examples/adopt-driver/adopt-driver.c"
  fi
  "$here/lib/dmar_table" --unit 0x58000000 --device 15.0 "$IMAGE_ROOT/vm/dmar.cpio"
  install -m 755 "$here/guest/init" "$IMAGE_ROOT/init"
  install -m 644 "$here/guest/lib.sh" "$here/guest/splats" "$IMAGE_ROOT/vm/"
  install -m 644 "$here"/chains/*.sh "$IMAGE_ROOT/vm/chains/"
  pack "$IMAGE_ROOT" "$VM_DIR/overlay.cpio"
  cat "$BASE_DIR/base.cpio" "$VM_DIR/overlay.cpio" >"$VM_INITRD"
  mkdir -p "$VM_DIR/boot"
  cp "$VM_KERNEL" "$VM_DIR/boot/vmlinuz"
  cp "$VM_INITRD" "$VM_DIR/boot/initrd"
  # A kernel of the distribution's, for those who go from one kind to the other.
  cp "$BASE_DIR/vmlinuz" "$VM_DIR/boot/vmlinuz-stock"
  tar cf "$VM_BOOT_TAR" -C "$VM_DIR/boot" vmlinuz vmlinuz-stock initrd
  rm -rf "${VM_DIR:?}/boot" "$VM_DIR/overlay.cpio"
}
